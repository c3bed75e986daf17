"""What eviction costs: the same turns in the same order, pools of several sizes, and three ways to choose who goes.

    LRU            who was used longest ago
    hints          who is expected back last, see `PrefixCache.expect`; an agent knows its tool's typical duration
    clairvoyance   as hints, but all are there and all are true: when each session comes back, when somebody will open
                   with the same prompt, and who never comes again

The last is Belady's rule (IBM Systems Journal 5(2), 1966): give up what will be used last. For pages of one token no
policy recomputes fewer tokens. Each page costs the same to compute again; a turn needs its whole path, which nobody
evicts while it runs; and whoever uses a page uses all above it, so among the pages used last there is always the end of
a leaf: taking leaves first forbids nothing that one would want to do. (Fewest tokens, not fewest FLOPs: later tokens
attend to more.) With larger pages it is the optimum but for the last, partly filled page of each sequence.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from minstate.lab.serving.live_session import LiveSession
from minstate.lab.serving.simulation import Pages
from minstate.lab.serving.traffic import AgentSession, AgentTurn, Shape, sessions
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence

TURN_S = 5.0  # what every turn takes, so that the order does not depend on who computes what
POLICIES = ("LRU", "hints", "clairvoyance")


class Access(NamedTuple):
    """A turn in the order of all turns."""

    at_s: float  # when it begins
    session: AgentSession
    turn: AgentTurn
    used_s: float  # when the log that it leaves behind is used next, by the agent or a fork of it; infinity: never
    parent_s: float  # of a fork's first turn: when the log that was forked is used next
    opened_s: float  # when the next one opens with the same prompt


@dataclass(frozen=True)
class Accesses:
    """Turns in a fixed order."""

    turns: list[Access]
    working_set: int  # tokens that the sessions under way have in their logs, counted once, when they are most


@dataclass(frozen=True)
class Cost:
    """What a replay computed, in tokens."""

    prompts: int  # whole logs with the turns' input, each turn's
    computed: int

    @property
    def hit_rate(self) -> float:
        """Share of the prompts that was not computed. (Answers are computed besides, by every policy.)"""
        return 1 - self.computed / self.prompts


def in_order(scripts: Iterable[AgentSession], turn_s: float = TURN_S) -> Accesses:
    """All turns of all sessions in the order in which they begin, if each takes `turn_s`."""
    coming: list[tuple[float, int, LiveSession, AgentTurn]] = []
    events: list[tuple[float, LiveSession, AgentTurn]] = []
    scheduled = 0
    for script in scripts:
        live = LiveSession.of(script)
        heapq.heappush(coming, (script.arrival_s, scheduled, live, live.turns[0]))
        scheduled += 1
    working_set = most = 0
    lengths: dict[tuple[int, int], int] = {}  # tokens that an agent has for itself
    while coming:
        at_s, _, live, turn = heapq.heappop(coming)
        events.append((at_s, live, turn))
        agent = turn.session, turn.agent
        own = turn.new + turn.output - (live.script.shape.prompts[1] if turn.start == 0 else 0)
        lengths[agent] = lengths.get(agent, 0) + own
        working_set += own
        most = max(most, working_set)
        if turn.last:
            working_set -= lengths.pop(agent)
        for ready in live.over(turn):
            heapq.heappush(coming, (at_s + turn_s + ready.delay_s, scheduled, live, ready))
            scheduled += 1
    shapes = {(live.script.application, live.script.shape) for _, live, _ in events}
    prompts = sum(shape.kinds * shape.prompts[1] for _, shape in shapes)
    return Accesses(_look_ahead(events), most + prompts)


def _look_ahead(events: list[tuple[float, LiveSession, AgentTurn]]) -> list[Access]:
    """What happens next, found from the end on."""
    accesses: list[Access] = []
    used_s: dict[tuple[int, int], float] = {}  # by session and agent
    opened_s: dict[tuple[int, int], float] = {}  # by application and kind
    for at_s, live, turn in reversed(events):
        agent, prompt = (turn.session, turn.agent), (live.script.application, turn.kind)
        parent = (turn.session, turn.fork_of) if turn.turn == 0 and turn.fork_of is not None else None
        after = used_s.get(agent, inf), used_s.get(parent, inf), opened_s.get(prompt, inf)
        accesses.append(Access(at_s, live.script, turn, *after))
        used_s[parent or agent] = at_s
        if turn.turn == 0 and not parent:
            opened_s[prompt] = at_s
    return accesses[::-1]


class _Replay:
    """One cache, and the turns that pass through it."""

    def __init__(self, num_pages: int, page_size: int, policy: str, trust: float):
        self.now_s, self.policy, self.trust = 0.0, policy, trust
        self.cache = PrefixCache(Pages(num_pages, page_size), clock=lambda: self.now_s)
        self.sequences: dict[tuple[int, int], Sequence] = {}
        self.prompts: dict[tuple[int, int], Sequence] = {}  # for the clairvoyant: nobody's, but some will open with it
        self.computed = 0

    def take(self, access: Access) -> None:
        """One turn: find what is known, compute the rest, publish, rest."""
        cache, turn, self.now_s = self.cache, access.turn, access.at_s
        sequence = self._sequence(access)
        new, output = access.session.ids(turn)
        sequence.log += new
        cache.begin(sequence)
        cache.extend(sequence)
        missing = len(sequence.log) - sequence.kv_len
        self.computed += missing
        sequence.table.append(missing)
        cache.publish(sequence)
        if len(output) > 1:  # the last token of an answer is not forwarded
            sequence.log += output
            sequence.table.append(len(output) - 1)
            cache.publish(sequence)
        else:
            sequence.log += output
        cache.end(sequence, len(sequence.log))
        if self.policy == "clairvoyance":
            self._foresee(access, sequence)
        elif self.policy == "hints" and turn.hint_s is not None:
            cache.expect(sequence, TURN_S + self.trust * turn.hint_s)
        if turn.last:
            cache.release(self.sequences.pop((turn.session, turn.agent)))

    def _sequence(self, access: Access) -> Sequence:
        turn, cache = access.turn, self.cache
        agent = turn.session, turn.agent
        if agent not in self.sequences:
            if turn.fork_of is None:
                self.sequences[agent] = Sequence(cache.pool)
                cache.enter(self.sequences[agent], cache.tree.root(access.session.application))
            else:
                self.sequences[agent] = cache.fork(self.sequences[turn.session, turn.fork_of])
        return self.sequences[agent]

    def _foresee(self, access: Access, sequence: Sequence) -> None:
        """Tell the cache when what this turn has used is used next."""
        turn = access.turn
        self._expect(sequence, access.used_s)
        if turn.turn == 0 and turn.fork_of is not None:
            self._expect(self.sequences[turn.session, turn.fork_of], access.parent_s)
        if turn.turn or turn.fork_of is not None:
            return
        prompt = access.session.application, access.turn.kind
        if prompt not in self.prompts:
            self.prompts[prompt] = Sequence(self.cache.pool)
            self.cache.enter(self.prompts[prompt], self.cache.tree.root(access.session.application))
            self.prompts[prompt].log += [
                *access.session.prompt_ids(access.turn.kind),
                0,
            ]  # the last token is never found
        self.cache.begin(self.prompts[prompt])
        self.cache.end(self.prompts[prompt], len(self.prompts[prompt].log))
        self._expect(self.prompts[prompt], access.opened_s)

    def _expect(self, sequence: Sequence, when_s: float) -> None:
        if when_s < inf:
            self.cache.expect(sequence, when_s - self.now_s)


def replay(accesses: Accesses, num_pages: int, policy: str, *, page_size: int = 16, trust: float = 8.0) -> Cost:
    """Pass all turns through a cache of so many pages. Raises `OutOfPages` if a turn alone needs more.

    policy  "LRU", "hints" or "clairvoyance"
    trust   how many times the announced seconds a hint is believed
    """
    one = _Replay(num_pages, page_size, policy, trust)
    for access in accesses.turns:
        one.take(access)
    return Cost(sum(turn.start + turn.new for _, _, turn, *_ in accesses.turns), one.computed)


def compare_eviction(
    shape: Shape,
    *,
    count: int = 200,
    per_s: float = 0.1,
    seed: int = 0,
    pools: tuple[float, ...] = (2, 1, 1 / 2, 1 / 4, 1 / 8),
    policies: tuple[str, ...] = POLICIES,
    page_size: int = 16,
    trust: float = 8.0,
) -> pd.DataFrame:
    """Tokens computed and recomputed by each policy, for pools that are so large a share of the working set.

    `count` sessions, of which `per_s` arrive a second. Recomputed is what a policy computes beyond what a pool without
    limit would. The table's `attrs` have the number of turns and the working set, in tokens.
    """
    accesses = in_order(sessions(shape, seed, count=count, per_s=per_s))
    ample = sum(turn.new + turn.output for _, _, turn, *_ in accesses.turns) // page_size + 2 * len(accesses.turns)
    least = replay(accesses, ample, "LRU", page_size=page_size)
    rows = []
    with tqdm(total=len(pools) * len(policies), unit="replay", mininterval=1) as bar:
        for share in pools:
            num_pages = int(share * accesses.working_set / page_size)
            for policy in policies:
                bar.set_description(f"{policy}, {share:.3g} of the working set")
                cost = replay(accesses, num_pages, policy, page_size=page_size, trust=trust)
                recomputed = cost.computed - least.computed
                rows.append(
                    {
                        "pool": share,
                        "policy": policy,
                        "pages": num_pages,
                        "computed": cost.computed,
                        "recomputed": recomputed,
                        "recomputed share": recomputed / cost.prompts,
                        "hit rate": cost.hit_rate,
                    }
                )
                bar.update()
    table = pd.DataFrame(rows).set_index(["pool", "policy"])
    table.attrs |= {
        "sessions": count,
        "turns": len(accesses.turns),
        "prompt tokens": least.prompts,
        "working set": accesses.working_set,
    }
    return table
