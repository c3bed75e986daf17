"""Odd input and odd moments: nothing is lost, nothing wrong is said, and the error is one of ours."""

import copy
import gc
import json

import numpy as np
import pytest
import torch
from tiny import engine, hf_model, model, tokenizer

from minstate import (
    BadMessage,
    BadValue,
    DamagedWeights,
    Engine,
    EngineMisuse,
    MinstateError,
    OutOfPages,
    Sampling,
    StaleMark,
    TurnStats,
    UnsupportedSchema,
)
from minstate.attention import TorchAttention
from minstate.chat.dialect import HERMES
from minstate.errors import BrokenInvariant
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.ragged_batch import RaggedBatch
from minstate.sampling import choose
from minstate.sequence import Sequence

GREEDY = Sampling(ignore_eos=True)


def test_large_seeds_give_different_noise():
    logits = torch.zeros(1000)
    assert len({choose(logits, Sampling(temperature=1.0, seed=2**63 + i), position=7) for i in range(9)}) > 1


def test_a_tiny_temperature_is_nearly_greedy():
    logits = torch.tensor([30.0, 29.0, 0.0])
    assert choose(logits, Sampling(temperature=1e-308), position=0) == 0


def test_a_session_of_another_engine_is_refused():
    ours, theirs = engine(), engine()
    with pytest.raises(EngineMisuse):
        ours.submit(theirs.open(), token_ids=[5], max_new_tokens=2)


def test_a_mark_of_another_engines_session_is_refused():
    ours, theirs = engine().open(), engine().open()
    ours.mark()
    ours.send(token_ids=[5] * 9, max_new_tokens=1)
    with pytest.raises(StaleMark):
        ours.rollback(theirs.mark())
    assert len(ours.token_ids) == 10


@pytest.mark.parametrize("no_mark", [[], (0, 0)])
def test_what_is_no_mark_is_refused(no_mark):
    session = engine().open()
    session.mark()
    with pytest.raises(StaleMark):
        session.rollback(no_mark)


def test_an_exception_in_submit_leaves_the_log_as_it_was(monkeypatch):
    session = engine().open()
    session.send(token_ids=[5, 6], max_new_tokens=2, sampling=GREEDY)
    before = session.token_ids

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.engine.scheduler, "require_pages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.send(token_ids=[7, 8], max_new_tokens=1)
    assert session.token_ids == before


def test_ids_that_send_on_the_same_session_while_they_are_read_do_no_harm():
    session = engine().open(messages=[{"role": "system", "content": "only once"}])

    def ids():
        session.send(token_ids=[7], max_new_tokens=1)
        yield 8

    session.send(token_ids=ids(), max_new_tokens=1)
    assert session.engine.tokenizer.decode(session.token_ids).count("only once") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_becomes_garbage_inside_a_step_is_aborted():
    e = engine()
    e.core.runner.model = copy.copy(e.model)
    forward = e.model.forward
    left, other = e.open(), e.open()
    stream = left.stream(token_ids=[5], max_new_tokens=30, sampling=GREEDY)
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    e.model.forward = lambda *args: (gc.collect(), forward(*args))[1]
    other.send(token_ids=[7], max_new_tokens=2, sampling=GREEDY)
    e.step()
    assert not left.running


def test_a_failed_pass_leaves_no_unwritten_keys_behind():
    """`kv_len` counts slots that the failed pass never wrote: whoever reuses them reads garbage."""
    e = engine(NaiveEngine)
    e.core.runner.model = copy.copy(e.model)
    session = e.open()
    session.send(token_ids=[5, 6, 7, 8], max_new_tokens=2, sampling=GREEDY)
    forward, e.model.forward = e.model.forward, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        session.send(token_ids=[9], max_new_tokens=2)
    e.model.forward = forward
    assert session.sequence.kv_len == 0


