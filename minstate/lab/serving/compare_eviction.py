"""What eviction costs: the same turns in the same order, on pools of several sizes, under three eviction policies.

    LRU           evict the pages that were used longest ago
    hints         evict them first, too, but spare the sessions whose agents announce their next turn by the typical
                  duration of their tool (`PrefixCache.expect`); of these, the session whose turn is furthest away
                  loses its pages first
    clairvoyance  as hints, but every announcement is true and none is missing: when a session's next turn begins, when
                  another session opens with the same prompt, and which sessions have ended

Clairvoyance is Belady's rule (IBM Systems Journal 5(2), 1966): evict the page whose next use is the furthest away. For
pages of one token, no policy recomputes fewer tokens. Each page costs the same to recompute. A turn needs its whole
path through the tree, which is not evicted while the turn runs. A turn that uses a page uses all pages above it, so
among the pages that are used last there is always the end of a leaf; evicting leaves first therefore excludes no best
choice. (Fewest tokens, not fewest FLOPs: later tokens attend to more keys.) With larger pages the rule is optimal
except for the last, partly filled page of each sequence.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from minstate.lab.serving.live_session import LiveSession, sequence_of
from minstate.lab.serving.stub_pool import StubPool
from minstate.lab.serving.traffic import AgentSession, AgentTurn, TrafficShape, draw_sessions
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence

TURN_S = 5.0  # every turn takes so long, so that the order of turns does not depend on the eviction policy
EVICTION_POLICIES = ("LRU", "hints", "clairvoyance")


class Access(NamedTuple):
    """A turn in the order of all turns, and what Belady's rule needs to know of it. Infinity means never."""

    at_s: float  # when it begins
    session: AgentSession
    turn: AgentTurn
    used_s: float  # when the log that it leaves behind is used next, by the agent or by a fork of it
    parent_s: float  # of a fork's first turn: when the log that was forked is used next
    opened_s: float  # when another session opens with the same prompt


@dataclass(frozen=True)
class AccessTrace:
    """All turns in a fixed order."""

    turns: list[Access]
    working_set: int  # tokens in the logs of the open sessions at their maximum, shared tokens counted once


@dataclass(frozen=True)
class ReplayCost:
    """What a replay had to compute, in tokens."""

    prompts: int  # of all turns: the whole log with the turn's input
    computed: int

    @property
    def hit_rate(self) -> float:
        """Share of the prompts that was not computed. (Outputs are computed in addition, under every policy.)"""
        return 1 - self.computed / self.prompts


def access_trace(scripts: Iterable[AgentSession], turn_s: float = TURN_S) -> AccessTrace:
    """All turns of all sessions in the order in which they begin, if each takes `turn_s`."""
    due: list[tuple[float, int, LiveSession, AgentTurn]] = []
    events: list[tuple[float, LiveSession, AgentTurn]] = []
    turns_due = 0
    for script in scripts:
        live = LiveSession.of(script)
        heapq.heappush(due, (script.arrival_s, turns_due, live, live.turns[0]))
        turns_due += 1
    working_set = most = 0
    lengths: dict[tuple[int, int], int] = {}  # tokens that each agent shares with no other
    while due:
        at_s, _, live, turn = heapq.heappop(due)
        events.append((at_s, live, turn))
        agent = turn.session, turn.agent
        own = turn.new + turn.output - (live.script.shape.prompts[1] if turn.start == 0 else 0)
        lengths[agent] = lengths.get(agent, 0) + own
        working_set += own
        most = max(most, working_set)
        if turn.last:
            working_set -= lengths.pop(agent)
        for ready in live.end(turn):
            heapq.heappush(due, (at_s + turn_s + ready.delay_s, turns_due, live, ready))
            turns_due += 1
    shapes = {(live.script.application, live.script.shape) for _, live, _ in events}
    prompts = sum(shape.kinds * shape.prompts[1] for _, shape in shapes)
    return AccessTrace(_look_ahead(events), most + prompts)


def _look_ahead(events: list[tuple[float, LiveSession, AgentTurn]]) -> list[Access]:
    """Find the next use of each log and prompt, from the last turn back to the first."""
    accesses: list[Access] = []
    used_s: dict[tuple[int, int], float] = {}  # by session and agent
    opened_s: dict[tuple[int, int], float] = {}  # by application and kind
    for at_s, live, turn in reversed(events):
        agent, prompt = (turn.session, turn.agent), (live.script.application, turn.kind)
        parent = (turn.session, turn.fork_of) if turn.turn == 0 and turn.fork_of is not None else None
        next_uses = used_s.get(agent, inf), used_s.get(parent, inf), opened_s.get(prompt, inf)
        accesses.append(Access(at_s, live.script, turn, *next_uses))
        used_s[parent or agent] = at_s
        if turn.turn == 0 and not parent:
            opened_s[prompt] = at_s
    return accesses[::-1]


