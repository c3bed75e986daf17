"""A soak test: thousands of random turns on few pages, with faults at every seam, compared with an undisturbed run.

A list of rounds is drawn from a seed. In a round, some sessions take a turn in one batch. Between two rounds a session
is forked, rolled back, closed, announced to return soon, or saved into a file and loaded again. A client whose turn
fails finds its session as it was before the turn, and submits the turn again until it succeeds. Some clients abort.

So the outputs must equal those of a run without faults and with plenty of pages, token by token. Once all sessions are
closed, every page must be free. Freed pages hold NaN, so a stale read changes the output.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random

from tqdm import tqdm

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.errors import BrokenInvariant, OutOfPages, UnreadableSession
from minstate.lab.engines.faults import InjectedFault, faults
from minstate.lab.engines.small_engine import poison, small_engine
from minstate.request import Request
from minstate.sampling import Sampling
from minstate.session import Mark, Session
from minstate.speculation import Speculation

NUM_SESSIONS = 6  # at any time
MAX_LOG = 150  # tokens; a session whose log is longer is replaced by a new one
NUM_PAGES = 64  # of 4 tokens: enough for any single turn, and for a third of what six sessions may hold
RATES = {"allocation": 0.02, "forward": 0.02, "sampling": 0.004, "file": 0.5, "disk": 0.1}  # share of calls that fail
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}}}
DRAFTS_ARE_CHEAP = CostTable((1, 64), (0, 10000), ((1.0, 1.01), (1.0, 1.01)), "", 1e15, 1e15)  # and so are tiers


@dataclass(frozen=True, eq=False)
class SoakTurn:
    """A turn that the session at `place` takes."""

    place: int
    token_ids: tuple[int, ...]
    options: dict
    abort_after: int | None  # steps after which the client aborts the turn


@dataclass(frozen=True)
class Round:
    """What happens to the session at `place`, if anything; then the turns of one batch."""

    happening: str
    place: int
    other: int  # the place whose session a fork replaces
    turns: tuple[SoakTurn, ...]


@dataclass
class Outcome:
    """What a run has generated, and what happened to it."""

    outputs: list[tuple] = field(default_factory=list)  # token ids, and the most likely ones where asked for
    faults: Counter = field(default_factory=Counter)  # injected, by seam
    happenings: Counter = field(default_factory=Counter)
    failed: int = 0  # turns that ended with an error, and were submitted again
    preempted: int = 0
    recomputed: int = 0  # tokens
    promoted: int = 0  # tokens whose K/V came back from host memory or disk
    accepted: int = 0  # draft tokens
    lost_pages: int = 0

    def counts(self) -> dict:
        """Everything but the outputs, as values that JSON has."""
        counted = {name: value for name, value in vars(self).items() if name != "outputs"}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in counted.items()}


def draw_rounds(turns: int, seed: int = 0) -> list[Round]:
    """Rounds with `turns` turns in all."""
    draw, rounds = Random(f"soak {seed}"), []
    while turns > 0:
        places = draw.sample(range(NUM_SESSIONS), min(turns, draw.randint(1, 4)))
        happening = draw.choice(["", "", "fork", "mark", "rollback", "close", "expect", "file"])
        two_places = draw.sample(range(NUM_SESSIONS), 2)
        rounds.append(Round(happening, *two_places, tuple(_draw_turn(draw, place) for place in places)))
        turns -= len(places)
    return rounds


def _draw_turn(draw: Random, place: int) -> SoakTurn:
    penalties = _draw_penalties(draw) if draw.random() < 1 / 3 else {}
    sampling = Sampling(draw.choice([0.0, 0.0, 1.0]), seed=draw.randrange(100), ignore_eos=True, **penalties)
    options = {"max_new_tokens": draw.randint(1, 24), "sampling": sampling, "top_logprobs": draw.choice([0, 0, 3])}
    if draw.random() < 0.1:
        sampling = replace(sampling, ignore_eos=False)
        options |= {"max_new_tokens": 60, "tools": [TOOL], "tool_choice": "required", "sampling": sampling}
    token_ids = tuple(draw.randrange(40, 60) for _ in range(draw.randint(1, 12)))
    return SoakTurn(place, token_ids, options, draw.randint(0, 3) if draw.random() < 0.05 else None)


def _draw_penalties(draw: Random) -> dict:
    """Some of the settings that change logits."""
    drawn = {
        "repetition_penalty": draw.uniform(0.7, 1.4),
        "presence_penalty": draw.uniform(-2, 2),
        "frequency_penalty": draw.uniform(-2, 2),
        "logit_bias": {draw.randrange(40, 60): draw.uniform(-9, 9) for _ in range(5)},
    }
    return {name: value for name, value in drawn.items() if draw.random() < 0.6}


def play_rounds(rounds: Iterable[Round], engine: Engine, rates: Mapping[str, float], seed: int = 0) -> Outcome:
    """Play the rounds while calls at the seams fail at these `rates`. The engine recounts everything at every step."""
    clients = Clients(engine)
    outcome = clients.outcome
    with (
        tempfile.TemporaryDirectory(prefix="minstate-") as folder,
        faults(engine, _failing_calls(rates, seed)) as outcome.faults,
    ):
        for each in rounds:
            clients.act(each, Path(folder) / "session")
            outcome.happenings[each.happening] += 1
            outcome.outputs += clients.take_turns(each.turns)
            clients.replace_long_sessions()
    for session in clients.sessions:
        session.close()
    allocator = engine.pool.allocator
    engine.cache.make_room(allocator.num_pages)
    engine.check()
    outcome.lost_pages = allocator.num_pages - allocator.num_free
    return outcome


def _failing_calls(rates: Mapping[str, float], seed: int) -> Callable[[str], bool]:
    """Whether a call at a seam fails. Faults of allocation come in bursts: a full pool stays full for a while."""
    draw, left = Random(f"faults {seed}"), Counter()  # calls of the burst that are left

    def fails(seam: str) -> bool:
        left[seam] -= 1
        if left[seam] < 0 and draw.random() < rates.get(seam, 0):
            left[seam] = draw.randint(1, 6) if seam == "allocation" else 1
        return left[seam] > 0

    return fails


class Clients:
    """The clients of one run: each has a place, and a session there."""

    def __init__(self, engine: Engine):
        self.engine, self.outcome = engine, Outcome()
        self.sessions = [self._open(place) for place in range(NUM_SESSIONS)]
        self._marks: dict[Session, list[Mark]] = {}

    def act(self, round_: Round, path: Path) -> None:
        """Apply the round's happening to the session at its place. A file may be written to `path`."""
        session = self.sessions[round_.place]
        match round_.happening:
            case "fork":
                self._replace(round_.other, session.fork())
            case "mark":
                self._marks.setdefault(session, []).append(session.mark())
            case "rollback" if self._marks.get(session):
                session.rollback(self._marks[session].pop())
            case "close":
                self._replace(round_.place, self._open(round_.place))
            case "expect":
                session.expect(100.0)
            case "file":
                self._move_through_file(round_.place, path)
        self.engine.check()

    def take_turns(self, turns: Iterable[SoakTurn]) -> Iterator[tuple]:
        """Run the turns in one batch, and submit those that fail again. Yields the outputs, in the order of `turns`."""
        outputs: dict[SoakTurn, tuple] = {}
        while waiting := [turn for turn in turns if turn not in outputs]:
            running: dict[Request, tuple[SoakTurn, list[int], Mark]] = {}
            for turn in waiting:
                session = self.sessions[turn.place]
                before, mark = session.token_ids, session.mark()
                request = self.engine.submit(session, token_ids=turn.token_ids, **turn.options)
                running[request] = (turn, before, mark)
            for step in count():
                for request, (turn, before, mark) in list(running.items()):
                    if turn.abort_after == step:
                        request.abort()
                    if request.done:
                        del running[request]
                        output = self._end_turn(turn, request, before, mark)
                        if output is not None:
                            outputs[turn] = output
                if not running:
                    break
                self.engine.step()
                self.engine.check()
        yield from (outputs[turn] for turn in turns)

    def replace_long_sessions(self) -> None:
        """Open a new session in the place of each whose log has grown too long."""
        for place, session in enumerate(self.sessions):
            if len(session.token_ids) > MAX_LOG:
                self._replace(place, self._open(place))

    def _end_turn(self, turn: SoakTurn, request: Request, before: list[int], mark: Mark) -> tuple | None:
        """Count what a turn that is done has cost. Returns its output, or None if it failed and must be run again."""
        session = self.sessions[turn.place]
        self.outcome.preempted += request.preempted
        if turn.abort_after is not None:
            session.rollback(mark)  # the turn may have ended before it was aborted
            assert session.token_ids == before
            return ()
        if request.error:
            assert session.token_ids == before, "a failed turn has changed its session's log"
            self.outcome.failed += 1
            return None
        self.outcome.recomputed += request.turn.stats.recomputed
        self.outcome.promoted += request.turn.stats.promoted
        self.outcome.accepted += request.turn.stats.accepted
        likely = [token for top in request.turn.top_logprobs or () for token, _ in top]
        return request.turn.token_ids, tuple(likely)

    def _open(self, place: int) -> Session:
        return self.engine.open(tenant=_tenant(place))

    def _replace(self, place: int, session: Session) -> None:
        self.sessions[place].close()
        self.sessions[place] = session

    def _move_through_file(self, place: int, path: Path) -> None:
        """Save the session, and put the one that is loaded from the file in its place."""
        session = self.sessions[place]
        before = session.token_ids
        _retry(lambda: session.save(path))
        self._refuse_a_damaged(path, sum(before) % path.stat().st_size)
        self._replace(place, _retry(lambda: self.engine.load(path, _tenant(place))))
        assert self.sessions[place].token_ids == before
        assert list(path.parent.iterdir()) == [path], "a partly written file is left"

    def _refuse_a_damaged(self, path: Path, at: int) -> None:
        """A copy of the file with one byte changed is refused, and changes nothing."""
        damaged, data = path.with_name("damaged"), bytearray(path.read_bytes())
        data[at] ^= 1
        damaged.write_bytes(data)
        try:
            _retry(lambda: self.engine.load(damaged))
        except UnreadableSession:
            self.engine.check()
        else:
            raise BrokenInvariant(f"a session was loaded whose byte {at} is another")
        damaged.unlink()