def test_replay_ignores_stop_strings():
    e = engine()
    turn = e.open().send(token_ids=[5], replay=e.tokenizer.encode("ab}cd"), sampling=Sampling(stop="}"))
    assert turn.text == "ab}cd"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_deeply_nested_calls_are_malformed_calls(text):
    (call,) = HERMES.read(f"<tool_call>{text}</tool_call>").calls
    assert call.error


CIRCULAR: dict = {}
CIRCULAR["itself"] = CIRCULAR


@pytest.mark.parametrize(
    "opening",
    [
        {"tools": [CIRCULAR]},
        {"tools": [{"name": "\ud800"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 100_000}]}]},
    ],
    ids=["circular", "surrogate in tools", "surrogate in a call", "nested"],
)
def test_what_cannot_be_written_as_json_is_a_bad_message(opening):
    with pytest.raises(BadMessage):
        engine().open(**opening)


@pytest.mark.parametrize(
    "options",
    [{"stop": None}, {"stop": 1.5}, {"stop": b"ab"}, {"temperature": 10**400}],
    ids=["stop=None", "stop=1.5", "stop=bytes", "temperature=10**400"],
)
def test_sampling_refuses_what_it_cannot_use(options):
    with pytest.raises(BadValue):
        Sampling(**options)


def weights_of(family: str) -> dict:
    return {name: tensor.detach() for name, tensor in hf_model(family).state_dict().items()}


@pytest.mark.parametrize(
    "family, lost", [("qwen2", "q_proj.bias"), ("qwen3", "q_norm.weight"), ("qwen3", "k_norm.weight")]
)
def test_lost_biases_and_head_norms_are_damage(family, lost):
    weights = {name: tensor for name, tensor in weights_of(family).items() if not name.endswith(lost)}
    with pytest.raises(DamagedWeights):
        Model(ModelConfig.from_hf(hf_model(family).config.to_dict()), weights)


def test_a_bias_of_another_shape_is_damage():
    weights = weights_of("qwen2") | {"model.layers.0.self_attn.q_proj.bias": torch.ones(1, dtype=torch.float64)}
    with pytest.raises(DamagedWeights):
        Model(ModelConfig.from_hf(hf_model("qwen2").config.to_dict()), weights)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": "2"},
        {"rope_parameters": "x"},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
    ],
    ids=json.dumps,
)
def test_an_odd_configuration_is_refused(change):
    with pytest.raises(MinstateError):
        Model(ModelConfig.from_hf(hf_model("llama").config.to_dict() | change), weights_of("llama"))


@pytest.mark.parametrize("damage", ["orphan", "unknown to the scheduler", "page too many", "closed with pages"])
def test_check_recounts_turns_too(damage):
    e = engine()
    session = e.open()
    e.submit(session, token_ids=[5] * 9, max_new_tokens=3)
    e.step()
    if damage == "orphan":
        session.running = None
    elif damage == "unknown to the scheduler":
        e.scheduler.running.clear()
    elif damage == "page too many":
        session.sequence.table.pages += e.pool.allocator.allocate(1)
    else:
        e.run()
        session._open.detach()
    with pytest.raises(BrokenInvariant):
        e.check()


@pytest.mark.parametrize("damage", ["leak", "kv beyond the log", "mark beyond the log", "page twice"])
def test_check_recounts_idle_sessions_too(damage):
    e = engine()
    session = e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=3, sampling=GREEDY)
    e.check()
    table = session.sequence.table
    if damage == "leak":
        e.pool.allocator.allocate(1)
    elif damage == "kv beyond the log":
        table.append(1)
    elif damage == "mark beyond the log":
        session.mark()
        session.sequence.truncate(4)
    else:
        e.pool.allocator.share(table.pages[:1])
        e.pool.allocator.release(table.pages[1:2])
        table.pages[1] = table.pages[0]
    with pytest.raises(BrokenInvariant):
        e.check()


