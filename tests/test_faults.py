"""What goes wrong in one turn is that turn's own: its session is as before, and its neighbours go on."""

import contextlib
import copy
import itertools
import signal
import weakref

import pytest
import torch
from tiny import engine

from minstate import CostTable, OutOfPages, Sampling, Speculation
from minstate.chat.grammar import Constraint
from minstate.guard import interrupted_later
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.lab.engines.faults import InjectedFault, faults
from minstate.lab.engines.small_engine import small_engine
from minstate.model import Model
from minstate.paged_kv import PageTable
from minstate.prefix_cache import PrefixCache
from minstate.radix_tree import RadixTree
from minstate.ragged_batch import RaggedBatch
from minstate.scheduler import Scheduler
from minstate.sequence import Sequence

FREE = Sampling(ignore_eos=True)
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}}}


def nth(seam, number):
    """`when` for `faults`: only call `number` at that seam fails, counted from 1."""
    calls = itertools.count(1)
    return lambda here: here == seam and next(calls) == number


def alone(ids, count):
    return engine().open().send(token_ids=ids, max_new_tokens=count, sampling=FREE).token_ids


@pytest.mark.parametrize("kind", [None, NaiveEngine, PrefixReuseEngine])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("seam", ["allocation", "forward", "sampling"])
def test_a_fault_in_a_lone_turn_leaves_its_session_as_before(seam, number, kind):
    e = engine(*[kind] if kind else [])
    session = e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=3, sampling=FREE)
    before, mark = session.token_ids, session.mark()
    calls = itertools.count(1)
    with (
        faults(e, lambda here: here == seam and next(calls) >= number) as injected,  # once would be got over
        pytest.raises((InjectedFault, OutOfPages), match="injected"),
    ):
        session.send(token_ids=[6] * 9, max_new_tokens=30, sampling=FREE)
    e.check()
    assert set(injected) == {seam} and session.token_ids == before and not session.running
    whole = engine().open().send(token_ids=[*before, *[6] * 9], max_new_tokens=5, sampling=FREE)
    assert session.send(token_ids=[6] * 9, max_new_tokens=5, sampling=FREE).token_ids == whole.token_ids
    session.rollback(mark)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_fault_in_sampling_ends_one_turn_and_no_other(number):
    e = engine()
    handles = [e.submit(e.open(), token_ids=[i] * 9, max_new_tokens=6, sampling=FREE) for i in (5, 6, 7)]
    with faults(e, nth("sampling", number)):
        while e.scheduler.running:
            e.step()
            e.check()
    failed = [handle for handle in handles if handle.error]
    assert len(failed) == 1 and failed[0].aborted and failed[0].session.token_ids == []
    for handle, i in zip(handles, (5, 6, 7), strict=True):
        assert handle in failed or handle.turn.token_ids == alone([i] * 9, 6)


def test_when_turns_are_tried_alone_nothing_holds_the_memory_of_the_pass_that_failed():
    held = []

    def fails(batch):
        assert not any(activations() is not None for activations in held)
        activations = torch.zeros(len(batch.token_ids))
        held.append(weakref.ref(activations))
        raise MemoryError("for the test")

    pool = engine().pool
    sequences = [Sequence(pool) for _ in range(3)]
    for sequence in sequences:
        sequence.log += [5] * 4
    runner = engine().core.runner
    runner.logits = fails
    errors = runner.run(RaggedBatch.build([sequence.chunk(4) for sequence in sequences]))
    assert len(held) == 4 and [str(error) for error in errors] == ["for the test"] * 3


def test_a_step_returns_the_turns_that_it_ended_with_an_answer_or_with_an_error():
    e = engine()
    first, second = (e.submit(e.open(), token_ids=[i] * 9, max_new_tokens=1, sampling=FREE) for i in (5, 6))
    with faults(e, nth("sampling", 1)):
        assert e.step() == [first, second]
    assert isinstance(first.error, InjectedFault) and first.turn is None
    assert second.turn and second.error is None


def test_a_pass_that_fails_once_is_tried_for_each_turn_alone_and_harms_nobody():
    e = engine()
    handles = [e.submit(e.open(), token_ids=[i] * 9, max_new_tokens=6, sampling=FREE) for i in (5, 6, 7)]
    with faults(e, nth("forward", 3)) as injected:
        e.run()
    assert injected["forward"] == 1
    assert [handle.turn.token_ids for handle in handles] == [alone([i] * 9, 6) for i in (5, 6, 7)]


@pytest.mark.parametrize("speculation", [False, True])
def test_a_turn_with_which_every_pass_fails_is_the_only_one_to_go(speculation):
    marker = next(i for i in range(10, 200) if all(i not in alone([j] * 9, 6) for j in (5, 6)))
    e = engine(speculation=speculation)
    e.core.runner.model = copy.copy(e.model)
    forward = e.model.forward

    def poisoned(batch, attend):
        if marker in batch.token_ids.tolist():
            raise ValueError("no such token")
        return forward(batch, attend)

    e.model.forward = poisoned
    bad = e.open()
    bad.send(token_ids=[8] * 6, max_new_tokens=2, sampling=FREE)
    before = bad.token_ids
    good = [e.submit(e.open(), token_ids=[i] * 9, max_new_tokens=6, sampling=FREE) for i in (5, 6)]
    evil = e.submit(bad, token_ids=[9] * 5 + [marker], max_new_tokens=6, sampling=FREE)
    e.cache.make_room(64)  # its history is computed again, in the pass that fails
    while e.scheduler.running:
        e.step()
        e.check()
    assert isinstance(evil.error, ValueError) and bad.token_ids == before and bad.resident <= len(before) - 1
    assert [handle.turn.token_ids for handle in good] == [alone([i] * 9, 6) for i in (5, 6)]
    expected = engine().open().send(token_ids=[*before, 9], max_new_tokens=4, sampling=FREE).token_ids
    assert bad.send(token_ids=[9], max_new_tokens=4, sampling=FREE).token_ids == expected


