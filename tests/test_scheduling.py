"""Many turns on one engine: who waits, who runs, who is put back, and that it changes no output."""

import itertools
from random import Random

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import IDS, SAMPLINGS, engine

from minstate import BadValue, OutOfPages, Sampling, TurnTimeout, scheduler

FREE = Sampling(ignore_eos=True)


def alone(ids, count, sampling=FREE):
    """What a turn says that has an engine for itself."""
    return engine().open().send(token_ids=ids, max_new_tokens=count, sampling=sampling).token_ids


def run(e):
    """Step to the end; recount after every step."""
    finished = []
    while e.scheduler.running or e.scheduler.waiting:
        finished += e.step()
        e.check()
    return finished


def happened(e, handle):
    return [event.what for event in e.scheduler.timeline if event.request == handle.number]


def test_a_turn_waits_until_another_makes_room():
    e = engine(num_pages=12)
    first, second = (e.submit(e.open(), token_ids=[i] * 20, max_new_tokens=20, sampling=FREE) for i in (5, 6))
    assert e.scheduler.waiting == [second] and not second.session.resident
    assert run(e) == [first, second]
    for handle, i in [(first, 5), (second, 6)]:
        assert handle.turn.token_ids == alone([i] * 20, 20)


def test_what_can_never_fit_is_refused_and_what_fits_alone_runs():
    e = engine(num_pages=10)
    with pytest.raises(OutOfPages, match="needs 11 KV pages and the whole pool has 10"):
        e.open().send(token_ids=[5] * 35, max_new_tokens=7)
    session = e.open()
    assert session.send(token_ids=[5] * 35, max_new_tokens=6, sampling=FREE).stats.generated == 6
    assert e.open().send(token_ids=[6] * 35, max_new_tokens=6, sampling=FREE).stats.generated == 6, "idle ones give way"
    e.check()


def test_the_youngest_is_put_back_when_pages_run_out_and_says_the_same(monkeypatch):
    monkeypatch.setattr(scheduler, "GROWTH", 0)  # admit without looking ahead
    e = engine(num_pages=14)
    handles = [e.submit(e.open(), token_ids=[i] * 8, max_new_tokens=30, sampling=FREE) for i in (5, 6, 7)]
    run(e)
    assert handles[0].preempted == 0, "the oldest never is"
    assert sum(handle.preempted for handle in handles) > 0
    for handle, i in zip(handles, (5, 6, 7), strict=True):
        assert handle.turn.token_ids == alone([i] * 8, 30)
        assert handle.turn.stats.prefilled == handle.turn.stats.delta == 8


@given(
    asked=st.lists(st.tuples(IDS, st.integers(1, 30), SAMPLINGS), min_size=2, max_size=5),
    num_pages=st.integers(13, 30),
    budget=st.integers(1, 40),
    growth=st.sampled_from([0, 0, 64]),
    speculation=st.booleans(),
)
def test_pressure_changes_no_output(asked, num_pages, budget, growth, speculation):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "GROWTH", growth)
        e = engine(num_pages=num_pages, token_budget=budget, speculation=speculation)
        handles = [e.submit(e.open(), token_ids=i, max_new_tokens=n, sampling=s) for i, n, s in asked]
        run(e)
    for handle, (ids, count, sampling) in zip(handles, asked, strict=True):
        assert handle.turn.token_ids == alone(ids, count, sampling)
    for handle in handles:
        handle.session.close()
    e.check()
    assert e.cache.num_available == num_pages


def test_the_longest_known_prefix_is_admitted_first_but_nobody_starves():
    e = engine(num_pages=20)
    known = e.open()
    known.send(token_ids=[9] * 30, max_new_tokens=1, sampling=FREE)
    e.submit(e.open(), token_ids=[5] * 20, max_new_tokens=40, sampling=FREE)
    stranger = e.submit(e.open(), token_ids=[6] * 30, max_new_tokens=20, sampling=FREE)
    friend = e.submit(e.open(), token_ids=[9] * 30, max_new_tokens=20, sampling=FREE)
    assert e.scheduler.next_waiting() is friend
    stranger.waited = 1
    assert e.scheduler.next_waiting() is stranger
    run(e)


def test_somebody_who_waits_is_served_while_others_keep_coming():
    e = engine(num_pages=24)
    draw = Random(0)
    e.submit(e.open(), token_ids=[4] * 20, max_new_tokens=20, sampling=FREE)
    big = e.submit(e.open(), token_ids=[5] * 70, max_new_tokens=20, sampling=FREE)
    for step in itertools.count():
        if big.done:
            break
        assert step < 300, "it starves"
        if len(e.scheduler.waiting) < 4:
            e.submit(e.open(), token_ids=[draw.randrange(6, 200)] * 12, max_new_tokens=8, sampling=FREE)
        e.step()
        e.check()


def test_a_prompt_that_another_is_just_computing_is_not_computed_twice():
    e = engine(num_pages=64, token_budget=8)
    prompt = list(range(20, 60))
    first = e.submit(e.open(), token_ids=[*prompt, 5], max_new_tokens=3, sampling=FREE)
    second = e.submit(e.open(), token_ids=[*prompt, 6], max_new_tokens=3, sampling=FREE)
    other = e.submit(e.open(tenant="other"), token_ids=[*prompt, 6], max_new_tokens=3, sampling=FREE)
    run(e)
    assert (first.turn.stats.forwarded, second.turn.stats.forwarded) == (41 + 2, 1 + 2)
    assert other.turn.stats.forwarded == 41 + 2, "another tenant's is not its own"
    assert second.turn.token_ids == other.turn.token_ids == alone([*prompt, 6], 3)