def test_a_batch_that_does_not_fit_leaves_the_page_tables_alone():
    pool = engine(num_pages=4).pool
    first, second = Sequence(pool), Sequence(pool)
    first.log, second.log = [5] * 9, [6] * 20
    first.table.append(3)
    first.table.commit()
    with pytest.raises(OutOfPages):
        RaggedBatch.build([first.chunk(5), second.chunk(20)])
    assert (first.kv_len, second.kv_len, pool.allocator.num_free) == (3, 0, 3)


def test_only_the_end_of_a_log_wants_logits():
    pool = engine().pool
    chunk, whole = Sequence(pool), Sequence(pool)
    chunk.log, whole.log = [5] * 9, [6] * 3
    batch = RaggedBatch.build([chunk.chunk(5), whole.chunk(3)])
    assert batch.logit_rows.tolist() == [7] and batch.query_start.tolist() == [0, 5, 8]


def test_a_run_of_pages_is_read_in_place():
    pool = engine().pool
    sequence = Sequence(pool)
    sequence.log = [5] * 9
    for count in (8, 1):  # the prompt's tokens read each other, and nothing from the pool; the next one reads them all
        batch = RaggedBatch.build([sequence.chunk(count)])
        (plan,) = TorchAttention(pool, batch).plans
        sequence.table.commit()
        start = sequence.table.pages[0] * pool.page_size
        assert [(run.start, run.end) for run in plan.runs] == ([] if count == 8 else [(start, start + 9)])
        assert plan.causal == (count == 8) and not plan.gathered_tokens


def test_stats_tell_lost_from_found():
    def stats(context, delta, reused):
        return TurnStats(context, delta, reused, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0.0, 0.1, 0.2)

    lost, found = stats(10, 3, 4), stats(10, 3, 12)
    assert (lost.recomputed, lost.shared, lost.prefilled) == (6, 0, 9)
    assert (found.recomputed, found.shared, found.prefilled) == (0, 2, 1)


def test_aborting_a_turn_that_is_done_does_nothing():
    e = engine()
    handle = e.submit(e.open(), token_ids=[5], max_new_tokens=1)
    e.run()
    e.abort(handle)
    assert handle.turn and not handle.aborted
    e.check()


def test_end_of_sequence_ids_that_are_no_ids_are_refused():
    with pytest.raises(BadValue):
        Engine(model(), tokenizer(), eos_ids=2)


def stream_in_a_cycle(session, **options) -> None:
    """A running turn that nobody can reach, until the garbage collector comes by."""
    cycle = [session.stream(**options)]
    cycle.append(cycle)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_collected_inside_a_pass_that_fails_leaves_no_unwritten_keys():
    e = engine()
    e.core.runner.model = copy.copy(e.model)
    other, left = e.open(), e.open()
    prompt = [5, 6, 7, 8, 9, 10, 11, 12]
    said = left.send(token_ids=prompt, max_new_tokens=2, sampling=GREEDY).token_ids
    e.cache.make_room(64)  # its history will be computed again
    handle = e.submit(other, token_ids=[7], max_new_tokens=2, sampling=GREEDY)
    stream_in_a_cycle(left, token_ids=[9], max_new_tokens=30, sampling=GREEDY)
    forward, e.model.forward = e.model.forward, lambda *_: (gc.collect(), 1 / 0)
    e.step()
    e.model.forward = forward
    assert isinstance(handle.error, ZeroDivisionError)
    e.check()
    assert left.resident == 0
    afresh = engine(NaiveEngine).open().send(token_ids=[*prompt, *said, 9], max_new_tokens=5, sampling=GREEDY)
    assert left.send(token_ids=[9], max_new_tokens=5, sampling=GREEDY).token_ids == afresh.token_ids


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("where", ["match", "lock", "unlock", "insert", "nodes"])
def test_a_stream_collected_in_the_middle_of_bookkeeping_is_aborted_later(monkeypatch, where):
    e = engine(token_budget=4)
    sessions = [e.open() for _ in range(3)]
    e.submit(sessions[0], token_ids=range(20, 40), max_new_tokens=2, sampling=GREEDY)
    stream_in_a_cycle(sessions[1], token_ids=range(20, 40), max_new_tokens=9, sampling=GREEDY)
    original = getattr(type(e.cache.tree), where)

    def collecting(self, *args):
        gc.collect()
        return original(self, *args)

    monkeypatch.setattr(type(e.cache.tree), where, collecting)
    e.submit(sessions[2], token_ids=range(20, 40), max_new_tokens=2, sampling=GREEDY)
    while e.scheduler.running:
        e.step()
        e.check()
    assert sessions[1].token_ids == []


