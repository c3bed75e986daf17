"""An exception at any call of the core: afterwards the engine goes on rightly, or it refuses to go on."""

import gc
import tempfile
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random

import pytest
from tiny import FLAT

from minstate import EngineBroken, Sampling, Speculation, scheduler
from minstate.lab.engines.baselines import NaiveEngine
from minstate.lab.engines.interruptions import interrupting, recording
from minstate.lab.engines.small_engine import poison, small_engine
from minstate.signing import user_key

FREE = Sampling(ignore_eos=True)
SYSTEM = {"role": "system", "content": "be"}


class Play:
    """A few sessions on few pages. Each method below is one act, which is one to four calls of the engine."""

    def __init__(self):
        self.engine = small_engine(num_pages=14, speculation=Speculation(FLAT))
        poison(self.engine)
        self.engine.__dict__["chat"] = chat()  # made once for all plays
        self.engine.core.output.know(chat())
        self.sessions, self.marks = {}, {}

    def ask(self, name, ids, count):
        return self.engine.submit(self.sessions[name], token_ids=ids, max_new_tokens=count, sampling=FREE)

    def open(self):
        self.sessions |= {"ids": self.engine.open(), "messages": self.engine.open([SYSTEM])}

    def send(self):
        self.sessions["ids"].send(token_ids=[50, 51] * 4, max_new_tokens=4, sampling=FREE)

    def message(self):
        self.sessions["messages"].send("hi", max_new_tokens=2, sampling=FREE)

    def mark_and_fork(self):
        self.marks["ids"] = self.sessions["ids"].mark()
        self.sessions["fork"] = self.sessions["ids"].fork()

    def rollback(self):
        self.sessions["ids"].rollback(self.marks["ids"])

    def expect(self):
        self.sessions["fork"].expect(5.0)

    def sync(self):
        self.sessions["messages"].sync([SYSTEM, {"role": "user", "content": "ho"}])

    def abort(self):
        request = self.ask("ids", [56] * 5, 9)
        self.engine.step()
        request.abort()

    def answer(self):
        self.sessions["messages"].send([], max_new_tokens=2, sampling=FREE)

    def save(self):
        self.sessions["fork"].save(path())

    def load(self):
        self.sessions["loaded"] = self.engine.load(path())

    def close(self):
        self.sessions.pop("loaded").close()

    def two_turns_one_of_which_is_preempted(self):
        self.ask("ids", [52, 53, 54], 24)
        self.ask("fork", [52, 53, 55], 30)
        self.engine.run()


FORKED, SYNCED = ["open", "send", "mark_and_fork"], ["open", "message", "sync"]
ACTS = {  # each with the acts that it needs before it
    "open": [], "send": ["open"], "message": ["open"], "mark_and_fork": ["open", "send"], "rollback": FORKED,
    "expect": FORKED, "sync": ["open", "message"], "abort": ["open", "send"], "answer": SYNCED, "save": FORKED,
    "load": [*FORKED, "save"], "close": [*FORKED, "save", "load"], "two_turns_one_of_which_is_preempted": FORKED,
}  # fmt: skip


@cache
def chat():
    return small_engine().chat


@cache
def path():
    return Path(tempfile.mkdtemp(prefix="minstate-")) / "session"


@cache
def naive(ids):
    return small_engine(NaiveEngine).open().send(token_ids=ids, max_new_tokens=2, sampling=FREE).token_ids


def states(play):
    seen = {}
    for name, session in play.sessions.items():
        known = session.transcript
        seen[name] = session.token_ids, known.messages, known.in_log, known.reply_start, session.closed
    return seen


def played(acts):
    play = Play()
    for act in acts:
        getattr(play, act)()
    return play


@cache
def script():
    """For each act: sites, mostly those that no earlier act has, their counts, and the sessions before and after."""
    user_key()  # which is made once for a process
    known, acts, seen = set(), {}, set()
    for act, needed in ACTS.items():
        play = played(needed)
        before = states(play)
        with recording() as sites:
            getattr(play, act)()
        again = {*sorted(known.intersection(sites))[::40]}  # a sample: what came before differs
        acts[act] = Counter(site for site in sites if site not in known or site in again), before, states(play)
        known.update(sites)
        seen |= {event.what for event in play.engine.scheduler.timeline}
    assert seen >= {"preempt", "admit", "wait"}
    return acts


