"""The engine: what a batch holds, what a step costs, and that many turns at any moment do each other no harm."""

import contextlib
import copy
import threading
from typing import ClassVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny import IDS, SAMPLINGS, engine

from minstate import (
    ContextOverflow,
    EngineMisuse,
    OutOfPages,
    Sampling,
    SessionBusy,
)
from minstate.guard import Guard
from minstate.lab.engines.baselines import NaiveEngine

LIKE_IT = {"max_new_tokens": 3, "sampling": Sampling(ignore_eos=True)}
SIMILAR = st.lists(st.integers(3, 4), min_size=1, max_size=20)  # so that prefixes have much in common


def test_a_prompt_longer_than_the_budget_is_prefilled_in_chunks():
    turn = engine(token_budget=8).open().send(token_ids=[7] * 30, max_new_tokens=1)
    assert (turn.stats.steps, turn.stats.forwarded) == (4, 30)


def test_a_long_prefill_does_not_stall_a_running_answer():
    e = engine(token_budget=8)
    reader, newcomer = e.open(), e.open()
    greedy = Sampling(ignore_eos=True)
    alone = engine().open().send(token_ids=[9, 8], max_new_tokens=10, sampling=greedy)
    reading = e.submit(reader, token_ids=[9, 8], max_new_tokens=10, sampling=greedy)
    e.step()
    filling = e.submit(newcomer, token_ids=[7] * 60, max_new_tokens=2, sampling=greedy)
    while not filling.tokens:
        had = len(reading.tokens)
        e.step()
        assert len(reading.tokens) == had + 1 or reading.done
        e.pool.allocator.check(s.sequence.table.pages for s in (reader, newcomer))
    assert e.run() and filling.done and reading.done
    assert reading.turn.token_ids == alone.token_ids, "whoever else is in the batch"


def test_decodes_go_first_and_a_batch_keeps_to_its_budget(monkeypatch):
    e, sizes = engine(token_budget=8), []
    forward = e.model.forward

    def counted(batch, attend):
        sizes.append(len(batch.token_ids))
        return forward(batch, attend)

    monkeypatch.setattr(e.model, "forward", counted)
    sessions = [e.open() for _ in range(3)]
    greedy = Sampling(ignore_eos=True)
    filling = e.submit(sessions[0], token_ids=[7] * 90, max_new_tokens=2, sampling=greedy)
    reading = e.submit(sessions[1], token_ids=[9], max_new_tokens=9, sampling=greedy)
    e.submit(sessions[2], token_ids=[5] * 20, max_new_tokens=2, sampling=greedy)
    while not reading.done:
        had = len(reading.tokens)
        e.step()
        assert len(reading.tokens) == had + 1, "one token of the budget is enough for whoever decodes"
    assert not filling.tokens
    e.run()
    assert max(sizes) == 8


def test_costs_are_what_one_counts_by_hand():
    e = engine(token_budget=4)
    config = e.model.config
    stats = e.open().send(token_ids=[7] * 10, max_new_tokens=3, sampling=Sampling(ignore_eos=True)).stats
    passes = [(4, 4, 0), (4, 8, 0), (2, 10, 1), (1, 11, 1), (1, 12, 1)]  # query tokens, context, logit rows
    assert stats.steps == len(passes) and stats.forwarded == 12
    assert stats.flops == sum(config.flops(*each) for each in passes)
    assert stats.kv_bytes_read == sum(context for _, context, _ in passes) * config.kv_bytes_per_token(e.model.dtype)
    assert 0 < stats.ttft_s < stats.total_s and stats.decode_s > 0


def test_the_last_position_and_the_last_page_can_be_used():
    exact = engine(num_pages=64, page_size=4).open()  # the model has 256 positions
    with pytest.raises(ContextOverflow):
        exact.send(token_ids=[5] * 250, max_new_tokens=7)
    assert exact.send(token_ids=[5] * 250, max_new_tokens=6).stats.prefilled == 250
    tight = engine(num_pages=3, page_size=4).open()
    assert tight.send(token_ids=[5] * 10, max_new_tokens=3, sampling=Sampling(ignore_eos=True)).stats.generated == 3