def test_an_idle_fork_never_stands_in_its_parents_way():
    e = engine(num_pages=4)
    parent = e.open()
    parent.send(token_ids=[5], max_new_tokens=2, sampling=GREEDY)
    child = parent.fork()
    log = child.token_ids
    assert parent.send(token_ids=[6] * 5, max_new_tokens=9, sampling=GREEDY).stats.generated == 9  # all four pages
    e.check()
    afresh = engine(NaiveEngine).open().send(token_ids=[*log, 7], max_new_tokens=3, sampling=GREEDY)
    assert child.send(token_ids=[7], max_new_tokens=3, sampling=GREEDY).token_ids == afresh.token_ids


def test_pages_evicted_one_by_one_leave_nothing_behind():
    """Idle sessions remember their places; what was evicted must not be kept for them, nor make the way back long."""
    e = engine(num_pages=64)
    idle = [e.open() for _ in range(3)]
    for number, session in enumerate(idle):
        session.send(token_ids=[30 + number] * 60, max_new_tokens=1)
    for _ in range(64):
        e.cache.make_room(1)
    visited = e.cache.tree.nodes_visited
    assert [session.resident for session in idle] == [0, 0, 0] and e.cache.tree.nodes_visited - visited <= 3


def test_forgetting_leaves_no_roots_and_no_heap_behind():
    e = engine(NaiveEngine)
    session = e.open()
    for _ in range(20):
        session.send(token_ids=[5] * 5, max_new_tokens=2, sampling=GREEDY)
    assert len(e.cache.tree.evictable_leaves) <= 3 and len(list(e.cache.tree.nodes())) <= 3
    shared = engine()
    for number in range(20):
        shared.open(tenant=str(number)).close()
    assert not shared.cache.tree.tenants


def test_a_tail_goes_before_its_page_and_both_in_the_order_of_their_last_use():
    e = engine(num_pages=64)
    sessions = [e.open() for _ in range(3)]
    for number, session in enumerate(sessions):  # one full page and a tail each
        session.send(token_ids=[30 + number] * 6, max_new_tokens=1, sampling=GREEDY)
    sessions[0].fork().close()  # a use
    left = []
    for _ in range(6):
        e.cache.make_room(1)
        left.append(tuple(session.resident for session in sessions))
    assert left == [(6, 4, 6), (6, 0, 6), (6, 0, 4), (6, 0, 0), (4, 0, 0), (0, 0, 0)]


def test_only_as_many_pages_are_evicted_as_are_missing():
    e = engine(num_pages=16)
    session = e.open()
    session.send(token_ids=[30] * 41, max_new_tokens=1)
    e.pool.allocator.release(e.pool.allocator.allocate(8))  # five were free
    assert session.resident == 32 and e.pool.allocator.num_free == 8


@pytest.mark.parametrize("foil", [NaiveEngine, PrefixReuseEngine])
def test_a_foil_refuses_another_engines_session_before_it_touches_it(foil):
    ours, theirs = engine(foil), engine()
    session = theirs.open()
    session.send(token_ids=[5] * 6, max_new_tokens=2, sampling=GREEDY)
    with pytest.raises(EngineMisuse):
        ours.submit(session, token_ids=[5], max_new_tokens=2)
    theirs.check()
    ours.check()


