"""Which pages are evicted first: against a slow specification that ranks every page, and counted with many sessions."""

import random
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import engine

from minstate import BrokenInvariant, Sampling, radix_tree
from minstate.invariants import check_cache
from minstate.lab.serving.stub_pool import StubPool
from minstate.prefix_cache import PrefixCache
from minstate.radix_node import EvictionRank
from minstate.ranked_queue import RankedQueue
from minstate.sequence import Sequence

FREE = Sampling(ignore_eos=True)


class Clock:
    """Stands still unless it is told otherwise."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def new_cache(num_pages: int = 64, page_size: int = 1) -> PrefixCache:
    return PrefixCache(StubPool(num_pages, page_size), Clock())


def opened(cache: PrefixCache, root=None) -> Sequence:
    sequence = Sequence(cache.pool)
    cache.enter(sequence, root or cache.tree.root("a"))
    return sequence


def forward(cache: PrefixCache, sequence: Sequence) -> None:
    """What the steps of a turn do: find what is cached, compute the rest but for the last token, publish."""
    cache.extend(sequence)
    sequence.table.append(max(0, len(sequence.log) - 1 - sequence.kv_len))
    sequence.table.commit()
    cache.publish(sequence)


def take_turn(cache: PrefixCache, sequence: Sequence, new: list[int]) -> Sequence:
    sequence.log += new
    cache.begin(sequence)
    forward(cache, sequence)
    cache.end(sequence, len(sequence.log))
    return sequence


def test_each_interval_of_a_log_fares_as_the_ruler_in_the_prefix_cache_says():
    cache = new_cache(page_size=4)
    sequence, other = opened(cache), opened(cache)
    tree, table, allocator = cache.tree, sequence.table, cache.pool.allocator

    def ruler():
        return table.borrowed_tokens, sequence.kv_len, len(sequence.log)

    for each in (sequence, other):  # both compute the same 14 tokens in one step
        each.log += range(20)
        cache.begin(each)
        each.table.append(14)
        each.table.commit()
    assert ruler() == (0, 14, 20) and allocator.num_free == 64 - 2 * 4
    cache.publish(sequence)
    assert ruler() == (12, 14, 20) and (tree.num_pages, tree.num_locked) == (3, 3), "full pages become the tree's"
    cache.publish(other)
    assert other.table.pages[:3] == table.pages[:3] and allocator.num_free == 64 - 4 - 1, "or are freed"

    cache.pause(other)
    cache.pause(sequence)
    assert ruler() == (12, 14, 20) and tree.num_locked == 0 and set(cache.idle_tails) == {sequence, other}
    cache.begin(sequence)
    assert ruler() == (12, 14, 20) and tree.num_locked == 3 and set(cache.idle_tails) == {other}
    forward(cache, sequence)
    assert ruler() == (16, 19, 20)
    cache.end(sequence, 11)
    assert ruler() == (8, 8, 11) and (tree.num_pages, tree.num_locked) == (4, 0), "whole pages up to ten tokens"

    sequence.log += [11, 12, 50, 51]
    cache.begin(sequence)
    assert ruler() == (12, 12, 15), "pages that are in the tree are borrowed again"
    forward(cache, sequence)
    cache.end(sequence, 15)
    cache.release(other)
    check_cache(cache, [sequence], [])
    left = []
    for _ in range(5):
        cache.make_room(1)
        cache.refresh(sequence)
        left.append(ruler())
    assert left == [(12, 14, 15), (12, 12, 15), (8, 8, 15), (4, 4, 15), (0, 0, 15)], (
        "13 to 16, the tail, then from the end"
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.none() | st.integers(0, 4)), max_size=80))
def test_a_ranked_queue_gives_the_lowest_rank_first_and_keeps_few_outdated_entries(changes):
    queue, expected = RankedQueue(), {}
    for number, (item, rank) in enumerate(changes):
        if rank is None:
            assert queue.remove(item) == expected.pop(item, (None,))[0]
        elif expected.get(item, (None,))[0] != rank:
            queue.put(item, rank)
            expected[item] = rank, number
        else:
            queue.put(item, rank)  # keeps its turn
        assert queue.first() == min(expected, key=expected.get, default=None)
        assert len(queue) == len(expected) and all(queue.rank(item) == expected[item][0] for item in expected)
        assert len(queue._heap) <= 2 * len(queue)


@dataclass(eq=False)
class Agent:
    """What the specification knows of a sequence."""

    sequence: Sequence
    log: list[int]
    place: int  # the sequence remembers pages for so many tokens of its log
    expected: float | None = None
    running: bool = False


class Specification:
    """Every page by itself, of one token: when it was last used, and which agents are expected to need it.

    A page is a prefix. Only a page that no longer prefix continues, and that no running turn needs, may be evicted.
    Pages that no agent is expected to need go first, the least recently used first; then the page that is needed last.
    """

    def __init__(self):
        self.now, self.ticks = 0.0, 0
        self.used: dict[tuple, int] = {}  # resident pages
        self.agents: list[Agent] = []

    def published(self, agent) -> None:
        agent.place = len(agent.log) - 1
        for end in range(1, agent.place + 1):
            self.used.setdefault(tuple(agent.log[:end]), 0)

    def rest(self, agent) -> None:
        self.ticks += 1
        for end in range(1, agent.place + 1):
            self.used[tuple(agent.log[:end])] = self.ticks

    def needed_by(self, page):
        return [agent for agent in self.agents if agent.place >= len(page) and tuple(agent.log[: len(page)]) == page]

    def needed_at(self, page) -> float | None:
        return min((agent.expected for agent in self.needed_by(page) if agent.expected is not None), default=None)

    def candidates(self):
        inner = {page[:-1] for page in self.used}
        free = [page for page in self.used if page not in inner]
        return [page for page in free if not any(agent.running for agent in self.needed_by(page))]

    def victims(self):
        """The candidates that may go next: several, if they are equal."""
        needed_at = {page: self.needed_at(page) for page in self.candidates()}
        unexpected = [page for page, time in needed_at.items() if time is None]
        if unexpected:
            oldest = min(self.used[page] for page in unexpected)
            return [page for page in unexpected if self.used[page] == oldest]
        return [page for page, time in needed_at.items() if time == max(needed_at.values())]

    def drop_late_expectations(self) -> None:
        for agent in self.agents:
            if agent.expected is not None and agent.expected < self.now:
                agent.expected = None

    def evict(self, page) -> None:
        for agent in self.needed_by(page):
            agent.place = len(page) - 1
        del self.used[page]


def resident_pages(cache: PrefixCache) -> set[tuple]:
    """All prefixes that the tree has a page for."""
    found, waiting = set(), [(cache.tree.root("a"), ())]
    while waiting:
        node, above = waiting.pop()
        key = node.key
        tokens = above + tuple(int.from_bytes(key[i : i + 4], "big") for i in range(0, len(key), 4))
        found |= {tokens[:end] for end in range(node.start + 1, len(tokens) + 1)}
        waiting += [(child, tokens) for child in node.children]
    return found


@settings(max_examples=5 * settings.default.max_examples)
@given(st.integers(0, 2**32))
def test_each_page_that_goes_is_the_one_that_the_specification_names(seed):
    cache, spec, draw = new_cache(num_pages=400), Specification(), random.Random(seed)

    def agents(running=False):
        return [agent for agent in spec.agents if agent.running == running]

    def add(sequence, log, place):
        spec.agents.append(Agent(sequence, list(log), place))
        return spec.agents[-1]

    def check():
        check_cache(cache, [agent.sequence for agent in spec.agents], [agent.sequence for agent in agents(True)])
        assert resident_pages(cache) == set(spec.used)

    for _ in range(60):
        what = draw.choices(
            ["open", "begin", "end", "expect", "fork", "rollback", "evict", "wait", "release"],
            [2, 6, 4, 5, 3, 2, 9, 2, 1],
        )[0]
        idle, running = agents(), agents(True)
        agent = draw.choice(idle) if idle else None
        if what == "open" and len(spec.agents) < 7:
            add(opened(cache), [], 0)
        elif what == "begin" and agent:
            sequence = agent.sequence
            new = [draw.randrange(2) for _ in range(draw.randrange(1, 5))]
            agent.log += new
            sequence.log += new
            cache.begin(sequence)
            forward(cache, sequence)
            agent.running, agent.expected = True, None
            spec.published(agent)
        elif what == "end" and running:
            agent = draw.choice(running)
            cache.end(agent.sequence, len(agent.log))
            agent.running = False
            spec.rest(agent)
        elif what == "expect" and agent:
            seconds = draw.randrange(12)
            cache.expect(agent.sequence, seconds)
            agent.expected = spec.now + seconds
        elif what == "fork" and agent and len(spec.agents) < 7:
            child = add(cache.fork(agent.sequence), agent.log, agent.place)
            spec.rest(agent)
            spec.rest(child)
        elif what == "rollback" and agent and agent.log:
            length = draw.randrange(len(agent.log))
            cache.rollback(agent.sequence, length)
            del agent.log[length:]
            agent.place = min(agent.place, max(0, length - 1))
            spec.rest(agent)
        elif what == "wait":
            spec.now += draw.randrange(1, 5)
            cache._clock.now = spec.now
        elif what == "release" and agent:
            cache.release(agent.sequence)
            spec.agents.remove(agent)
            if not spec.agents:
                return
        elif what == "evict":
            for _ in range(draw.randrange(1, 6)):
                spec.drop_late_expectations()
                free, victims = cache.pool.allocator.num_free, spec.victims()
                cache.make_room(1)
                evicted = set(spec.used) - resident_pages(cache)
                assert len(evicted) == cache.pool.allocator.num_free - free == (1 if victims else 0)
                for page in evicted:
                    assert page in victims
                    spec.evict(page)
        check()


@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_an_expected_sequence_loses_nothing_while_any_other_page_can_be_evicted(seed, page_size, private):
    """Also with pages of several tokens, tails, aborted turns, and roots of their own."""
    draw = random.Random(seed)
    cache, open_ones, running = new_cache(num_pages=60, page_size=page_size), [], []
    expected: dict[Sequence, float] = {}
    for _ in range(60):
        idle = [sequence for sequence in open_ones if sequence not in running]
        one = draw.choice(idle) if idle else None
        what = draw.choice(
            ["open", "begin", "begin", "end", "abort", "expect", "fork", "rollback", "evict", "wait", "go"]
        )
        if what == "open" and len(open_ones) < 8:
            open_ones.append(opened(cache, cache.tree.private_root() if private else None))
        elif what == "begin" and one and len(running) < 2 and len(one.log) < 20:
            one.log += [draw.randrange(2) for _ in range(draw.randrange(1, 6))]
            cache.begin(one)
            forward(cache, one)
            expected.pop(one, None)
            running.append(one)
        elif what in ("end", "abort") and running:
            one = running.pop()
            cache.end(one, len(one.log) if what == "end" else draw.randrange(len(one.log)))
        elif what == "expect" and one:
            expected[one] = cache._clock.now + draw.randrange(12)
            cache.expect(one, expected[one] - cache._clock.now)
        elif what == "fork" and one and len(open_ones) < 8:
            open_ones.append(cache.fork(one))
        elif what == "rollback" and one and one.log:
            cache.rollback(one, draw.randrange(len(one.log)))
        elif what == "wait":
            cache._clock.now += draw.randrange(1, 5)
        elif what == "go" and one:
            open_ones.remove(one)
            expected.pop(one, None)
            cache.release(one)
        elif what == "evict":
            expected = {each: when for each, when in expected.items() if when >= cache._clock.now}
            had = {each: cache.resident_tokens(each) for each in expected}
            available, free = cache.num_available, cache.pool.allocator.num_free
            count = draw.randrange(1, 9)
            cache.make_room(count)
            assert cache.pool.allocator.num_free == min(free + count, available)
            if any(cache.resident_tokens(each) < had[each] for each in had):
                left = [leaf.rank for leaf in cache.tree.evictable_leaves]
                assert all(rank.is_expected for rank in left), "expected pages went, and unexpected pages were left"
        check_cache(cache, open_ones, running)


def test_what_a_fork_puts_behind_an_expected_sequence_is_not_spared_for_it():
    """An orchestrator waits; the pages of its sub-agent are of no use to it once the sub-agent is closed."""
    cache = new_cache(page_size=2)
    parent = take_turn(cache, opened(cache), [1, 2, 3, 4, 5])
    cache.expect(parent, 100)
    child = take_turn(cache, cache.fork(parent), [6, 7, 8, 9, 10])
    stranger = take_turn(cache, opened(cache), [50, 51, 52])
    check_cache(cache, [parent, child, stranger], [])
    cache.release(child)
    cache.make_room(3)
    assert (cache.resident_tokens(parent), cache.resident_tokens(stranger)) == (4, 0)
    assert cache.tree.num_pages == 2, "only what the parent needs is left"


def test_what_a_fork_put_there_before_is_not_spared_either():
    cache = new_cache()
    parent = take_turn(cache, opened(cache), [1, 2, 3])
    child = take_turn(cache, cache.fork(parent), [4, 5, 6])
    cache.expect(parent, 100)
    cache.release(child)
    cache.make_room(100)
    check_cache(cache, [parent], [])
    later = take_turn(cache, opened(cache), [7, 8, 9])
    cache.expect(parent, 100)
    cache.make_room(2)
    assert cache.resident_tokens(later) == 0


def test_being_forked_is_a_use_of_what_is_forked_and_of_nothing_behind_it():
    cache = new_cache()
    parent = take_turn(cache, opened(cache), [1, 2, 3])
    child = take_turn(cache, cache.fork(parent), [4, 5, 6])
    other = take_turn(cache, opened(cache), [7, 8, 9])
    third = cache.fork(parent)
    cache.make_room(1)
    assert [cache.resident_tokens(one) for one in (parent, child, other, third)] == [2, 4, 2, 2], (
        "the child's last page went"
    )
    check_cache(cache, [parent, child, other, third], [])


def test_the_latest_goes_on_being_the_latest_when_it_has_lost_some():
    """A sequence that lost pages is still expected: it does not lose the rest before unexpected sequences do."""
    cache = new_cache()
    soon, late = (take_turn(cache, opened(cache), [first, *range(9)]) for first in (50, 60))
    cache.expect(soon, 10)
    cache.expect(late, 20)
    cache.make_room(4)
    assert (cache.resident_tokens(soon), cache.resident_tokens(late)) == (9, 5)
    silent = take_turn(cache, opened(cache), [70, *range(9)])
    cache.make_room(9)
    assert (cache.resident_tokens(soon), cache.resident_tokens(late), cache.resident_tokens(silent)) == (9, 5, 0)
    cache.expect(soon, 30)  # a new hint replaces the old one
    cache.make_room(2)
    assert (cache.resident_tokens(soon), cache.resident_tokens(late)) == (7, 5)
    check_cache(cache, [soon, late, silent], [])


def test_a_rolled_back_session_is_still_expected_and_spares_only_what_it_has_left():
    e = engine(num_pages=64)
    session, other = e.open(), e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=1, sampling=FREE)
    mark = session.mark()
    session.send(token_ids=[6] * 20, max_new_tokens=1, sampling=FREE)
    session.expect(100.0)
    session.rollback(mark)
    e.check()
    other.send(token_ids=[7] * 20, max_new_tokens=1, sampling=FREE)
    e.cache.make_room(5)
    assert other.resident == 20, "what was rolled back rested longer"
    e.cache.make_room(5)
    assert (session.resident, other.resident) == (8, 0)


def test_an_expected_tail_goes_after_those_that_are_not_and_before_its_own_pages():
    cache = new_cache(page_size=4)
    first, second, third = (take_turn(cache, opened(cache), [i] * 7) for i in (5, 6, 7))  # a page and a tail each
    cache.expect(first, 10)
    cache.expect(second, 20)
    left = []
    for _ in range(6):
        cache.make_room(1)
        check_cache(cache, [first, second, third], [])
        left.append(tuple(cache.resident_tokens(one) for one in (first, second, third)))
    assert left == [(6, 6, 4), (6, 6, 0), (6, 4, 0), (6, 0, 0), (4, 0, 0), (0, 0, 0)]


def test_a_late_tail_is_as_old_as_its_last_use():
    cache = new_cache(page_size=4)
    late, other = (take_turn(cache, opened(cache), [i] * 7) for i in (5, 6))
    cache.expect(late, 1)
    cache._clock.now = 2.0
    cache.make_room(1)
    assert (cache.resident_tokens(late), cache.resident_tokens(other)) == (4, 6)
    check_cache(cache, [late, other], [])


def calls_to_make_room(sessions: int, victims: int = 50) -> tuple[int, int]:
    """Function calls, Python's and C's, and tree nodes visited, to evict so many pages of expected sessions."""
    cache = new_cache(num_pages=8 * sessions, page_size=2)
    allocator = cache.pool.allocator  # nothing is freed at first: the next page is free, no need to look for gaps
    allocator.allocate = lambda count, after=None: allocator._take(allocator.num_pages - allocator.num_free, count)
    order = random.Random(0).sample(range(sessions), sessions)
    for number in range(sessions):
        sequence = take_turn(cache, opened(cache), [1, 1, 1, 1, 5 + number, 5 + number, 5 + number, 5 + number, 9])
        cache.expect(sequence, 10 + order[number])
    cache.make_room(1)  # skips the entries that are outdated by now
    calls, visited = 0, cache.tree.nodes_visited

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for _ in range(victims):
            cache.make_room(1)
    finally:
        sys.setprofile(None)
    return calls, cache.tree.nodes_visited - visited


def test_making_room_among_ten_thousand_expected_sessions_looks_at_few():
    few, many = calls_to_make_room(sessions=100), calls_to_make_room(sessions=10_000)
    assert many[0] <= 50 * 60 and many[0] <= 1.2 * few[0], "calls for a page do not grow with the sessions"
    assert many[1] == 0, "and no place in the tree is looked up"


def test_giving_up_the_late_costs_once_for_each():
    cache = new_cache(num_pages=4000)
    sequences = [take_turn(cache, opened(cache), [number, 1]) for number in range(1000)]
    for sequence in sequences:
        cache.expect(sequence, 1)
    cache._clock.now = 2.0
    cache.make_room(1)
    assert not cache.expected_returns and cache.tree.nodes_visited <= 1000
    check_cache(cache, sequences, [])


@pytest.mark.parametrize("damage", ["no node", "other node", "other time", "running", "tail", "grown"])
def test_check_finds_wrong_expectations(damage):
    cache = new_cache(page_size=2)
    first, second = (take_turn(cache, opened(cache), [i] * 6) for i in (5, 6))
    cache.expect(first, 10)
    sequences, running = [first, second], []
    check_cache(cache, sequences, running)
    if damage == "no node":
        cache.tree.unexpect(first.node, 10)
    elif damage == "other node":
        cache.tree.unexpect(first.node, 10)
        cache.tree.expect(second.node, 10)
    elif damage == "other time":
        cache.expected_returns.put(first, 11)
    elif damage == "running":
        cache.running.add(first)
        running.append(first)
        cache.tree.lock(first.node, first.node.end)
        cache.idle_tails.remove(first)
    elif damage == "tail":
        cache.idle_tails.put(first, EvictionRank.of(last_used=1, expected_at=None))
    else:
        sequences.append(take_turn(cache, cache.fork(second), [7, 8, 9]))  # in the same node
        check_cache(cache, sequences, running)
        cache.expected_returns.put(second, 20)
        cache._rank_tail(second)
        cache.tree.expect(second.node, 20)
    with pytest.raises(BrokenInvariant):
        check_cache(cache, sequences, running)


def test_a_long_prompt_without_a_match_is_not_read_again_at_every_step(monkeypatch):
    """While a prompt is prefilled in chunks, each step looks whether other sequences have published more of it."""
    cache, encoded, encode = new_cache(num_pages=8000, page_size=4), [], radix_tree.encode
    monkeypatch.setattr(radix_tree, "encode", lambda tokens: encoded.append(len(tokens)) or encode(tokens))
    sequence = opened(cache)
    sequence.log += range(20_000)
    cache.begin(sequence)
    cache.extend(sequence)
    assert sum(encoded) <= 4 * 4


@pytest.mark.parametrize("seconds", [1e9, float("inf")])
def test_a_tenants_hints_leave_other_tenants_their_share(seconds):
    e = engine(num_pages=40)
    greedy, modest, recomputed = [e.open(tenant="greedy") for _ in range(4)], e.open(tenant="modest"), []
    for new in (37, 1, 1, 1):
        for number, session in enumerate(greedy):
            session.send(token_ids=[10 + number] * new, max_new_tokens=1, sampling=FREE)
            session.expect(seconds)
            e.check()
            protected = {page for sequence in e.cache.expected_returns for page in sequence.table.pages}
            assert len(protected) <= 20
            recomputed.append(
                modest.send(token_ids=[9] * min(new, 3), max_new_tokens=1, sampling=FREE).stats.recomputed
            )
    assert sum(recomputed) == 0