def test_promised_pages_shrink_as_a_turn_goes_on():
    e = engine(num_pages=10)
    greedy = Sampling(ignore_eos=True)
    running = e.submit(e.open(), token_ids=[5], max_new_tokens=24, sampling=greedy)
    for _ in range(20):
        e.step()
    assert e.scheduler.pages_soon(running, running.sequence.kv_len) == 1
    e.submit(e.open(), token_ids=[6], max_new_tokens=16, sampling=greedy)
    e.run()
    e.check()


def test_an_interrupt_between_steps_aborts_the_turn(monkeypatch):
    session = engine().open()

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.send(token_ids=[5], max_new_tokens=2)
    assert not session.running and session.token_ids == []
    session.engine.check()


def test_a_turn_waits_until_there_is_room_for_it():
    e = engine(num_pages=10)  # 40 tokens
    first, second = e.open(), e.open()
    running = e.submit(first, token_ids=[5], max_new_tokens=25, sampling=Sampling(ignore_eos=True))
    waiting = e.submit(second, token_ids=[6], max_new_tokens=25, sampling=Sampling(ignore_eos=True))
    assert e.scheduler.waiting == [waiting]
    e.run()
    assert running.turn.stats.generated == waiting.turn.stats.generated == 25
    assert waiting.preempted == running.preempted == 0
    e.check()


def test_an_exception_in_a_step_aborts_its_turns_and_no_more(monkeypatch):
    e = engine()
    session, other = e.open(), e.open()
    session.send("hi", max_new_tokens=3)
    before = session.token_ids
    neighbour = e.submit(other, token_ids=[5], max_new_tokens=3)

    def broken(*_):
        raise RuntimeError("the model fell over")

    with monkeypatch.context() as patch:
        patch.setattr(e.model, "forward", broken)
        with pytest.raises(RuntimeError, match="fell over"):
            session.send("more", max_new_tokens=9)
    e.check()
    assert session.token_ids == before and not session.running and neighbour.aborted and not other.running
    stats = session.send("more", max_new_tokens=2).stats
    assert stats.prefilled == stats.delta


def test_closing_a_busy_session_aborts_its_turn():
    e = engine()
    session = e.open()
    handle = e.submit(session, token_ids=[5], max_new_tokens=9)
    e.step()
    session.close()
    assert handle.aborted and e.run() == []
    e.check()


def test_a_second_thread_is_refused():
    session, errors = engine().open(), []

    def intrude():
        try:
            session.send(token_ids=[5])
        except EngineMisuse as error:
            errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert len(errors) == 1


class Watched(Guard):
    """Knows which threads have written into it."""

    writers: ClassVar[set[threading.Thread]] = set()

    def __setattr__(self, name, value):
        self.writers.add(threading.current_thread())
        super().__setattr__(name, value)


@pytest.mark.parametrize("inside_a_step", [False, True])
@pytest.mark.parametrize("call", ["open", "submit", "send", "stream", "fork", "abort", "close", "take_back"])
def test_another_thread_adds_no_turn_and_leaves_everything_whole(call, inside_a_step, monkeypatch):
    e = engine()
    e.guard = Watched()
    busy, idle, forward = e.open(), e.open(), e.model.forward
    idle.send("hi", max_new_tokens=2)
    log, errors = idle.token_ids, []
    request = e.submit(busy, token_ids=[5], max_new_tokens=3, sampling=Sampling(ignore_eos=True))
    calls = {
        "open": lambda: e.open("hi"),
        "submit": lambda: e.submit(idle, "more"),
        "send": lambda: idle.send("more"),
        "stream": lambda: idle.stream("more"),
        "fork": idle.fork,
        "abort": request.abort,
        "close": idle.close,
        "take_back": idle.take_back,
    }

    def intrude():
        try:
            calls[call]()
        except EngineMisuse as error:
            errors.append(str(error))

    def from_another_thread():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()

    def interrupted(*args):
        from_another_thread()
        return forward(*args)

    with monkeypatch.context() as patch:
        Watched.writers.clear()
        if inside_a_step:
            patch.setattr(e.model, "forward", interrupted)
        else:
            from_another_thread()
        e.step()
    assert set(errors) == {"an engine belongs to the thread that made it: make one in this thread"}
    assert Watched.writers == {threading.current_thread()} and not e.guard.entered and not e.guard.in_step
    e.check()
    e.run()
    assert request.turn.token_ids == engine().open().send(token_ids=[5], **LIKE_IT).token_ids
    assert idle.token_ids == log and not idle.closed and not idle.running
    assert e.submit(idle, "more", max_new_tokens=1) and e.run()
    e.check()