def test_a_fault_in_the_grammar_ends_the_constrained_turn_only():
    e = small_engine()
    plain = e.submit(e.open(), token_ids=[40] * 9, max_new_tokens=30, sampling=FREE)
    call = e.submit(e.open(), token_ids=[41] * 9, max_new_tokens=99, tools=[TOOL], tool_choice="required")
    whole, calls = Constraint.advance, itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Constraint, "advance", lambda self, token: 1 / 0 if next(calls) == 4 else whole(self, token))
        e.run()
    e.check()
    assert isinstance(call.error, ZeroDivisionError) and plain.turn
    turn = call.session.send(token_ids=[41] * 9, max_new_tokens=99, tools=[TOOL], tool_choice="required")
    assert turn.tool_calls[0].name == "look"


PLACES = {
    "while a turn begins": (PrefixCache, "begin", 1),
    "while it waits": (Scheduler, "submit", 1),
    "between choosing and publishing": (PrefixCache, "publish", 4),
    "while a page changes hands": (PageTable, "borrow", 2),
    "in the model": (Model, "forward", 3),
    "while a turn ends": (PrefixCache, "end", 1),
    "while pages are evicted": (RadixTree, "trim", 1),
    "in settling": (Scheduler, "finish_step", 3),
}


@pytest.fixture
def ctrl_c():
    """Whoever starts the tests in the background may have switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("how", ["send", "stream", "run"])
@pytest.mark.parametrize("where", PLACES)
def test_ctrl_c_never_leaves_bookkeeping_half_way(where, how, monkeypatch):
    e = engine(num_pages=14)
    e.open().send(token_ids=[9] * 20, max_new_tokens=8, sampling=FREE)  # something to evict
    session = e.open()
    session.send(token_ids=[5] * 5, max_new_tokens=3, sampling=FREE)
    before = session.token_ids
    cls, name, number = PLACES[where]
    whole, calls = getattr(cls, name), itertools.count(1)

    def pressed(*args, **options):
        if next(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return whole(*args, **options)

    ask = {"token_ids": [6] * 9, "max_new_tokens": 20, "sampling": FREE}
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(cls, name, pressed)
        if how == "run":
            e.submit(session, **ask)
            e.run()
        else:
            list(getattr(session, how)(**ask))
    assert next(calls) > number, "it was pressed"
    e.check()
    expected = engine().open().send(token_ids=[*before, *[6] * 9], max_new_tokens=20, sampling=FREE).token_ids
    if how != "run" and len(session.token_ids) == len(before):
        assert session.token_ids == before and not session.running
        assert session.send(**ask).token_ids == expected
    e.run()  # turns that nobody has given up go on
    if len(session.token_ids) > len(before):
        assert tuple(session.token_ids[len(before) + 9 :]) == expected
    e.check()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_pressed_twice_is_heard_at_once():
    with pytest.raises(KeyboardInterrupt), interrupted_later():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second was not heard")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [5, 20, 40, 60, 80])
def test_a_fault_while_drafts_are_checked_does_not_overdraw_the_ledger(number):
    """What the grammar forces is sure to save passes, so it may be drafted on no allowance; unless the turn fails."""
    dear = CostTable((1, 64), (0, 10000), ((1.0, 40.0), (1.0, 40.0)))
    e = small_engine(speculation=Speculation(dear))
    session = e.open()
    with faults(e, nth("sampling", number)), pytest.raises(InjectedFault):
        handle = e.submit(session, token_ids=[41] * 9, max_new_tokens=99, tools=[TOOL], tool_choice="required")
        while not handle.done:
            e.step()
            e.check()
        raise handle.error
    e.check()
    assert session.send(token_ids=[41] * 9, max_new_tokens=99, tools=[TOOL], tool_choice="required").stats.accepted


@pytest.mark.parametrize("number", [1, 2])
def test_a_session_whose_file_cannot_be_written_or_read_is_as_before(number, tmp_path):
    e = engine()
    session = e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=3, sampling=FREE)
    before, path = session.token_ids, tmp_path / "session"
    with faults(e, nth("file", number)), pytest.raises(InjectedFault):
        session.save(path)
        e.load(path)
    e.check()
    assert session.token_ids == before and [*tmp_path.iterdir()] == ([] if number == 1 else [path])
    session.save(path)
    assert e.load(path).token_ids == before


def test_when_nobody_has_a_page_the_last_turn_says_so_and_the_engine_goes_on():
    e = engine()
    handle = e.submit(e.open(), token_ids=[5] * 9, max_new_tokens=3, sampling=FREE)
    with faults(e, lambda seam: seam == "allocation"):
        assert e.run() == [handle]
    assert isinstance(handle.error, OutOfPages)
    e.check()
    assert handle.session.send(token_ids=[5] * 9, max_new_tokens=3, sampling=FREE).token_ids == alone([5] * 9, 3)