def _tenant(place: int) -> str:
    return f"tenant {place % 2}"


def _retry(attempt: Callable):
    while True:
        try:
            return attempt()
        except (InjectedFault, OutOfPages):
            continue


def soak(turns: int = 2000, seed: int = 0, kv_dtype: str | None = None) -> Outcome:
    """The outcome of a disturbed run.

    Raises AssertionError if its outputs differ from the undisturbed run's, or if a page is lost.
    """
    rounds = draw_rounds(turns, seed)
    ample = small_engine(num_pages=1024, kv_dtype=kv_dtype)
    undisturbed = play_rounds(tqdm(rounds, desc="undisturbed", unit="round"), ample, {})
    ticks = count()
    speculation = Speculation(DRAFTS_ARE_CHEAP)
    with tempfile.TemporaryDirectory(prefix="minstate-") as folder:
        settings = {"kv_dtype": kv_dtype, "host_tokens": 60, "disk": folder, "disk_bytes": 400_000}
        clock = {"clock": lambda: float(next(ticks))}
        engine = small_engine(num_pages=NUM_PAGES, speculation=speculation, **clock, **settings)
        poison(engine)
        disturbed = play_rounds(tqdm(rounds, desc="disturbed", unit="round"), engine, RATES, seed)
    assert disturbed.outputs == undisturbed.outputs, "the outputs are not those of the undisturbed run"
    assert disturbed.lost_pages == undisturbed.lost_pages == 0
    return disturbed
