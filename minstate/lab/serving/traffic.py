"""Synthetic traffic of agents that call tools, from a seed: which turns are sent, how long they are, and when.

A session is an orchestrator and the sub-agents that it starts now and then. A sub-agent is either a fork, which begins
with the orchestrator's whole log, or it is opened afresh, and then shares its system prompt with all agents of its
kind. While sub-agents work, the orchestrator waits; their reports are its next input. Sessions of one application share
a system prompt. Nothing is stored: each session is drawn when it is asked for, and each token is a hash of (seed,
session, agent, position).

Published figures of vLLM's AgentX traffic: a median of 43 turns a session, inputs of 142K tokens, outputs of 444, more
than 96 % of prompt tokens cached already, sub-agents in 44 % of sessions. We take the turns to be the orchestrator's,
and the medians of inputs and outputs to be those of all requests. **We chose all other figures below**, either so that
the published ones result, or because they are plausible.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from itertools import count as numbers
from math import log
from random import Random

import numpy as np

NUM_IDS = 256  # Python keeps integers below 257 ready-made, so a list of such ids takes eight bytes a token
LONGEST_LOG = 500_000  # tokens, before scaling; a session ends where its log would become longer


@dataclass(frozen=True)
class ToolKind:
    """A kind of tool call, whose duration has a log-normal distribution."""

    name: str
    share: float  # of all calls
    typical_s: float  # median
    spread: float  # standard deviation of the logarithm


TOOL_KINDS = (  # together they have a heavy tail: the median is half a second, the mean 13 seconds
    ToolKind("read or edit a file", 0.60, 0.3, 0.5),
    ToolKind("run a command", 0.28, 3.0, 1.0),
    ToolKind("tests or a build", 0.10, 40.0, 0.8),
    ToolKind("ask a person", 0.02, 180.0, 1.0),
)
CUMULATIVE_SHARES = tuple(accumulate(kind.share for kind in TOOL_KINDS))


@dataclass(frozen=True)
class TrafficShape:
    """The distributions that sessions are drawn from. Lengths are tokens before scaling, medians of log-normal ones.

    One factor, `scale`, shortens all lengths to fit a model's context; turns, seconds and shares are not scaled.
    """

    scale: float = 1.0
    turns: float = 43  # of an orchestrator; published
    turns_spread: float = 0.5
    output: float = 444  # of a turn; published
    output_spread: float = 0.9
    result: float = 3_500  # of a tool: with the prompts, this makes the median input 142K
    result_spread: float = 1.0
    task: float = 2_000  # the first message
    with_subagents: float = (
        0.455  # share of sessions: 0.44, as published, since some sessions end before they start any
    )
    batches: float = 2  # how often such a session starts sub-agents, on average
    batch: int = 3  # how many at once, at most
    forked: float = 0.5  # share of sub-agents
    subagent_turns: float = 10
    subagent_s: float = 150  # how long an orchestrator announces that its sub-agents will take
    announced: float = 1.0  # share of tool calls whose typical duration the agent announces
    applications: int = 4
    kinds: int = 3  # of agents in an application, each with tools of its own; kind 0 is the orchestrator
    system_prompt: int = 6_000  # common to all kinds; not drawn
    tool_schemas: int = 14_000  # of each kind; not drawn

    @staticmethod
    def for_context(positions: int, **settings) -> "TrafficShape":
        """Scaled so that the longest log has `positions` tokens."""
        return TrafficShape(scale=positions / LONGEST_LOG, **settings)

    @property
    def longest(self) -> int:
        """Tokens of the longest log."""
        return int(LONGEST_LOG * self.scale)

    @property
    def prompts(self) -> tuple[int, int]:
        """How many tokens all agents of an application begin with, and how many all agents of one kind."""
        return round(self.system_prompt * self.scale), round((self.system_prompt + self.tool_schemas) * self.scale)


@dataclass(frozen=True, slots=True)
class AgentTurn:
    """One request: when it is sent, its lengths in tokens, and when the agent announces its next one."""

    session: int
    agent: int  # of the session; 0 is the orchestrator
    turn: int  # of the agent, from 0
    kind: int  # of the agent: which tools it has
    after: tuple[tuple[int, int], ...]  # turns of the session, as (agent, turn), that end before this one is sent
    delay_s: float  # how much later than the last of these it is sent
    fork_of: int | None  # if the agent is a fork: the agent whose log it began with
    start: int  # length of the log before the turn
    new: int  # input
    output: int
    hint_s: float | None = None  # after how many seconds the agent announces its next turn, if it does
    last: bool = False  # whether it is the agent's last turn

    @property
    def name(self) -> tuple[int, int]:
        """What `after` calls it: (agent, turn)."""
        return self.agent, self.turn


@dataclass(frozen=True)
class AgentSession:
    """One orchestrator and its sub-agents."""

    number: int
    application: int
    arrival_s: float
    seed: int
    shape: TrafficShape

    @cached_property
    def turns(self) -> list[AgentTurn]:
        """Causes before effects: a turn of the orchestrator, all turns of sub-agents that it starts, its next turn."""
        return list(_SessionDraw(self).turns())

    def ids(self, turn: AgentTurn) -> tuple[list[int], list[int]]:
        """The tokens that `turn` adds to the log: its input, and its output."""
        ids = self._ids(turn, turn.start, turn.start + turn.new + turn.output)
        return ids[: turn.new], ids[turn.new :]

    def prompt_ids(self, kind: int) -> list[int]:
        """The prompt that every agent of this kind in the application begins with, unless it is a fork."""
        length = self.shape.prompts[1]
        return self._ids(AgentTurn(self.number, 0, 0, kind, (), 0.0, None, 0, length, 0), 0, length)

    def _ids(self, turn: AgentTurn, start: int, stop: int) -> list[int]:
        common, kind = (0, 0) if turn.fork_of is not None else self.shape.prompts
        ids = []
        for end, stream in [
            (common, (self.application, 0, 0)),
            (kind, (self.application, 0, 1 + turn.kind)),
            (stop, (self.number, 1, turn.agent)),
        ]:
            if start < min(end, stop):
                ids += token_ids((self.seed, *stream), start, min(end, stop))
                start = end
        return ids


def draw_sessions(
    shape: TrafficShape, seed: int = 0, *, count: int | None = None, per_s: float = 1.0
) -> Iterator[AgentSession]:
    """`count` sessions, or an endless stream, that arrive independently: `per_s` a second on average."""
    random, now = Random(f"arrivals {seed}"), 0.0
    for number in numbers() if count is None else range(count):
        now += random.expovariate(per_s)
        yield AgentSession(number, random.randrange(shape.applications), now, seed, shape)


def token_ids(stream: tuple[int, ...], start: int, stop: int) -> list[int]:
    """The ids at positions from `start` to `stop` of an endless random text. Each `stream` names a text of its own."""
    return (_mix(np.arange(start, stop, dtype=np.uint64) + _key(stream)) >> np.uint64(56)).tolist()


@lru_cache(maxsize=2**14)
def _key(stream: tuple[int, ...]) -> np.uint64:
    key = np.zeros(1, dtype=np.uint64)
    for part in stream:
        key = _mix(key + np.uint64(part + 1))
    return key[0]


def _mix(x: np.ndarray) -> np.ndarray:
    """A step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): adjacent numbers become unrelated ones."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _SessionDraw:
    """Draws the turns of one session."""

    def __init__(self, session: AgentSession):
        self.session, self.shape = session, session.shape
        self.random = Random(f"session {session.seed} {session.number}")
        self.agents = 1

    def turns(self) -> Iterator[AgentTurn]:
        """All turns, as `AgentSession.turns` describes."""
        shape, random = self.shape, self.random
        starts = []
        if random.random() < shape.with_subagents:
            while not starts or random.random() < 1 - 1 / shape.batches:
                starts.append(random.random())
        count = self._draw_turns(shape.turns)
        starts = {int(at * (count - 1)) for at in starts}
        yield from self._agent(0, 0, (), None, 0, count, starts)

    def _agent(self, agent, kind, after, fork_of, start, count, starts=()) -> Iterator[AgentTurn]:
        """All turns of one agent, and of the sub-agents that it starts after its turns `starts`."""
        shape, random = self.shape, self.random
        new = self._draw_tokens(shape.task) + (shape.prompts[1] if fork_of is None else 0)
        delay_s, number = 0.0, 0
        output = self._draw_tokens(shape.output, shape.output_spread)
        while True:
            turn = AgentTurn(self.session.number, agent, number, kind, after, delay_s, fork_of, start, new, output)
            start, after = start + new + output, (turn.name,)
            children = list(self._children(turn, start)) if number in starts and number + 1 < count else []
            number += 1
            if children:
                ends = [child for child in children if child.last]
                after += tuple(child.name for child in ends)
                new, delay_s, hint_s = sum(child.output for child in ends), 0.0, shape.subagent_s
            else:
                tool = random.choices(TOOL_KINDS, cum_weights=CUMULATIVE_SHARES)[0]
                delay_s = tool.typical_s * random.lognormvariate(0, tool.spread)
                hint_s = tool.typical_s if random.random() < shape.announced else None
                new = self._draw_tokens(shape.result, shape.result_spread)
            output = self._draw_tokens(shape.output, shape.output_spread)
            last = number >= count or start + new + output > shape.longest
            yield replace(turn, hint_s=None if last else hint_s, last=last)
            if last:
                return
            yield from children

    def _children(self, parent: AgentTurn, start: int) -> Iterator[AgentTurn]:
        shape, random = self.shape, self.random
        for _ in range(random.randint(1, shape.batch)):
            fork = random.random() < shape.forked
            kind = parent.kind if fork else random.randrange(min(1, shape.kinds - 1), shape.kinds)
            room = shape.longest - start - self._draw_tokens(8 * shape.task, 0)
            if fork and room < 0:
                continue  # the log has no room left for its work
            agent, self.agents = self.agents, self.agents + 1
            fork_of, begins = (parent.agent, start) if fork else (None, 0)
            yield from self._agent(agent, kind, (parent.name,), fork_of, begins, self._draw_turns(shape.subagent_turns))

    def _draw_turns(self, median: float) -> int:
        return max(1, round(self.random.lognormvariate(log(median), self.shape.turns_spread)))

    def _draw_tokens(self, median: float, spread: float = 0.5) -> int:
        return max(1, round(self.shape.scale * median * self.random.lognormvariate(0, spread)))
