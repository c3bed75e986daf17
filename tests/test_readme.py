"""What the README and `docs/` say is so: examples run, links lead somewhere, figures are the measured ones."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_the_example_prints_what_it_says(capsys):
    (example,) = blocks(README)
    exec(example, {})
    said = re.findall(r"^print.*?  # (.*)$", example, flags=re.MULTILINE)
    assert said and capsys.readouterr().out.splitlines() == said


def test_the_examples_of_use_run():
    example, agent, tasks = blocks((ROOT / "docs" / "using.md").read_text())
    names = {}
    exec(example, names)
    assert names["turn"].stats.prefilled == names["turn"].stats.delta
    assert names["child"].token_ids != names["session"].token_ids
    assert names["other"].token_ids
    assert names["turn"].tool_calls[0].arguments == {"city": "Lima"}
    assert (names["turn"].stats.generated, names["turn"].stats.forced, names["turn"].stats.steps) == (30, 26, 5)
    exec(agent, names := {})
    names["engine"].check()
    assert len(names["agent"].messages) >= 2
    exec(tasks, names := {})
    assert len(names["answers"]) == 3 and all(names["answers"])


@pytest.mark.parametrize("page", ["README.md", "REPORT.md", "CONTRIBUTING.md", "ARCHITECTURE.md", *PAGES])
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert not [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]


def test_figures_are_the_measured_ones():
    record = json.loads((ROOT / "data" / "results" / "ablation_bfloat16.json").read_text())
    rows = {(row["workload"], row["configuration"]): row for row in record["rows"]}
    for name in ("naive", "prefix reuse", "stateful", "+ grammar"):
        cells = []
        for workload in ("agentic", "coding"):
            row = rows[workload, name]
            faster = "" if name == "naive" else f", {row['times faster']:.1f} ×"
            cells += [f"{row['forwarded']:,}", f"{row['total s']:.0f} s{faster}"]
        assert f" | {' | '.join(cells)} |" in README
    best, text = rows["coding", "+ grammar"], " ".join((ROOT / "docs" / "results.md").read_text().split())
    assert (
        f"is {best['last turn']:.1f} × faster than without memory, the median one {best['median turn']:.1f} ×" in text
    )
    full = json.loads((ROOT / "data" / "results" / "ablation_float32.json").read_text())["rows"]
    short, long = (f"{row['median turn']:.1f} ×" for row in full if row["configuration"] == "+ grammar")
    assert f"In float32 the median turn is {short} (6 turns) and {long} faster" in text
    turns = record["turns"]["coding"]
    parts = zip(turns["configuration"], turns["turn"], turns["reused"], turns["n"], strict=True)
    share = [100 * reused / n for name, turn, reused, n in parts if name == "stateful" and turn > 1]
    assert f"{min(share):.0f} % to {max(share):.0f} % of each prompt after the first" in " ".join(README.split())
    naive, stateful = (rows["coding", name]["total s"] for name in ("naive", "stateful"))
    reuse = 100 * (naive - stateful) / (naive - best["total s"])
    assert f"reuse saves {reuse:.0f} % of the seconds on 35 turns, and drafts {100 - reuse:.0f} %" in " ".join(
        README.split()
    )


def test_the_templates_are_counted():
    rows = json.loads((ROOT / "data" / "results" / "templates.json").read_text())["rows"]
    outcomes = [row["outcome"] for row in rows]
    exact, refused, wrong = (outcomes.count(outcome) for outcome in ("exact", "refused", "wrong"))
    counted = (
        f"of the {len(outcomes)} that we found published, {exact} keep them all, {refused} are refused for a reason"
    )
    assert f"{counted}, and {wrong} do not keep one" in " ".join((ROOT / "docs" / "models.md").read_text().split())
