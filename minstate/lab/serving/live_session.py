"""A session of the synthetic traffic while it is served: which turns may begin, and on which sequence."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from minstate.lab.serving.traffic import AgentSession, AgentTurn
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence


@dataclass(eq=False)
class LiveSession:
    """The sequences of a session's agents, and which of its turns wait for which others."""

    script: AgentSession
    turns: list[AgentTurn]
    sequences: dict[int, Sequence] = field(default_factory=dict)  # by agent
    blockers: dict[tuple[int, int], int] = field(default_factory=dict)  # by turn: how many turns have to end before it
    dependents: dict[tuple[int, int], list[AgentTurn]] = field(default_factory=lambda: defaultdict(list))
    turns_left: int = 0  # that have not ended

    @staticmethod
    def of(script: AgentSession, begin: float = 0.0) -> "LiveSession":
        """The session from its beginning, or from where a share `begin` of the orchestrator's turns is over."""
        turns = script.turns
        own = [place for place, turn in enumerate(turns) if turn.agent == 0]
        if first := own[int(begin * len(own))]:
            turn = turns[first]
            turns = [replace(turn, after=(), delay_s=0.0, start=0, new=turn.start + turn.new), *turns[first + 1 :]]
        live = LiveSession(script, turns, turns_left=len(turns))
        for turn in turns:
            live.blockers[turn.name] = len(turn.after)
            for earlier in turn.after:
                live.dependents[earlier].append(turn)
        return live

    def end(self, turn: AgentTurn) -> list[AgentTurn]:
        """`turn` has ended. Returns the turns that now wait for no other."""
        self.turns_left -= 1
        ready = []
        for dependent in self.dependents.pop(turn.name, ()):
            self.blockers[dependent.name] -= 1
            if not self.blockers[dependent.name]:
                ready.append(dependent)
        return ready


def sequence_of(turn: AgentTurn, sequences: dict[int, Sequence], application: int, cache: PrefixCache) -> Sequence:
    """The sequence that `turn` goes on with: the agent's own, entered into `sequences` as a new one or a fork at first.

    sequences    of the session, by agent
    application  whose prefix tree a new sequence shares
    """
    if turn.agent not in sequences:
        if turn.fork_of is None:
            sequences[turn.agent] = Sequence(cache.pool)
            cache.enter(sequences[turn.agent], cache.tree.root(application))
        else:
            sequences[turn.agent] = cache.fork(sequences[turn.fork_of])
    return sequences[turn.agent]
