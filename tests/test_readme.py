"""What the README says is so: its example runs, its links lead somewhere, its figures are the measured ones."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(example, names)
    assert names["turn"].stats.prefilled == names["turn"].stats.delta
    assert names["child"].token_ids != names["session"].token_ids
    assert names["other"].token_ids


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_figures_are_the_measured_ones():
    rows = json.loads((ROOT / "data" / "results" / "agentic_turns.json").read_text())["rows"]
    naive = sum(row["forwarded, naive"] for row in rows)
    stateful = sum(row["forwarded, stateful"] for row in rows)
    assert f"{naive:,} tokens" in README and f"{stateful:,} with it" in README
    assert f"{rows[-1]['ratio']:.1f} × faster" in README
    share = [row["reused share"] for row in rows[1:]]
    assert f"{min(share):.0%} to {max(share):.0%}".replace("%", " %") in README
