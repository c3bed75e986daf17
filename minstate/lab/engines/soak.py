"""A soak: thousands of random turns on few pages, with faults at every seam, against the same turns undisturbed.

A script of rounds is drawn from a seed. In a round some sessions take a turn side by side, and between two rounds
sessions fork, roll back, end, are said to come back soon, or move into a file and out again. A client whose turn fails
finds the session as it was before it, and asks again, until it has its answer; some change their minds half-way.

So the answers must be those of a run without faults and with plenty of pages, token by token; and once all sessions are
closed, every page must be free. Freed pages hold NaN, so that whoever reads one says nonsense.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from tqdm import tqdm

from minstate.costs import CostTable
from minstate.engine import Engine
from minstate.errors import OutOfPages
from minstate.lab.engines.faults import InjectedFault, faults
from minstate.lab.engines.small_engine import poison, small_engine
from minstate.sampling import Sampling
from minstate.session import Mark, Session
from minstate.speculation import Speculation
from minstate.turn import Handle

SESSIONS, LONGEST = 6, 150  # side by side; tokens of a log, beyond which a session is replaced by a new one
NUM_PAGES = 64  # of 4 tokens: enough for any one turn, and for a third of what six sessions may hold
RATES = {"allocation": 0.02, "forward": 0.02, "sampling": 0.004, "file": 0.5}  # share of calls that fail
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}}}
DRAFTS_ARE_CHEAP = CostTable((1, 64), (0, 10000), ((1.0, 1.01), (1.0, 1.01)))


@dataclass(frozen=True, eq=False)
class SoakTurn:
    """A turn to be taken by the session at `place`."""

    place: int
    token_ids: tuple[int, ...]
    options: dict
    regret: int | None  # steps after which the client changes its mind, and wants the session as it was


@dataclass(frozen=True)
class Round:
    """What happens to the session at `place`, if anything; then turns side by side."""

    happening: str
    place: int
    other: int  # whose session gives way to a fork
    asks: tuple[SoakTurn, ...]


@dataclass
class Outcome:
    """What a run has said, and what it went through."""

    answers: list[tuple[int, ...]] = field(default_factory=list)
    faults: Counter = field(default_factory=Counter)  # injected, by seam
    happenings: Counter = field(default_factory=Counter)
    failed: int = 0  # turns that ended with an error, and were asked for again
    preempted: int = 0
    recomputed: int = 0  # tokens
    accepted: int = 0  # tokens of drafts
    lost_pages: int = 0

    def counts(self) -> dict:
        """All but the answers, as JSON has it."""
        counted = {name: value for name, value in vars(self).items() if name != "answers"}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in counted.items()}


def draw_rounds(turns: int, seed: int = 0) -> list[Round]:
    """Rounds with so many turns in all."""
    draw, rounds = Random(f"soak {seed}"), []
    while turns > 0:
        places = draw.sample(range(SESSIONS), min(turns, draw.randint(1, 4)))
        happening = draw.choice(["", "", "fork", "mark", "rollback", "close", "expect", "file"])
        rounds.append(Round(happening, *draw.sample(range(SESSIONS), 2), tuple(_ask(draw, at) for at in places)))
        turns -= len(places)
    return rounds


def _ask(draw: Random, place: int) -> SoakTurn:
    sampling = Sampling(draw.choice([0.0, 0.0, 1.0]), seed=draw.randrange(100), ignore_eos=True)
    options = {"max_new_tokens": draw.randint(1, 24), "sampling": sampling}
    if draw.random() < 0.1:
        options = {"max_new_tokens": 60, "tools": [TOOL], "tool_choice": "required"}
    told = tuple(draw.randrange(40, 60) for _ in range(draw.randint(1, 12)))
    return SoakTurn(place, told, options, draw.randint(0, 3) if draw.random() < 0.05 else None)


def play_rounds(rounds: Iterable[Round], engine: Engine, rates: Mapping[str, float], seed: int = 0) -> Outcome:
    """Play the rounds while calls at the seams fail at these `rates`. Everything is recounted after every step."""
    outcome, disturbed = Outcome(), _bursts(rates, seed)
    sessions = [engine.open(tenant=f"tenant {place % 2}") for place in range(SESSIONS)]
    marks: dict[Session, list[Mark]] = {}
    with tempfile.TemporaryDirectory(prefix="minstate-") as folder, faults(engine, disturbed) as outcome.faults:
        for one in rounds:
            _happen(one, engine, sessions, marks, Path(folder))
            outcome.happenings[one.happening] += 1
            outcome.answers += _converse(one.asks, engine, sessions, outcome)
            for place, session in enumerate(sessions):
                if len(session.token_ids) > LONGEST:
                    _replace(sessions, place, engine.open(tenant=f"tenant {place % 2}"))
    for session in sessions:
        session.close()
    engine.cache.make_room(engine.pool.allocator.num_pages)
    engine.check()
    outcome.lost_pages = engine.pool.allocator.num_pages - engine.pool.allocator.num_free
    return outcome


def _bursts(rates: Mapping[str, float], seed: int) -> Callable[[str], bool]:
    """When a call at a seam fails. A pool that has no page has none the next moment either."""
    draw, again = Random(f"faults {seed}"), Counter()

    def fails(seam: str) -> bool:
        again[seam] -= 1
        if again[seam] < 0 and draw.random() < rates.get(seam, 0):
            again[seam] = draw.randint(1, 6) if seam == "allocation" else 1
        return again[seam] > 0

    return fails


def _happen(one: Round, engine: Engine, sessions: list[Session], marks: dict, folder: Path) -> None:
    session = sessions[one.place]
    match one.happening:
        case "fork":
            _replace(sessions, one.other, session.fork())
        case "mark":
            marks.setdefault(session, []).append(session.mark())
        case "rollback" if marks.get(session):
            session.rollback(marks[session].pop())
        case "close":
            _replace(sessions, one.place, engine.open(tenant=f"tenant {one.place % 2}"))
        case "expect":
            session.expect(100.0)
        case "file":
            before = session.token_ids
            _insist(lambda: session.save(folder / "session"))
            _replace(sessions, one.place, _insist(lambda: engine.load(folder / "session", f"tenant {one.place % 2}")))
            assert sessions[one.place].token_ids == before
            assert [path.name for path in folder.iterdir()] == ["session"], "nothing half-written is left"
    engine.check()


def _converse(asks: Iterable[SoakTurn], engine: Engine, sessions: list[Session], outcome: Outcome) -> Iterator:
    """Ask side by side, and again where a turn has failed. Yields the answers, in the order of the asks."""
    answers: dict[SoakTurn, tuple[int, ...]] = {}
    while waiting := [ask for ask in asks if ask not in answers]:
        running: dict[Handle, tuple[SoakTurn, list[int], Mark]] = {}
        for ask in waiting:
            session = sessions[ask.place]
            before = session.token_ids, session.mark()
            running[engine.submit(session, token_ids=ask.token_ids, **ask.options)] = (ask, *before)
        for step in count():
            if not running:
                break
            for handle, (ask, before, mark) in list(running.items()):
                if ask.regret == step:
                    handle.abort()
                if not handle.done:
                    continue
                del running[handle]
                if ask.regret is not None:  # it may have been done just before, or failed
                    sessions[ask.place].rollback(mark)
                    answers[ask] = ()
                elif handle.error:
                    assert sessions[ask.place].token_ids == before, "a turn that failed has left something behind"
                    outcome.failed += 1
                else:
                    answers[ask] = handle.turn.token_ids
                    outcome.recomputed += handle.turn.stats.recomputed
                    outcome.accepted += handle.turn.stats.accepted
                outcome.preempted += handle.request.preempted
                assert ask.regret is None or sessions[ask.place].token_ids == before
            if running:
                engine.step()
                engine.check()
    yield from (answers[ask] for ask in asks)


def _replace(sessions: list[Session], place: int, session: Session) -> None:
    sessions[place].close()
    sessions[place] = session


def _insist(attempt):
    while True:
        try:
            return attempt()
        except (InjectedFault, OutOfPages):
            continue


def soak(turns: int = 2000, seed: int = 0) -> Outcome:
    """The outcome of a disturbed run; raises AssertionError if it differs from the undisturbed one, or loses pages."""
    rounds = draw_rounds(turns, seed)
    calm = play_rounds(tqdm(rounds, desc="undisturbed", unit="round"), small_engine(num_pages=1024), {})
    ticks = count()
    speculation = Speculation(DRAFTS_ARE_CHEAP)
    engine = small_engine(num_pages=NUM_PAGES, speculation=speculation, clock=lambda: float(next(ticks)))
    poison(engine)
    wild = play_rounds(tqdm(rounds, desc="disturbed", unit="round"), engine, RATES, seed)
    assert wild.answers == calm.answers, "the answers are not those of the undisturbed run"
    assert wild.lost_pages == calm.lost_pages == 0
    return wild