def test_entering_an_engine_from_its_own_step_is_refused(monkeypatch):
    e = engine()
    session, forward = e.open(), e.model.forward

    def reenter(*args):
        with pytest.raises(EngineMisuse, match="middle of a step"):
            e.step()
        return forward(*args)

    monkeypatch.setattr(e.model, "forward", reenter)
    assert session.send(token_ids=[5], max_new_tokens=2).stats.generated == 2


class Conversations(RuleBasedStateMachine):
    """Sessions of one engine, doing anything at any moment while pages run short, against plain lists of tokens.

    Every answer is compared with a fresh naive engine's. Freed pages hold NaN, so whatever is read that should not be
    changes an answer.
    """

    @initialize(
        num_pages=st.integers(1, 40),
        budget=st.integers(1, 24),
        page_size=st.integers(1, 5),
        prefix_cache=st.sampled_from([True, True, False]),
    )
    def start(self, num_pages, budget, page_size, prefix_cache):
        self.engine = engine(num_pages=num_pages, token_budget=budget, page_size=page_size, prefix_cache=prefix_cache)
        self.engine.core.runner.model = copy.copy(self.engine.model)
        self.sessions, self.logs, self.marks, self.handles, self.before = [], {}, {}, {}, {}
        self.open("A")

    def pick(self, data, sessions=None):
        return data.draw(st.sampled_from(sessions or self.sessions))

    def pick_idle(self, data):
        idle = [session for session in self.sessions if session not in self.handles]
        return self.pick(data, idle) if idle else None

    def adopt(self, session, log):
        self.sessions.append(session)
        self.logs[session], self.marks[session] = log, []

    @precondition(lambda self: len(self.sessions) < 5)
    @rule(tenant=st.sampled_from("AAB"))
    def open(self, tenant):
        self.adopt(self.engine.open(tenant=tenant), [])

    @precondition(lambda self: len(self.sessions) < 5)
    @rule(data=st.data())
    def fork(self, data):
        if parent := self.pick_idle(data):
            free = self.engine.pool.allocator.num_free
            self.adopt(parent.fork(), list(self.logs[parent]))
            assert self.engine.pool.allocator.num_free >= free, "a fork takes no page"

    @rule(
        data=st.data(),
        ids=st.one_of(IDS, SIMILAR),
        limit=st.integers(1, 8),
        sampling=SAMPLINGS,
        replay=st.one_of(st.none(), st.none(), SIMILAR),
    )
    def submit(self, data, ids, limit, sampling, replay):
        session, limit = self.pick(data), len(replay) if replay else limit
        options = {"max_new_tokens": limit, "sampling": sampling, "replay": replay}
        try:
            handle = self.engine.submit(session, token_ids=ids, **options)
        except SessionBusy:
            assert session in self.handles
        except ContextOverflow:
            assert len(self.logs[session]) + len(ids) + limit > 256
        except OutOfPages:
            pages = -(-(len(self.logs[session]) + len(ids) + limit - 1) // self.engine.pool.page_size)
            assert pages > self.engine.pool.allocator.num_pages, "only what can never fit is refused"
        else:
            self.handles[session] = (handle, ids)
            self.before.pop(session, None)

    @rule(steps=st.integers(1, 6))
    def step(self, steps):
        for _ in range(steps):
            for handle in self.engine.step():
                _, ids = self.handles.pop(handle.session)
                log, turn, request = self.logs[handle.session], handle.turn, handle
                self.before[handle.session] = list(log)
                if request.options.replay:
                    assert turn.token_ids == request.options.replay
                    log += [*ids, *turn.token_ids]
                    continue
                options = {"max_new_tokens": request.options.max_new_tokens, "sampling": request.options.sampling}
                afresh = engine(NaiveEngine, num_pages=80).open().send(token_ids=log + ids, **options)
                assert turn.token_ids == afresh.token_ids, "whatever happened before, and whoever else is in the batch"
                stats = turn.stats
                again = stats.forwarded - (stats.generated - 1) - stats.prefilled
                assert again >= 0 if request.preempted else again == 0
                log += [*ids, *turn.token_ids]

    @precondition(lambda self: self.handles)
    @rule(when=st.sampled_from(["before", "half-way", "after", "choosing"]))
    def fail(self, when):
        """The next pass fails, whatever it has written by then."""
        forward = type(self.engine.model).forward

        def broken(batch, attend):
            if when == "half-way":
                attend(0, *(torch.zeros(len(batch.token_ids), heads, 8, dtype=torch.float64) for heads in (4, 2, 2)))
            elif when != "before":
                logits = forward(self.engine.model, batch, attend)
            if when == "choosing":
                return logits[:-1]
            raise ZeroDivisionError

        self.engine.model.forward = broken
        with contextlib.suppress(ZeroDivisionError, IndexError):
            self.engine.step()
        del self.engine.model.forward
        finished = [session for session, (handle, _) in self.handles.items() if handle.turn]
        for session in finished:  # before its neighbour failed
            handle, ids = self.handles.pop(session)
            self.before[session] = list(self.logs[session])
            self.logs[session] += [*ids, *handle.turn.token_ids]
        self.handles = {session: running for session, running in self.handles.items() if not running[0].aborted}

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def abort(self, data):
        session = self.pick(data, list(self.handles))
        self.handles.pop(session)[0].abort()

    @rule(data=st.data())
    def mark(self, data):
        if session := self.pick_idle(data):
            self.marks[session].append((session.mark(), list(self.logs[session])))

    @rule(data=st.data())
    def rollback(self, data):
        session = self.pick_idle(data)
        if session and self.marks[session]:
            at = data.draw(st.integers(0, len(self.marks[session]) - 1))
            mark, log = self.marks[session][at]
            session.rollback(mark)
            self.logs[session] = list(log)
            self.before.pop(session, None)
            del self.marks[session][at + 1 :]

    @rule(data=st.data())
    def take_back(self, data):
        session = self.pick_idle(data)
        if session and session in self.before:
            session.take_back()
            self.logs[session] = self.before.pop(session)
            self.marks[session] = [each for each in self.marks[session] if each[0] in session.marks]
            assert all(len(log) <= len(self.logs[session]) for _, log in self.marks[session])

    @rule(count=st.integers(1, 12))
    def evict(self, count):
        free, available = self.engine.pool.allocator.num_free, self.engine.cache.num_available
        self.engine.cache.make_room(count)
        assert self.engine.pool.allocator.num_free == min(free + count, available)

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(data=st.data())
    def close(self, data):
        session = self.pick(data)
        session.close()
        self.handles.pop(session, None)
        self.sessions.remove(session)

    @invariant()
    def nothing_is_lost(self):
        self.engine.check()
        for session in self.sessions:
            if session not in self.handles:
                assert session.token_ids == self.logs[session]

    def teardown(self):
        for session in self.sessions:
            session.close()
        self.engine.check()
        allocator = self.engine.pool.allocator
        assert self.engine.cache.num_available == allocator.num_pages
        if not self.engine.prefix_cache:
            assert allocator.num_free == allocator.num_pages


TestConversations = Conversations.TestCase
TestConversations.settings = settings(stateful_step_count=50, max_examples=10 * settings.default.max_examples)
