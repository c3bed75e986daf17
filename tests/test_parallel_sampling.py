"""Several answers to one prompt: forks in one batch, on K/V that is computed once; their session stays as it is."""

import pytest
from tiny import engine

from minstate import BadMessage, BadValue, OutOfPages, Sampling, SessionBusy, SessionClosed, choices
from minstate.lab.engines.baselines import NaiveEngine

NOISY = Sampling(temperature=1.5, seed=3, ignore_eos=True)
SYSTEM = [{"role": "system", "content": "Be brief, and say so."}]


def begun(e):
    session = e.open(SYSTEM)
    session.send("hi", max_new_tokens=5, sampling=NOISY)
    return session


def state(session):
    return session.token_ids, session.messages, session.forks, session.resident, session.running


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("budget", [7, 512])
def test_the_prompt_is_prefilled_once(page_size, budget):
    e, n = engine(num_pages=1600 // page_size, page_size=page_size, token_budget=budget, positions=2000), 4
    session = begun(e)
    answers = choices(session, "a question of some length, " * 9, n=n, max_new_tokens=6, sampling=NOISY)
    e.check()
    delta, prefilled = answers[0][1].stats.delta, [turn.stats.prefilled for _, turn in answers]
    assert delta > 250 and {turn.stats.delta for _, turn in answers} == {delta}
    assert max(prefilled) == delta and sum(prefilled) <= delta + (n - 1) * page_size, "the rest fills no page"


def test_answers_are_those_of_forks_and_go_on_by_themselves():
    e, twin = engine(num_pages=300, positions=2000), engine(NaiveEngine, num_pages=300, positions=2000)
    session, other = begun(e), begun(twin)
    before = state(session)
    answers = choices(session, "which?", n=3, max_new_tokens=9, sampling=NOISY)
    e.check()
    assert state(session)[:2] == before[:2] and not session.running
    assert len({turn.token_ids for _, turn in answers}) == 3, "they draw different noise"
    for fork, turn in answers:
        fresh = other.fork()
        assert fresh.send("which?", max_new_tokens=9, sampling=NOISY).token_ids == turn.token_ids
        again = [each.send("go on", max_new_tokens=4, sampling=NOISY).token_ids for each in (fork, fresh)]
        assert again[0] == again[1] and fork.token_ids == fresh.token_ids
    e.check()
    assert choices(session, token_ids=iter([5, 6]), max_new_tokens=2, n=2)[0][1].stats.delta > 2, "ids are read once"


def test_greedy_answers_are_all_the_same():
    answers = choices(begun(engine()), "which?", n=3, max_new_tokens=5, sampling=Sampling(ignore_eos=True))
    assert len({turn.token_ids for _, turn in answers}) == 1


@pytest.mark.parametrize("step", [0, 1, 3])
def test_an_interrupt_leaves_no_fork_behind(step, monkeypatch):
    e = engine(token_budget=16)
    session = begun(e)
    before, original, steps = state(session), e.step, iter(range(99))

    def interrupted():
        if next(steps) == step:
            raise KeyboardInterrupt
        return original()

    open_before = len(e._sessions)
    with monkeypatch.context() as patch:
        patch.setattr(e, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            choices(session, "which?", n=3, max_new_tokens=20, sampling=NOISY)
    e.check()
    assert state(session) == before and not e.scheduler.requests
    assert [each for each in e._sessions if not each.closed] == [session] and len(e._sessions) >= open_before
    expected = begun(engine()).fork().send("which?", max_new_tokens=5, sampling=NOISY).token_ids
    assert session.fork().send("which?", max_new_tokens=5, sampling=NOISY).token_ids == expected, "and the same noise"


def test_what_a_turn_refuses_leaves_no_fork_behind():
    e = engine(num_pages=40)
    session = begun(e)
    before = state(session)
    for error, asked in [
        (BadValue, {"messages": "hi", "n": 0}),
        (BadValue, {"messages": "hi", "n": True}),
        (BadMessage, {"messages": None}),
        (BadMessage, {"token_ids": 5}),
        (BadMessage, {"token_ids": [999]}),
        (TypeError, {"messages": "hi", "max_tokens": 5}),
        (OutOfPages, {"token_ids": [5] * 90, "max_new_tokens": 60}),
    ]:
        with pytest.raises(error):
            choices(session, **asked)
        e.check()
        assert state(session) == before
        assert [each for each in e._sessions if not each.closed] == [session]


def test_a_failure_of_one_answer_is_raised_and_ends_the_others(monkeypatch):
    e, failed = engine(), []
    session = begun(e)
    before, process = state(session), e.core.output.process

    def failing(request, *args):
        if request.session.lineage == (2,) and len(request.generated) == 3:
            failed.append(request)
            raise ZeroDivisionError
        return process(request, *args)

    monkeypatch.setattr(e.core.output, "process", failing)
    with pytest.raises(ZeroDivisionError):
        choices(session, "which?", n=3, max_new_tokens=9, sampling=NOISY)
    e.check()
    assert len(failed) == 1 and state(session) == before
    assert [each for each in e._sessions if not each.closed] == [session]


def test_a_busy_or_closed_session_has_no_answers():
    e = engine()
    session = begun(e)
    request = e.submit(session, "hi", max_new_tokens=3)
    with pytest.raises(SessionBusy):
        choices(session, "hi", n=2)
    e.run()
    assert request.turn
    session.close()
    with pytest.raises(SessionClosed):
        choices(session, "hi", n=2)
    e.check()