@pytest.mark.parametrize("how", ["refused", "aborted"])
def test_a_stateless_history_that_drifts_is_as_before_after_an_error(how):
    e = engine(PrefixReuseEngine)
    session = e.open()
    session.send("hi", replay=[*range(150, 170), 2])  # no text gives these ids back
    mark, before = session.mark(), session.token_ids
    if how == "refused":
        with pytest.raises(MinstateError):
            session.send("x" * 300, max_new_tokens=2)
    else:
        handle = e.submit(session, "so?", max_new_tokens=9)
        e.step()
        assert session.token_ids[: len(before)] != before
        handle.abort()
    e.check()
    assert session.token_ids == before
    session.rollback(mark)


def test_a_time_out_beyond_all_numbers_is_none_and_a_clock_that_fails_changes_nothing():
    session = engine().open()
    assert session.send(token_ids=[5], max_new_tokens=1, timeout_s=10**400).stats.generated == 1
    broken = engine(clock=lambda: 1 / 0).open()
    with pytest.raises(ZeroDivisionError):
        broken.send(token_ids=[5], max_new_tokens=1)
    assert broken.token_ids == []


@pytest.mark.parametrize(
    "parameters", [{"properties": {"a": {}}, "required": True}, {"properties": ["a"]}, {"properties": None}]
)
@pytest.mark.parametrize("speculation", [False, True])
def test_a_malformed_schema_is_for_the_turn_that_wants_it_enforced(parameters, speculation):
    e = engine(positions=4096, num_pages=600, speculation=speculation)
    session = e.open(tools=[{"name": "f", "parameters": {"type": "object", **parameters}}])
    with pytest.raises(UnsupportedSchema, match="properties are an object"):
        session.send("hi", max_new_tokens=2)
    assert session.send("hi", max_new_tokens=2, tool_choice=None, sampling=GREEDY).stats.generated == 2
    e.check()


def test_a_session_that_could_not_be_opened_leaves_no_root_behind(monkeypatch):
    e = engine(prefix_cache=False)
    monkeypatch.setattr(Engine, "prepare_tools", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        e.open()
    assert not e.cache.tree.private
    e.check()


def test_a_message_that_is_no_json_and_a_tool_that_is_none_are_refused():
    e = engine(positions=4096, num_pages=600)
    with pytest.raises(BadMessage, match="what JSON cannot"):
        e.open().send({"role": "user", "content": "x", "when": object()})
    with pytest.raises(BadMessage, match="must be a list of JSON schemas"):
        e.open(tools=[{"type": "function", "function": "f"}])


def test_a_stop_string_means_text_and_special_tokens_and_not_how_the_vocabulary_spells_bytes():
    e = engine()
    (byte,) = (i for i, spelt in enumerate(e.tokenizer.convert_ids_to_tokens(range(256))) if spelt == "Á")
    for token, reason in [(byte, "length"), (e.tokenizer.convert_tokens_to_ids("<|im_start|>"), "stop")]:
        handle = e.submit(e.open(), token_ids=[5], max_new_tokens=2, sampling=Sampling(stop=("Á", "<|im_start|>")))
        e.core.output._append(handle, token)
        assert e.core.output._finish_reason(handle) == ("stop" if reason == "stop" else "")
        handle.abort()


def test_a_choice_that_the_grammar_forbids_is_not_said(monkeypatch):
    e = engine(positions=4096, num_pages=600)
    monkeypatch.setattr("minstate.output.choose", lambda *_: 5)
    with pytest.raises(BrokenInvariant, match="which the grammar does not allow"):
        e.open().send("one", response_format={"type": "integer"}, max_new_tokens=8)
    e.check()


def test_numbers_of_numpy_are_numbers():
    assert engine().open().send(token_ids=[5], max_new_tokens=np.int64(2), sampling=GREEDY).stats.generated == 2
