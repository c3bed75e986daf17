"""A session of the traffic under way: whose turn it is, and which sequence that turn goes on with."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

from minstate.lab.serving.traffic import AgentSession, AgentTurn
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence


@dataclass(eq=False)
class LiveSession:
    """A session under way: the sequences of its agents, and which turns wait for which."""

    script: AgentSession
    turns: list[AgentTurn]
    sequences: dict[int, Sequence] = field(default_factory=dict)  # by agent
    missing: dict[tuple[int, int], int] = field(default_factory=dict)  # by turn: how many have to end before it
    dependents: dict[tuple[int, int], list[AgentTurn]] = field(default_factory=lambda: defaultdict(list))
    left: int = 0  # turns that have not ended

    @staticmethod
    def of(script: AgentSession, begin: float = 0.0) -> "LiveSession":
        """The session from the beginning, or once a share `begin` of the orchestrator's turns is over."""
        turns = script.turns
        own = [place for place, turn in enumerate(turns) if turn.agent == 0]
        if first := own[int(begin * len(own))]:
            turn = turns[first]
            turns = [replace(turn, after=(), delay_s=0.0, start=0, new=turn.start + turn.new), *turns[first + 1 :]]
        live = LiveSession(script, turns, left=len(turns))
        for turn in turns:
            live.missing[turn.name] = len(turn.after)
            for earlier in turn.after:
                live.dependents[earlier].append(turn)
        return live

    def over(self, turn: AgentTurn) -> list[AgentTurn]:
        """`turn` has ended. Returns those that waited for it alone."""
        self.left -= 1
        ready = []
        for dependent in self.dependents.pop(turn.name, ()):
            self.missing[dependent.name] -= 1
            if not self.missing[dependent.name]:
                ready.append(dependent)
        return ready

    def sequence_of(self, turn: AgentTurn, cache: PrefixCache) -> Sequence:
        """The sequence that `turn` goes on with: new, forked, or the agent's own."""
        if turn.agent not in self.sequences:
            if turn.fork_of is None:
                sequence = Sequence(cache.pool)
                cache.enter(sequence, cache.tree.root(self.script.application))
            else:
                sequence = cache.fork(self.sequences[turn.fork_of])
            self.sequences[turn.agent] = sequence
        return self.sequences[turn.agent]
