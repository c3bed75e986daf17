"""The committed traces are what their headers say, and a seed writes more of them."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from minstate import Engine
from minstate.lab.paths import TRACES
from minstate.lab.traces.replay import replay, trace_statistics
from minstate.lab.traces.scenarios import SCENARIOS, PlannedTurn, Scenario
from minstate.lab.traces.trace import Trace, read_trace, write_trace
from minstate.lab.traces.write import generate_trace, new_sentences, recorded_author, word_4grams, written_turns
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.weights import find_model, read_tokenizer

COMMITTED = {"agentic-0": 6, "coding-0": 35, "data_analysis-0": 12, "planning-0": 17}  # turns
POSITIONS = 8192


@cache
def committed(name: str) -> Trace:
    return read_trace(TRACES / f"{name}.jsonl")


@cache
def scenario(name: str, seed: int = 0) -> Scenario:
    return SCENARIOS[name](seed)


def tiny_network_engine() -> Engine:
    """An engine with the default model's tokenizer and positions, and a network that takes no time."""
    small = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    full = {"vocab_size": 49152, "max_position_embeddings": POSITIONS, "num_key_value_heads": 1}
    config = AutoConfig.for_model(**{**tiny.SHAPE, **tiny.FAMILIES["llama"], **small, **full})
    hf = AutoModelForCausalLM.from_config(config)
    model = Model(ModelConfig.from_hf(hf.config.to_dict()), {name: w.detach() for name, w in hf.state_dict().items()})
    return Engine(model, read_tokenizer(find_model()), eos_ids=[2], num_pages=1024)


@cache
def played(name: str) -> tuple[list, dict[str, list[int]]]:
    """The turns of a committed trace, replayed, and the logs of its sessions."""
    sessions = {}
    turns = list(replay(tiny_network_engine(), committed(name), sessions=sessions))
    return turns, {name: session.token_ids for name, session in sessions.items()}


# The committed traces


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_traces_are_valid_and_small(name):
    trace = committed(name)
    turns = list(trace.turns)
    assert len(turns) == trace.header.turns == COMMITTED[name]
    assert f"{trace.header.name}-{trace.header.seed}" == name
    assert (TRACES / f"{name}.jsonl").stat().st_size < 150_000


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_traces_have_the_statistics_of_their_headers(name):
    header = committed(name).header
    statistics = trace_statistics(*played(name))
    assert statistics["positions"] <= POSITIONS
    assert statistics == {key: header.turns if key == "turns" else header.more[key] for key in statistics}


def test_the_coding_trace_has_the_size_of_a_long_session():
    statistics = committed("coding-0").header.more
    assert 110 <= statistics["median_input_tokens"] <= 170
    assert 40 <= statistics["median_output_tokens"] <= 56
    assert statistics["positions"] > 7000


def test_the_planners_sub_agents_share_its_log():
    turns, logs = played("planning-0")
    forks = [(record, turn) for record, turn in turns if record.fork_of]
    assert [record.session for record, _ in forks] == ["tests", "orders", "promises"]
    for record, turn in forks:
        shared = turn.stats.context + 1
        assert logs[record.session][:shared] == logs["main"][:shared] and shared > 1000
        assert turn.stats.reused >= shared - 1


@pytest.mark.parametrize("name", COMMITTED)
def test_tools_return_the_same_results_again(name):
    trace = committed(name)
    again = scenario(trace.header.name, trace.header.seed)
    assert again.sessions == trace.header.sessions and again.about == trace.header.about
    assert tuple(written_turns(again, recorded_author(trace.turns))) == tuple(trace.turns)


@pytest.mark.parametrize("name", COMMITTED)
def test_no_sentence_repeats_another(name):
    sentences = [
        sentence
        for turn in committed(name).turns
        for sentence in re.split(r"(?<=[.!?:])\s", turn.output.get("content", ""))
        if sentence
    ]
    assert len(sentences) >= COMMITTED[name] // 4
    known = set()
    for sentence in sentences:
        assert new_sentences(sentence, known) == [sentence]
        known.update(word_4grams(sentence))