def test_a_long_prompt_never_stalls_those_who_decode():
    e = engine(num_pages=64, token_budget=8)
    reading = e.submit(e.open(), token_ids=[5, 6], max_new_tokens=40, sampling=FREE)
    e.step()
    e.submit(e.open(), token_ids=[7] * 100, max_new_tokens=2, sampling=FREE)
    forwarded = []
    while not reading.done:
        before = len(reading.tokens)
        e.step()
        assert len(reading.tokens) == before + 1, "a token at every step"
        last = e.scheduler.steps - 1
        forwarded.append(sum(event.tokens + event.drafted for event in e.scheduler.timeline if event.step == last))
    assert max(forwarded) == 8, "and never more than the budget between two of them"


def test_the_same_requests_give_the_same_timeline():
    def timeline():
        e = engine(num_pages=16, token_budget=12, speculation=True)
        for i in range(5):
            e.submit(e.open(), token_ids=[5 + i % 2] * 12, max_new_tokens=12, sampling=FREE)
        run(e)
        return list(e.scheduler.timeline)

    assert timeline() == timeline()
    assert {"wait", "admit", "prefill", "decode", "end"} <= {event.what for event in timeline()}


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_a_late_turn_is_given_up_and_its_session_is_as_before(state):
    now = [0.0]
    e = engine(num_pages=12, clock=lambda: now[0])
    session = e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=3, sampling=FREE)
    before = session.token_ids
    if state == "waiting":
        e.submit(e.open(), token_ids=[6] * 9, max_new_tokens=30, sampling=FREE)
    late = e.submit(session, token_ids=[7] * 9, max_new_tokens=20, sampling=FREE, timeout_s=5.0)
    assert (late in e.scheduler.waiting) == (state == "waiting")
    e.step()
    now[0] = 6.0
    e.step()
    assert late.aborted and isinstance(late.error, TurnTimeout) and session.token_ids == before
    run(e)
    with pytest.raises(TurnTimeout):
        stream = session.stream(token_ids=[7], max_new_tokens=9, timeout_s=1.0)
        next(stream)
        now[0] = 9.0
        list(stream)
    e.check()
    assert session.send(token_ids=[7], max_new_tokens=2, sampling=FREE).stats.generated == 2


def test_eviction_prefers_those_who_are_not_expected_back():
    now = [0.0]
    e = engine(num_pages=20, clock=lambda: now[0])
    sessions = [e.open() for _ in range(3)]
    for i, session in enumerate(sessions):
        session.send(token_ids=[5 + i] * 20, max_new_tokens=1, sampling=FREE)
    soon, later, silent = sessions  # in the order of their last use
    soon.expect(1.0)
    later.expect(10.0)
    e.cache.make_room(5)
    e.check()
    assert (soon.resident, later.resident) == (20, 20) and silent.resident < 20
    e.cache.make_room(4)
    assert soon.resident == 20 and later.resident < 20, "then the one who is furthest from its turn"
    now[0] = 2.0
    silent.send(token_ids=[9] * 30, max_new_tokens=20, sampling=FREE)
    assert soon.resident < 20, "who did not come back when expected is as all others"
    e.check()


@pytest.mark.parametrize("seconds", [-1, float("nan"), "soon"])
def test_a_hint_is_a_number_of_seconds(seconds):
    with pytest.raises(BadValue, match="seconds"):
        engine().open().expect(seconds)


def test_a_hint_ends_with_the_next_turn_and_with_the_session():
    e = engine()
    session = e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=1)
    session.expect(100.0)
    session.send(token_ids=[5] * 9, max_new_tokens=1)
    assert not e.cache.expected_returns
    session.expect(100.0)
    session.close()
    assert not e.cache.expected_returns


def test_bookkeeping_grows_with_the_batch_and_not_with_idle_sessions():
    e = engine(num_pages=600)
    idle = [e.open() for _ in range(100)]
    for i, session in enumerate(idle):
        session.send(token_ids=[5 + i, 6, 7, 8, 9], max_new_tokens=1, sampling=FREE)
    e.submit(e.open(), token_ids=[4] * 20, max_new_tokens=20, sampling=FREE)
    visited = e.cache.tree.nodes_visited
    for _ in range(5):
        e.step()
    assert e.cache.tree.nodes_visited - visited < 10
    assert tiny.VOCABULARY > 105


@pytest.mark.parametrize("forked", [False, True])
def test_what_a_turn_would_find_does_not_depend_on_what_a_fork_has_put_behind_it(forked):
    e = engine(page_size=8)
    session = e.open()
    session.send(token_ids=range(20, 41), max_new_tokens=4, sampling=FREE)
    if forked:
        session.fork().send(token_ids=range(50, 130), max_new_tokens=4, sampling=FREE)
    assert e.cache.cached_tokens(session.sequence) == session.resident == 24
    e.check()


def test_what_is_computed_again_after_a_preemption_is_counted_apart():
    e = engine(num_pages=48, page_size=4, token_budget=2)
    first, second = e.open(), e.open()
    e.submit(first, token_ids=range(10, 20), max_new_tokens=150, sampling=FREE)
    for _ in range(5):
        e.step()
    handle = e.submit(second, token_ids=range(30, 130), max_new_tokens=10, sampling=FREE)
    e.run()
    stats = handle.turn.stats
    assert stats.preempted >= 1 and (stats.prefilled, stats.recomputed) == (100, 0)
    assert stats.forwarded > stats.prefilled + stats.generated - 1