def verdict(play, before, after):
    """Whether the engine is "whole" or "refuses"; anything else is an AssertionError."""
    engine = play.engine
    try:
        for session in play.sessions.values():
            session.abort_turn()
        engine.check()
    except EngineBroken:
        for use in [engine.check, engine.open, engine.step, *(each.close for each in play.sessions.values())]:
            with pytest.raises(EngineBroken, match="make a new engine"):
                use()
        return "refuses"
    for name, state in states(play).items():
        assert state in (before.get(name), after.get(name)), f"{name} is neither as before nor as after"
    for session in [each for each in play.sessions.values() if not each.closed]:
        log = session.token_ids
        answer = session.send(token_ids=[50, 51], max_new_tokens=2, sampling=FREE).token_ids
        assert session.token_ids[: len(log)] == log and answer == naive(tuple(session.token_ids[:-2]))
        engine.check()
    for session in play.sessions.values():
        session.close()
    engine.cache.make_room(engine.pool.allocator.num_pages)
    engine.check()
    assert engine.pool.allocator.num_free == engine.pool.allocator.num_pages
    return "whole"


@pytest.fixture(autouse=True)
def pages_run_out(monkeypatch):
    """Turns are admitted without room to grow, so that one is preempted."""
    monkeypatch.setattr(scheduler, "GROWTH", 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some calls are in destructors
@pytest.mark.parametrize("act", ACTS)
def test_after_an_exception_at_any_call_an_engine_goes_on_rightly_or_not_at_all(act):
    sites, before, after = script()[act]
    draw, verdicts = Random(act), Counter()
    for site, occurrences in sites.items():
        play = played(ACTS[act])
        error = KeyboardInterrupt("for the test") if site.after else MemoryError("for the test")
        with interrupting(site, draw.randrange(occurrences), error) as hits:
            try:
                getattr(play, act)()
            except (KeyboardInterrupt, MemoryError) as raised:
                assert raised is error
        if hits:
            verdicts[verdict(play, before, after)] += 1
    assert verdicts.total() > 0.8 * len(sites), "a site that is listed is found again"


def test_most_exceptions_do_not_break_the_engine():
    sites, before, after = script()["send"]
    whole = [site for site in list(sites)[::7] if survives(site, before, after)]
    assert len(whole) > 0.6 * len(list(sites)[::7])


def survives(site, before, after):
    play = played(["open"])
    with interrupting(site, 0, MemoryError("for the test")), suppress(MemoryError):
        play.send()
    return verdict(play, before, after) == "whole"


def test_a_turn_that_could_not_be_queued_leaves_its_session_idle_and_as_before(monkeypatch):
    e = small_engine()
    session = e.open()
    session.send(token_ids=[50] * 9, max_new_tokens=3, sampling=FREE)
    before = session.token_ids

    def fails(*_):
        raise MemoryError("for the test")

    for place, name in [(e.scheduler, "_wait"), (e.scheduler, "_admit"), (e.scheduler, "submit")]:
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(place, name, fails)
            e.submit(session, token_ids=[51], max_new_tokens=3, sampling=FREE)
        assert not session.running and session.token_ids == before
        e.check()
    assert session.send(token_ids=[51], max_new_tokens=2, sampling=FREE).token_ids == naive((*before, 51))


def test_a_broken_engine_says_what_has_broken_it(monkeypatch):
    e = small_engine()
    session = e.open()
    with monkeypatch.context() as patch:
        patch.setattr(e.cache.tree, "unlock", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.send(token_ids=[50] * 9, max_new_tokens=3, sampling=FREE)
    with pytest.raises(EngineBroken, match=r"ZeroDivisionError has left .* make a new engine"):
        session.send(token_ids=[50], max_new_tokens=3)
    with pytest.raises(EngineBroken, match="cannot be saved"):
        session.save(path())
    assert session.token_ids[:9] in ([], [50] * 9)


def test_a_session_that_another_thread_drops_during_a_recount_breaks_nothing():
    e = small_engine()
    sessions = [e.open()]
    sessions[0].send(token_ids=[5] * 40, max_new_tokens=2)

    class Forgotten(list):
        def __bool__(self):  # the last note was taken, and then the last reference goes
            here = len(self) > 0
            if not here and sessions:
                self.append(sessions.pop().sequence)
                gc.collect()
            return here

    sessions[0]._open.detach()
    e.guard.forgotten, e.guard.suspect = Forgotten(), "ValueError"
    e.check()
    assert len(e.guard.open) == 1
    e.check()
    assert not e.guard.open and not e.guard.suspect