# Scenarios


def results(turns: tuple[PlannedTurn, ...]) -> list[str]:
    return [message["content"] for turn in turns for message in turn.messages if message["role"] == "tool"]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_of_any_seed_run_without_errors(name, seed):
    turns = scenario(name, seed).turns
    assert len(turns) == len(scenario(name).turns)
    assert not [result for result in results(turns) if result.startswith("error:")]
    assert turns[-1].messages != scenario(name).turns[-1].messages or name == "coding"  # which ends on "OK"
    assert not any(turn.calls for turn in turns[-1:])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_coder_fixes_the_bug_and_all_tests_pass_at_the_end(seed):
    turns = scenario("coding", seed).turns
    reports = [
        after.messages[0]["content"]
        for before, after in pairwise(turns)
        if before.calls and before.calls[0]["name"] == "run_tests"
    ]
    red = ["FAILED" in report or "ERROR" in report for report in reports]
    assert red[:2] == [True, False] and sum(red) == 3, "the bug, and two tests that were written first"
    assert reports[-1].endswith("OK")
    counts = Counter(call["name"] for turn in turns for call in turn.calls)
    assert counts["edit_file"] == 7 and counts.total() == 34


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planner_waits_for_its_agents_and_acts_on_what_they_found(seed):
    turns = scenario("planning", seed).turns
    (joined,) = (turn for turn in turns if turn.waits_for)
    reports = [call["arguments"]["finding"] for turn in turns for call in turn.calls if call["name"] == "report"]
    assert sorted(message["content"] for message in joined.messages) == sorted(reports) and len(reports) == 3
    assert joined.calls[0]["name"] == "edit_file" and joined.calls[0]["arguments"]["old"] in "".join(reports)
    after = turns[turns.index(joined) + 2]
    assert after.messages[0]["content"].endswith("OK")


# Text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The tests fail because of tax. I will look", ["The tests fail because of tax."]),
        ("We need to read pricing.py now! And then", ["We need to read pricing.py now!"]),
        ("Let me run the tests:", ["Let me run the tests:"]),
        ("Too short. The rest does not count.", []),
        ("As we know, he likes apples very much.", ["As we know, he likes apples very much."]),
        ("He likes apples very much.", []),
        ("It is what it was before. It is what it was before.", ["It is what it was before."]),
        ("I am sorry for that, I am sorry for that.", []),
        ("no end in sight, and on it goes", []),
        ("", []),
    ],
)
def test_only_new_whole_sentences_are_kept(text, kept):
    known = set(word_4grams("She said: he likes apples very much"))
    assert new_sentences(text, known) == kept


def test_a_trace_is_generated_from_end_to_end(tmp_path, monkeypatch):
    """Two turns of the planner and one of each sub-agent, with a model whose output makes no sense."""
    beginning = replace(scenario("planning"), turns=scenario("planning").turns[:5])
    monkeypatch.setitem(SCENARIOS, "planning", lambda seed: beginning)
    monkeypatch.setattr("minstate.lab.traces.write.ATTEMPTS", 1)
    monkeypatch.setattr("minstate.lab.traces.write.new_sentences", lambda text, known: [f"{len(known)} {text[:3]}."])
    engine = tiny_network_engine()
    trace = generate_trace("planning", 0, engine)
    write_trace(tmp_path / "t.jsonl", trace.header, trace.turns)
    back = read_trace(tmp_path / "t.jsonl")
    assert back.header == trace.header and tuple(back.turns) == trace.turns
    assert tuple(written_turns(beginning, recorded_author(back.turns))) == trace.turns
    assert ["content" in turn.output for turn in trace.turns] == [True, False, True, False, True], (
        "a long call leaves no room for text"
    )
    engine.check()
