"""The doctor tells a template that keeps every promise from one that does not, and says why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minstate.chat.dialect import Reply
from minstate.lab.doctor.templates import as_row, table, tokenizers
from minstate.lab.engines.template_styles import STYLES
from minstate.lab.templates.check import check_template, control_tokens_in

DROPS_REPLIES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
)


def verdicts(folder: Path):
    return {each[0]: check_template(*each) for each in tokenizers([folder])}


@pytest.fixture
def folder(tmp_path):
    for name, (template, _) in STYLES.items():
        (tmp_path / f"{name}.jinja").write_text(template)
    (tmp_path / "drops.jinja").write_text(DROPS_REPLIES)
    (tmp_path / "refuses.jinja").write_text("{{ raise_exception('never') }}")
    return tmp_path


def test_each_template_gets_its_verdict(folder):
    found = verdicts(folder)
    assert {name for name, each in found.items() if each.outcome == "exact"} == set(STYLES)
    assert found["drops"].outcome == "refused" and "leaves out" in found["drops"].found["conversation"]
    assert found["refuses"].outcome == "refused" and "never" in found["refuses"].found["conversation"]
    assert found["qwen2.5"].writes_calls and not found["chatml"].writes_calls
    shown = table(list(found.values()))
    assert f"{len(STYLES)} exact, 0 wrong, 2 refused" in shown and "drops: conversation: refused" in shown
    assert set(as_row(found["qwen3"])["checks"].values()) == {"ok"}


def test_what_looks_like_a_control_token_is_one():
    assert {"<|im_start|>", "<|im_end|>", "</s>"} <= set(control_tokens_in(STYLES["qwen2.5"][0]))
    assert "[INST]" in control_tokens_in(STYLES["mistral"][0])


def test_the_command_prints_a_table_and_writes_outcomes(folder, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "minstate.lab.doctor", "template", str(folder / "qwen3.jinja"), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 exact, 0 wrong" in done.stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert row["name"] == "qwen3" and row["outcome"] == "exact"
    missing = subprocess.run([*command[:4], "no such file"], capture_output=True, text=True, timeout=300)
    assert missing.returncode == 2 and "no such file" in missing.stderr


def test_a_reply_that_is_read_wrongly_is_found(folder, monkeypatch):
    monkeypatch.setattr("minstate.chat.dialect.Dialect.read", lambda self, text, *_, **__: Reply("", text, (), text))
    verdict = verdicts(folder)["qwen2.5"]
    assert verdict.outcome == "wrong" and "it reads []" in verdict.found["calls"]


def test_content_that_controls_is_found(folder, monkeypatch):
    monkeypatch.setattr("minstate.chat.content.ControlTokens.protect", lambda self, content, allowed=None: content)
    verdict = verdicts(folder)["chatml"]
    assert verdict.outcome == "wrong" and "control tokens" in verdict.found["hostile content"]
