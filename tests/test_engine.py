"""The engine: what a batch holds, what a step costs, and that many turns at any moment do each other no harm."""

import contextlib
import threading

import pytest
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
from minstate.lab.baseline import NaiveEngine


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
    assert running.request.pages_to_come == 1
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


def test_pages_promised_to_running_turns_are_not_given_to_others():
    e = engine(num_pages=10)  # 40 tokens
    first, second = e.open(), e.open()
    running = e.submit(first, token_ids=[5], max_new_tokens=25, sampling=Sampling(ignore_eos=True))
    with pytest.raises(OutOfPages, match="promised to running turns"):
        e.submit(second, token_ids=[5], max_new_tokens=25)
    e.submit(second, token_ids=[6], max_new_tokens=12, sampling=Sampling(ignore_eos=True))
    e.run()
    assert running.turn.stats.generated == 25
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
    """Many sessions of one engine, stepped, aborted, rolled back and closed at any moment, against plain lists."""

    @initialize(num_pages=st.integers(4, 40), budget=st.integers(1, 24))
    def start(self, num_pages, budget):
        self.engine = engine(num_pages=num_pages, token_budget=budget)
        self.sessions, self.logs, self.marks, self.handles = [], {}, {}, {}
        self.open()

    def pick(self, data, sessions=None):
        return data.draw(st.sampled_from(sessions or self.sessions))

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def open(self):
        session = self.engine.open()
        self.sessions.append(session)
        self.logs[session], self.marks[session] = [], []

    @rule(data=st.data(), ids=IDS, limit=st.integers(1, 8), sampling=SAMPLINGS)
    def submit(self, data, ids, limit, sampling):
        session = self.pick(data)
        with contextlib.suppress(SessionBusy, OutOfPages, ContextOverflow):
            handle = self.engine.submit(session, token_ids=ids, max_new_tokens=limit, sampling=sampling)
            self.handles[session] = (handle, ids)

    @rule(steps=st.integers(1, 6))
    def step(self, steps):
        for _ in range(steps):
            for handle in self.engine.step():
                _, ids = self.handles.pop(handle.session)
                log, turn = self.logs[handle.session], handle.turn
                request = handle.request
                afresh = (
                    engine(NaiveEngine)
                    .open()
                    .send(token_ids=log + ids, max_new_tokens=request.max_new_tokens, sampling=request.sampling)
                )
                assert turn.token_ids == afresh.token_ids, "whatever happened before, and whoever else is in the batch"
                assert turn.stats.prefilled == turn.stats.delta
                log += [*ids, *turn.token_ids]

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def abort(self, data):
        session = self.pick(data, list(self.handles))
        self.handles.pop(session)[0].abort()

    @rule(data=st.data())
    def mark(self, data):
        session = self.pick(data)
        if session not in self.handles:
            self.marks[session].append((session.mark(), list(self.logs[session])))

    @rule(data=st.data())
    def rollback(self, data):
        session = self.pick(data)
        if session not in self.handles and self.marks[session]:
            at = data.draw(st.integers(0, len(self.marks[session]) - 1))
            mark, log = self.marks[session][at]
            session.rollback(mark)
            self.logs[session] = list(log)
            del self.marks[session][at + 1 :]

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
        assert self.engine.pool.allocator.num_free == self.engine.pool.allocator.num_pages


TestConversations = Conversations.TestCase


TestConversations.settings = settings(stateful_step_count=30)
