"""Synthetic traffic of agents that call tools, from a seed: who sends how many tokens, after what, how much later.

A session is an orchestrator and the sub-agents that it starts now and then. Sub-agents are forks, which share its whole
log, or are opened afresh, and then share the system prompt with all agents of their kind. While they work it waits;
their reports are its next input. Sessions of one application have its system prompt in common. Nothing is kept: each
session is drawn when it is asked for, and each token is a hash of (seed, session, agent, position).

Published, of vLLM's AgentX traffic: median 43 turns a session, inputs of 142K tokens, outputs of 444, above 96 % of
prompt tokens cached already, sub-agents in 44 % of sessions. We read turns as the orchestrator's, and medians of inputs
and outputs as taken over all requests. **All other figures below are chosen**: so that these come out, or as plausible.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from itertools import count as numbers
from math import log
from random import Random

import numpy as np

VOCABULARY = 256  # ids that Python keeps ready-made: a list of them takes eight bytes a token
LONGEST = 500_000  # tokens, before scaling; a session ends where its log would become longer


@dataclass(frozen=True)
class Tool:
    """How long a kind of tool call takes: log-normal."""

    name: str
    share: float  # of all calls
    typical_s: float  # median
    spread: float  # standard deviation of the logarithm


TOOLS = (
    Tool("read or edit a file", 0.60, 0.3, 0.5),
    Tool("run a command", 0.28, 3.0, 1.0),
    Tool("tests or a build", 0.10, 40.0, 0.8),
    Tool("ask a person", 0.02, 180.0, 1.0),
)
SHARES = tuple(
    accumulate(tool.share for tool in TOOLS)
)  # together a heavy tail: the median is half a second, the mean thirteen


@dataclass(frozen=True)
class Shape:
    """What the traffic looks like. Lengths are tokens before scaling, medians of log-normal distributions.

    One factor, `scale`, shortens all lengths to a model's context; turns, seconds and shares stay.
    """

    scale: float = 1.0
    turns: float = 43  # of an orchestrator; published
    turns_spread: float = 0.5
    output: float = 444  # of a turn; published
    output_spread: float = 0.9
    result: float = 3_500  # of a tool: with the prompts, what makes the median input 142K
    result_spread: float = 1.0
    task: float = 2_000  # the first message
    with_subagents: float = 0.455  # share of sessions: 0.44, as published, since some end before they start any
    batches: float = 2  # how often such a session starts sub-agents, on average
    batch: int = 3  # how many at once, at most
    forked: float = 0.5  # share of sub-agents
    subagent_turns: float = 10
    subagent_s: float = 150  # what an orchestrator says it takes them
    announced: float = 1.0  # share of tool calls whose typical duration is known
    applications: int = 4
    kinds: int = 3  # of agents in an application, each with tools of its own; kind 0 orchestrates
    system_prompt: int = 6_000  # common to all kinds, not drawn
    tool_schemas: int = 14_000  # of a kind, not drawn

    @staticmethod
    def for_context(positions: int, **settings) -> "Shape":
        """Scaled so that the longest log has `positions` tokens."""
        return Shape(scale=positions / LONGEST, **settings)

    @property
    def longest(self) -> int:
        """Tokens of the longest log."""
        return int(LONGEST * self.scale)

    @property
    def prompts(self) -> tuple[int, int]:
        """Tokens that all agents of an application begin with, and all those of one kind."""
        return round(self.system_prompt * self.scale), round((self.system_prompt + self.tool_schemas) * self.scale)


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """One request: when it is sent, how long it is, what comes next. Lengths in tokens."""

    session: int
    agent: int  # of the session; 0 is the orchestrator
    turn: int  # of the agent, from 0
    kind: int  # of the agent: which tools it has
    after: tuple[tuple[int, int], ...]  # turns of the session, (agent, turn), that have ended before it is sent
    delay_s: float  # and how much later it is sent
    fork_of: int | None  # the agent whose log this one's began with, if it is a fork
    start: int  # length of the log before
    new: int  # input
    output: int
    hint_s: float | None = None  # after how many seconds the agent says it will be back, if it says so
    last: bool = False  # whether the agent is done with it

    @property
    def name(self) -> tuple[int, int]:
        return self.agent, self.turn


@dataclass(frozen=True)
class AgentSession:
    """One orchestrator and its sub-agents."""

    number: int
    application: int
    arrival_s: float
    seed: int
    shape: Shape

    @cached_property
    def turns(self) -> list[AgentTurn]:
        """Causes before effects: a turn of the orchestrator, all turns of the sub-agents it starts, its next turn."""
        return list(_Script(self).write())

    def ids(self, turn: AgentTurn) -> tuple[list[int], list[int]]:
        """The tokens that `turn` adds to the log: its input, and the answer."""
        ids = self._ids(turn, turn.start, turn.start + turn.new + turn.output)
        return ids[: turn.new], ids[turn.new :]

    def prompt_ids(self, kind: int) -> list[int]:
        """What every agent of this kind in the application begins with, unless it is a fork."""
        length = self.shape.prompts[1]
        return self._ids(AgentTurn(self.number, 0, 0, kind, (), 0.0, None, 0, length, 0), 0, length)

    def _ids(self, turn: AgentTurn, start: int, stop: int) -> list[int]:
        everyone, kind = (0, 0) if turn.fork_of is not None else self.shape.prompts
        ids = []
        for end, stream in [
            (everyone, (self.application, 0, 0)),
            (kind, (self.application, 0, 1 + turn.kind)),
            (stop, (self.number, 1, turn.agent)),
        ]:
            if start < min(end, stop):
                ids += token_ids((self.seed, *stream), start, min(end, stop))
                start = end
        return ids


def sessions(shape: Shape, seed: int = 0, *, count: int | None = None, per_s: float = 1.0) -> Iterator[AgentSession]:
    """`count` sessions, or an endless stream, that come independently of each other: `per_s` a second on average."""
    random, now = Random(f"arrivals {seed}"), 0.0
    for number in numbers() if count is None else range(count):
        now += random.expovariate(per_s)
        yield AgentSession(number, random.randrange(shape.applications), now, seed, shape)


def token_ids(stream: tuple[int, ...], start: int, stop: int) -> list[int]:
    """The ids at the positions from `start` to `stop` of an endless random text; every stream is another one."""
    return (_mix(np.arange(start, stop, dtype=np.uint64) + _key(stream)) >> np.uint64(56)).tolist()


@lru_cache(maxsize=2**14)
def _key(stream: tuple[int, ...]) -> np.uint64:
    key = np.zeros(1, dtype=np.uint64)
    for part in stream:
        key = _mix(key + np.uint64(part + 1))
    return key[0]


def _mix(x: np.ndarray) -> np.ndarray:
    """A step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): neighbouring numbers become unrelated ones."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Script:
    """Draws one session."""

    def __init__(self, session: AgentSession):
        self.session, self.shape = session, session.shape
        self.random = Random(f"session {session.seed} {session.number}")
        self.agents = 1

    def write(self) -> Iterator[AgentTurn]:
        shape, random = self.shape, self.random
        starts = []
        if random.random() < shape.with_subagents:
            while not starts or random.random() < 1 - 1 / shape.batches:
                starts.append(random.random())
        count = self._turns(shape.turns)
        starts = {int(at * (count - 1)) for at in starts}
        yield from self._agent(0, 0, (), None, 0, count, starts)

    def _agent(self, agent, kind, after, fork_of, start, count, starts=()) -> Iterator[AgentTurn]:
        """All turns of one agent, and of those that it starts after the turns `starts`."""
        shape, random = self.shape, self.random
        new = self._tokens(shape.task) + (shape.prompts[1] if fork_of is None else 0)
        delay_s, turn = 0.0, 0
        output = self._tokens(shape.output, shape.output_spread)
        while True:
            one = AgentTurn(self.session.number, agent, turn, kind, after, delay_s, fork_of, start, new, output)
            start, turn, after = start + new + output, turn + 1, ((agent, turn),)
            children = list(self._children(one, start)) if turn - 1 in starts and turn < count else []
            if children:
                ends = [child for child in children if child.last]
                after += tuple(child.name for child in ends)
                new, delay_s, hint_s = sum(child.output for child in ends), 0.0, shape.subagent_s
            else:
                tool = random.choices(TOOLS, cum_weights=SHARES)[0]
                delay_s = tool.typical_s * random.lognormvariate(0, tool.spread)
                hint_s = tool.typical_s if random.random() < shape.announced else None
                new = self._tokens(shape.result, shape.result_spread)
            output = self._tokens(shape.output, shape.output_spread)
            last = turn >= count or start + new + output > shape.longest
            yield replace(one, hint_s=None if last else hint_s, last=last)
            if last:
                return
            yield from children

    def _children(self, parent: AgentTurn, start: int) -> Iterator[AgentTurn]:
        shape, random = self.shape, self.random
        for _ in range(random.randint(1, shape.batch)):
            fork = random.random() < shape.forked
            kind = parent.kind if fork else random.randrange(min(1, shape.kinds - 1), shape.kinds)
            room = shape.longest - start - self._tokens(8 * shape.task, 0)
            if fork and room < 0:
                continue  # no room to work in
            agent, self.agents = self.agents, self.agents + 1
            fork_of, begins = (parent.agent, start) if fork else (None, 0)
            yield from self._agent(agent, kind, (parent.name,), fork_of, begins, self._turns(shape.subagent_turns))

    def _turns(self, median: float) -> int:
        return max(1, round(self.random.lognormvariate(log(median), self.shape.turns_spread)))

    def _tokens(self, median: float, spread: float = 0.5) -> int:
        return max(1, round(self.shape.scale * median * self.random.lognormvariate(0, spread)))
