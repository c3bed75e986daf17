"""Which machine gets a turn, and what that does to reuse: machines that keep everything, so only routing loses K/V.

The traffic is that of `traffic.py`. A machine that gets a turn keeps its whole log from then on, and the prompts that
its application's agents begin with. So each share below is the most that a cache of any size reaches under the routing.
"""

from bisect import bisect
from collections.abc import Callable, Iterable
from hashlib import sha256
from random import Random
from typing import NamedTuple

from minstate.lab.serving.traffic import AgentSession, AgentTurn

Route = Callable[[AgentSession, AgentTurn], int]  # the machine that a turn is sent to


class Reuse(NamedTuple):
    """Tokens of all turns."""

    prompts: int
    reused: int  # found on the turn's machine
    elsewhere: int  # of the agent's own earlier turns, and on other machines only

    @property
    def hit_rate(self) -> float:
        """The share of the prompts that was found."""
        return self.reused / self.prompts


def replay(sessions: Iterable[AgentSession], route: Route) -> Reuse:
    """What all turns find on the machines that they are sent to."""
    prompts = reused = elsewhere = 0
    known: set[tuple[int, ...]] = set()  # (machine, application, kind): where an agent of this kind has been
    for session in sessions:
        kept: dict[tuple[int, int], int] = {}  # by machine and agent: tokens of the log
        for turn in session.turns:
            machine, prompt = route(session, turn), turn.start + turn.new
            own = kept.get((machine, turn.agent), 0)
            parent = min(turn.start, kept.get((machine, turn.fork_of), 0)) if turn.fork_of is not None else 0
            kinds = [kind for kind in (None, turn.kind) if (machine, session.application, kind) in known]
            common = 0
            if turn.fork_of is None and kinds:
                common = session.shape.prompts[kinds[-1] is not None]
                known.add((machine, session.application, turn.kind))
            known |= {(machine, session.application, None), (machine, session.application, turn.kind)}
            found = min(max(own, parent, common), prompt - 1)
            prompts, reused, elsewhere = prompts + prompt, reused + found, elsewhere + max(0, turn.start - found)
            kept[machine, turn.agent] = prompt + turn.output
    return Reuse(prompts, reused, elsewhere)


def anywhere(machines: int, seed: int = 0) -> Route:
    """Each turn goes to a machine drawn at random, as by a load balancer that knows nothing of sessions."""
    random = Random(f"anywhere {seed}")
    return lambda session, turn: random.randrange(machines)  # noqa: ARG005  it knows nothing of sessions


def by_session(machines: int) -> Route:
    """All agents of a session go to one machine: they share its log."""
    ring = Ring(machines)
    return lambda session, turn: ring.machine(f"{session.number}")  # noqa: ARG005  all turns of a session alike


def by_agent(machines: int) -> Route:
    """Each agent has a name of its own, so a sub-agent does not find the log that it begins with."""
    ring = Ring(machines)
    return lambda session, turn: ring.machine(f"{session.number} {turn.agent}")


def moving(machines: int, chance: float, seed: int = 0) -> Route:
    """By session, but before each turn the session's machine is replaced with this chance."""
    random, moves, ring = Random(f"moving {seed}"), {}, Ring(machines)

    def route(session: AgentSession, turn: AgentTurn) -> int:  # noqa: ARG001  which turn it is does not matter
        moves[session.number] = moves.get(session.number, 0) + (random.random() < chance)
        return ring.machine(f"{session.number} {moves[session.number]}")

    return route


class Ring:
    """Consistent hashing (Karger et al., STOC 1997), with as many places for each machine as Ray's router gives it."""

    def __init__(self, machines: int, places: int = 100):
        owned = [(_hash(f"{machine}:{place}"), machine) for machine in range(machines) for place in range(places)]
        self._hashes, self._machines = zip(*sorted(owned), strict=True)

    def machine(self, key: str) -> int:
        """The machine of a key: whose place comes next on the ring."""
        return self._machines[bisect(self._hashes, _hash(key)) % len(self._machines)]


def _hash(key: str) -> int:
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big")