class _CacheReplay:
    """A prefix cache under one eviction policy, and the turns that use it."""

    def __init__(self, num_pages: int, page_size: int, policy: str, trust: float):
        self.now_s, self.policy, self.trust = 0.0, policy, trust
        self.cache = PrefixCache(StubPool(num_pages, page_size), clock=lambda: self.now_s)
        self.sequences: dict[int, dict[int, Sequence]] = {}  # by session and agent
        # For clairvoyance: by application and kind, a sequence that stands for the sessions that will open with it.
        self.prompts: dict[tuple[int, int], Sequence] = {}
        self.computed = 0

    def run_turn(self, access: Access) -> None:
        """Find the K/V that the cache has, compute the rest and the output, publish both, and become idle."""
        cache, turn, self.now_s = self.cache, access.turn, access.at_s
        agents = self.sequences.setdefault(turn.session, {})
        sequence = sequence_of(turn, agents, access.session.application, cache)
        new, output = access.session.ids(turn)
        sequence.log += new
        cache.begin(sequence)
        cache.extend(sequence)
        missing = len(sequence.log) - sequence.kv_len
        self.computed += missing
        self._forward(sequence, missing)
        sequence.log += output
        if len(output) > 1:  # the last token of an output is not forwarded
            self._forward(sequence, len(output) - 1)
        cache.end(sequence, len(sequence.log))
        if self.policy == "clairvoyance":
            self._foresee(access, sequence, agents)
        elif self.policy == "hints" and turn.hint_s is not None:
            cache.expect(sequence, TURN_S + self.trust * turn.hint_s)
        if turn.last:
            cache.release(agents.pop(turn.agent))

    def _forward(self, sequence: Sequence, count: int) -> None:
        sequence.table.append(count)
        sequence.table.commit()
        self.cache.publish(sequence)

    def _foresee(self, access: Access, sequence: Sequence, agents: dict[int, Sequence]) -> None:
        """Tell the cache when the K/V that this turn has used is used next."""
        turn = access.turn
        self._expect(sequence, access.used_s)
        if turn.turn == 0 and turn.fork_of is not None:
            self._expect(agents[turn.fork_of], access.parent_s)
        if turn.turn or turn.fork_of is not None:
            return
        prompt = self._prompt(access.session, turn.kind)
        self.cache.begin(prompt)
        self.cache.end(prompt, len(prompt.log))
        self._expect(prompt, access.opened_s)

    def _prompt(self, session: AgentSession, kind: int) -> Sequence:
        key = session.application, kind
        if key not in self.prompts:
            self.prompts[key] = Sequence(self.cache.pool)
            self.cache.enter(self.prompts[key], self.cache.tree.root(session.application))
            self.prompts[key].log += [*session.prompt_ids(kind), 0]  # a match never covers the last token of a log
        return self.prompts[key]

    def _expect(self, sequence: Sequence, when_s: float) -> None:
        if when_s < inf:
            self.cache.expect(sequence, when_s - self.now_s)


def replay_accesses(
    trace: AccessTrace, num_pages: int, policy: str, *, page_size: int = 16, trust: float = 8.0
) -> ReplayCost:
    """Run all turns on a cache of `num_pages` pages. Raises `OutOfPages` if a turn alone needs more.

    policy  one of `EVICTION_POLICIES`
    trust   a hint protects a session's pages for this many times the announced seconds
    """
    replay = _CacheReplay(num_pages, page_size, policy, trust)
    for access in trace.turns:
        replay.run_turn(access)
    return ReplayCost(sum(turn.start + turn.new for _, _, turn, *_ in trace.turns), replay.computed)


def compare_eviction_policies(
    shape: TrafficShape,
    *,
    count: int = 200,
    per_s: float = 0.1,
    seed: int = 0,
    pools: tuple[float, ...] = (2, 1, 1 / 2, 1 / 4, 1 / 8),
    policies: tuple[str, ...] = EVICTION_POLICIES,
    page_size: int = 16,
    trust: float = 8.0,
) -> pd.DataFrame:
    """Tokens computed and recomputed under each policy, on pools whose sizes are shares of the working set.

    `count` sessions, of which `per_s` a second arrive. Recomputed are the tokens that a pool without limit would not
    have computed. The table's `attrs` have the number of turns and the working set, in tokens.
    """
    trace = access_trace(draw_sessions(shape, seed, count=count, per_s=per_s))
    ample = sum(turn.new + turn.output for _, _, turn, *_ in trace.turns) // page_size + 2 * len(trace.turns)
    least = replay_accesses(trace, ample, "LRU", page_size=page_size)
    rows = []
    with tqdm(total=len(pools) * len(policies), unit="replay", mininterval=1) as bar:
        for share in pools:
            num_pages = int(share * trace.working_set / page_size)
            for policy in policies:
                bar.set_description(f"{policy}, {share:.3g} of the working set")
                cost = replay_accesses(trace, num_pages, policy, page_size=page_size, trust=trust)
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
        "turns": len(trace.turns),
        "prompt tokens": least.prompts,
        "working set": trace.working_set,
    }
    return table
