"""The harness measures configurations, here on a process that answers like an engine."""

import json

import pandas as pd
import pytest
import tiny

from minstate.lab.bench import peer_process, peers
from minstate.lab.paths import CLONE, TRACES

ENGINE = """
import os
import time


def load(spec):
    if spec["mode"] == "broken":
        os.closerange(3, 64)  # its answers end before it says why
        time.sleep(0.3)
        raise SystemExit("out of luck")
    print("libraries print what they like")
    return "1.2", lambda token_ids, count: ([0 if spec["mode"] == "odd" else len(token_ids)] * count, 0.25)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout whose only engine counts the tokens that it is given."""
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "run_engine.py").write_text((CLONE / "peers" / "run_engine.py").read_text())
    (tmp_path / "peers" / "run_minstate.py").write_text(ENGINE)
    monkeypatch.setattr(peer_process, "clone_for", lambda program: tmp_path)
    monkeypatch.setattr(peer_process, "ENVIRONMENTS", tmp_path / "none")
    for module in (peers, peer_process):
        monkeypatch.setattr(module, "find_model", lambda: tmp_path)
    monkeypatch.setattr(peers, "read_tokenizer", lambda folder: tiny.tokenizer())
    return tmp_path


def test_engines_that_are_absent_or_break_are_named_and_left_out(folder, capfd):
    configurations = [peers.OURS, "minstate, broken", "vllm, stateless"]
    with peers.running(configurations, "float32") as started:
        assert list(started) == [peers.OURS] and started[peers.OURS].version == "1.2"
        assert started[peers.OURS].generate([5, 6, 7], 2)["token_ids"] == [3, 3]
    assert started[peers.OURS].process.poll() is not None, "no process is left running"
    printed = capfd.readouterr().err
    assert "absent: vllm, stateless" in printed and "CONTRIBUTING.md" in printed
    assert "minstate (broken) ended" in printed and "out of luck" in printed


def test_every_configuration_continues_from_its_own_output(folder):
    with peers.running([peers.OURS, "minstate, odd"], "float32") as started:
        rows = peers.measure_turns(started, [([5, 6], 3), ([7], 2)], repeat=0)
    assert len(rows) == 2 * 2 and set(rows["first_s"]) == {0.25}
    assert rows[rows["configuration"] == peers.OURS]["same as ours"].all()
    assert not rows[rows["configuration"] == "minstate, odd"]["same as ours"].any()
    first = rows[(rows["turn"] == 1)]["n"].iloc[0]
    assert set(rows[rows["turn"] == 2]["n"]) == {first + 3 + 1}, "what was generated is part of the next prompt"


def test_steps_and_prompts_are_timed_apart(folder):
    (folder / "minstate").mkdir()
    for name in ("engine", "radix_tree", "paged_kv"):
        (folder / "minstate" / f"{name}.py").write_text("some text, " * 20)
    with peers.running([peers.OURS], "float32") as started:
        rows = peers.measure_steps(started, repeats=2, contexts=[64], tokens=4)
    assert len(rows) == 2 and rows["prompt_s"].notna().sum() == 1


def test_what_keeps_nothing_is_measured_once(folder):
    (folder / "peers" / "run_transformers.py").write_text(ENGINE)
    names = [peers.OURS, "transformers, stateless"]
    with peers.running(names, "float32") as started:
        rows = [peers.measure_turns(started, [([5, 6], 3)], repeat).assign(repeat=repeat) for repeat in (0, 1)]
    assert [list(part["configuration"].sort_values()) for part in rows] == [names, names[:1]]
    both = peers.summary(pd.concat(rows).assign(seconds=1.0), ["repeat", "turn"], "seconds").set_index("configuration")
    assert both.notna().all(axis=None)
    parts = peers.turn_parts(pd.concat(rows).assign(seconds=1.0))
    assert list(parts["turns that say the same"]) == [1, 1]


def test_ratios_are_paired():
    rows = pd.DataFrame(
        {
            "turn": [1, 2, 3] * 2,
            "configuration": [peers.OURS] * 3 + ["vllm, stateless"] * 3,
            "seconds": [
                1.0,
                10.0,
                100.0,
                2.0,
                20.0,
                200.0,
            ],  # each turn twice as slow, the medians as far apart as can be
        }
    )
    theirs = peers.summary(rows, ["turn"], "seconds").set_index("configuration").loc["vllm, stateless"]
    assert (theirs["ratio to ours"], theirs["from"], theirs["to"]) == (2, 2, 2)


def test_recipes_name_exact_versions():
    for peer in ("vllm", "llama_cpp", "openvino"):
        lines = (CLONE / "peers" / f"{peer}.txt").read_text().splitlines()
        assert lines and all(line.count("==") == 1 for line in lines)


def test_a_trace_becomes_the_tokens_of_its_turns():
    turns = peers.conversation("agentic")
    header = json.loads((TRACES / "agentic-0.jsonl").read_text().splitlines()[0])
    assert len(turns) == 6 and sum(len(new) + count for new, count in turns) == header["positions"]
