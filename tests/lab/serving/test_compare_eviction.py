"""Eviction policies compared: clairvoyance is optimal, hints help, and the order of turns is the traffic's."""

import itertools
from dataclasses import dataclass
from functools import cache
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minstate.lab.serving.compare_eviction import (
    EVICTION_POLICIES,
    Access,
    AccessTrace,
    access_trace,
    compare_eviction_policies,
    replay_accesses,
)
from minstate.lab.serving.traffic import AgentTurn, TrafficShape, draw_sessions

SMALL = TrafficShape.for_context(1_500, turns=6, subagent_turns=3, with_subagents=0.7, applications=2)
PROMPT, OUTPUT = [0, 1], 2  # every session begins with this prompt, and has this output


@dataclass
class Script:
    """A session by hand: one application, one kind of agent."""

    new: list[int]
    application: int = 0

    def ids(self, turn):
        return self.new, [OUTPUT]

    def prompt_ids(self, kind):
        return PROMPT


def hand_made(logs: list[tuple[int, list[int]]]) -> tuple[AccessTrace, list[tuple[int, ...]]]:
    """Turns of (session, new tokens), one a second; and the log of each turn with its input."""
    turns, paths, full = [], [], {}
    first_s = {session: at_s for at_s, (session, _) in reversed(list(enumerate(logs)))}
    for at_s, (session, new) in enumerate(logs):
        before, added = full.get(session, []), new if session in full else PROMPT + new
        used_s = min((when for when, (other, _) in enumerate(logs) if other == session and when > at_s), default=inf)
        opened_s = min((when for when in first_s.values() if when > at_s), default=inf)
        turn = AgentTurn(
            session, 0, int(bool(before)), 0, (), 0.0, None, len(before), len(added), 1, None, last=used_s == inf
        )  # fmt: skip
        turns.append(Access(float(at_s), Script(added), turn, used_s, inf, opened_s))
        paths.append(tuple(before + added))
        full[session] = [*before, *added, OUTPUT]
    return AccessTrace(turns, 0), paths


def fewest_computed(paths: list[tuple[int, ...]], num_pages: int) -> int:
    """The fewest tokens over all orders of eviction that take leaves first; a page has one token."""

    def shrunk(pages: frozenset, needed: set, excess: int) -> set[frozenset]:
        found = {pages}
        for _ in range(excess):
            found = {
                kept - {page}
                for kept in found
                for page in kept - needed
                if not any(other[:-1] == page for other in kept)
            }
        return found

    @cache
    def fewest(at: int, pages: frozenset) -> int:
        if at == len(paths):
            return 0
        needed = {paths[at][:end] for end in range(1, len(paths[at]) + 1)}
        options = shrunk(pages | needed, needed, max(0, len(pages | needed) - num_pages))
        return len(needed - pages) + min(fewest(at + 1, kept) for kept in options)

    return fewest(0, frozenset())


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=2)), min_size=4, max_size=8),
    st.integers(0, 4),
)
def test_clairvoyance_computes_as_little_as_any_eviction_order(logs, spare):
    """Sessions with the same prompt that differ behind it, against all possible choices."""
    logs = [(session, [3 + session * 2 + token for token in new]) for session, new in logs]
    accesses, paths = hand_made(logs)
    num_pages = max(len(path) for path in paths) + spare
    best = fewest_computed(paths, num_pages)
    assert replay_accesses(accesses, num_pages, "clairvoyance", page_size=1).computed == best
    assert replay_accesses(accesses, num_pages, "LRU", page_size=1).computed >= best


@pytest.mark.parametrize("seed", range(6))
def test_clairvoyance_is_never_worse_on_traffic(seed):
    shape = TrafficShape.for_context(1_000, turns=12, with_subagents=0.6, applications=2)
    accesses = access_trace(draw_sessions(shape, seed, count=14, per_s=0.2))
    longest = max(turn.start + turn.new + turn.output for _, _, turn, *_ in accesses.turns)
    for share in (1.0, 0.5, 0.3):
        num_pages = max(longest, int(share * accesses.working_set))
        costs = {
            policy: replay_accesses(accesses, num_pages, policy, page_size=1).computed for policy in EVICTION_POLICIES
        }
        assert costs["clairvoyance"] <= min(costs.values()), costs


def test_hints_lie_between_recency_and_clairvoyance_on_average():
    shape = TrafficShape.for_context(1_500, turns=15)
    tables = [compare_eviction_policies(shape, count=16, per_s=0.15, seed=seed, pools=(0.7, 0.35)) for seed in range(3)]
    mean = sum(table["recomputed"] for table in tables).groupby("policy").sum()
    assert mean["clairvoyance"] < mean["hints"] < mean["LRU"]
    assert all((table["recomputed"] >= 0).all() for table in tables)


def test_no_turn_comes_before_the_turns_that_it_waits_for():
    accesses = access_trace(draw_sessions(SMALL, 4, count=10, per_s=0.3))
    ended: dict[tuple, float] = {}
    for (at_s, _, turn, *_), (after_s, *_) in itertools.pairwise([*accesses.turns, accesses.turns[-1]]):
        assert at_s <= after_s
        assert all(ended[turn.session, *name] <= at_s for name in turn.after)
        ended[turn.session, *turn.name] = at_s + 5.0
    assert accesses.working_set > 0
