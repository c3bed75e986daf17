"""The prefix cache: how pages pass between sequences and the prefix tree, who owns each page, and for how long.

    free ──append──▶ private to one sequence ──publish──▶ owned by the tree ──evict──▶ free

- A *running* turn has its place in the tree locked. After every step it publishes its full pages: the tree owns them
  from then on, the sequence borrows them, and other sequences may borrow them too.
- An *idle* sequence locks nothing. It remembers its place, and keeps the pages behind it, its tail. Eviction may take
  both, and `refresh` cuts the sequence to what is left. Nothing ever waits for an idle session.
- Whole pages are shared by reference. Where a match ends inside a page, the common prefix of that page is copied, so
  reuse is exact to the token.

A ruler over a sequence's log, in tokens, with `borrowed` for `table.borrowed_tokens`:

                    0              borrowed                            kv_len       len(log)
    before publish  ├──────────────────┼──────────────────────────────────┼─────────────┤
                    │ the tree's pages │ own pages: full, full, partial   │ no K/V      │
    after publish   ├──────────────────┴────────────────────────┬─────────┼─────────────┤
                    │ the tree's pages                          │ partial │ no K/V      │
                    0                                       borrowed   kv_len       len(log)

               [0, borrowed)                       [borrowed, kv_len)                 [kv_len, len(log))
    owner      the tree; other sequences read it   the sequence, with its forks       none: no pages
    publish    grows by the full pages             full pages become the tree's, or   still to be forwarded
                                                   are freed if it has them already
    end(n)     cut to n - 1 tokens, by whole       cut to n - 1 tokens, now an idle   log cut to n: at least
               pages, and unlocked                 tail                               one token is left
    pause      unlocked                            now an idle tail                   waits for the turn
    eviction   after the tail, page by page        first, all at once                 grows by the evicted
    (if idle)  from the end                                                           tokens
    begin      locked as far as it is left, then   kept, unless it was evicted, or    holds the new input
               grows by other sequences' pages     other sequences' pages replace it
"""

import time
from collections.abc import Callable
from contextlib import suppress

from minstate.errors import OutOfPages
from minstate.paged_kv import KVPool
from minstate.radix_node import EvictionRank, Node, PagePrefix, Place
from minstate.radix_tree import RadixTree
from minstate.ranked_queue import RankedQueue
from minstate.sequence import Sequence
from minstate.tiers import Promotion, Tiers

LONGEST_HINT_S = 86_400.0  # a day


class PrefixCache:
    """All sequences of one pool, the tree that they share, and the order in which they lose their pages."""

    def __init__(self, pool: KVPool, clock: Callable[[], float] = time.monotonic, tiers: Tiers | None = None):
        self.pool, self.tree, self._clock = pool, RadixTree(pool.allocator, pool.page_size), clock
        self.tiers = tiers or Tiers(pool)
        self.tree.demote = self.tiers.demote
        self.running: set[Sequence] = set()  # three views of the sequences, to be read only
        self.idle_tails: RankedQueue[Sequence, EvictionRank] = RankedQueue()  # idle sequences with own pages
        self.expected_returns: RankedQueue[Sequence, float] = RankedQueue()  # idle; when the next turn is expected
        pool.allocator.reclaim = self.make_room

    def enter(self, sequence: Sequence, root: Node) -> None:
        """Let a sequence without K/V share pages with the sequences under `root`."""
        sequence.root = sequence.node = root
        self.tree.join(root)
        self._limit_hints()

    def begin(self, sequence: Sequence) -> None:
        """A turn begins: find what eviction has left, lock it, and borrow what the tree has of the log besides."""
        self.refresh(sequence)
        self.idle_tails.remove(sequence)
        self._unexpect(sequence)
        self.running.add(sequence)
        sequence.node = self.tree.lock(sequence.node, sequence.table.borrowed_tokens)
        self._borrow_pages(sequence)

    def extend(self, sequence: Sequence) -> int:
        """While a prompt is prefilled: take what other sequences have published of it. Returns the tokens gained."""
        before = sequence.kv_len
        self._borrow_pages(sequence)
        self._copy_page_prefix(sequence)
        return sequence.kv_len - before

    def promote(self, sequence: Sequence) -> Promotion:
        """A turn is admitted: bring back from lower tiers what costs less to move than to compute."""
        promoted = self.tiers.promote(sequence, self.tree.tick())
        self.publish(sequence)
        return promoted

    def publish(self, sequence: Sequence) -> None:
        """After a step: the tree takes the sequence's full pages, and the sequence borrows the canonical ones."""
        table = sequence.table
        full = table.pages[table.borrowed : sequence.kv_len // self.pool.page_size]
        if full:
            sequence.node, _, pages = self.tree.insert(sequence.node, sequence.log, full)
            table.borrow(pages)  # duplicates are freed only now that the table has the canonical pages

    def end(self, sequence: Sequence, length: int) -> None:
        """The turn is over, and `length` tokens of the log stay."""
        locked = sequence.node
        sequence.truncate(length)
        self.running.discard(sequence)
        self._rest(sequence)
        self.tree.unlock(locked)

    def pause(self, sequence: Sequence) -> None:
        """The turn is preempted: its sequence keeps its K/V as an idle one does, until eviction takes it."""
        self.end(sequence, len(sequence.log))

    def cached_tokens(self, sequence: Sequence) -> int:
        """How many tokens a turn of this idle sequence would find: its own K/V, or whole pages of the tree."""
        return max(self._find(sequence).at, sequence.kv_len)

    def read_ahead(self, sequence: Sequence) -> None:
        """The idle sequence's turn is admitted next: begin to read from the disk what `promote` will want."""
        if self.tiers.next is not sequence:
            self.tiers.read_ahead(sequence, self._find(sequence), self.tree.tick())

    def rollback(self, sequence: Sequence, length: int) -> None:
        """Cut an idle sequence's log to `length` tokens. If the sequence is expected back, it remains so."""
        self.refresh(sequence)
        when = self._unexpect(sequence)
        sequence.truncate(length)
        self._rest(sequence)
        if when is not None:
            self._expect(sequence, when)

    def recall(self, sequence: Sequence) -> None:
        """Give an idle sequence what the tree and the tiers have of its log, as if a turn began."""
        when = self.expected_returns.get(sequence)
        self.begin(sequence)
        try:
            self.promote(sequence)
        finally:
            self.pause(sequence)
        if when is not None:
            self._expect(sequence, when)

    def fork(self, sequence: Sequence) -> Sequence:
        """A second idle sequence with the same log and pages. The first of the two to write into the tail copies it."""
        self._rest(sequence)  # being forked is a use
        child = Sequence(self.pool)
        child.log, child.table = list(sequence.log), sequence.table.fork()
        self.enter(child, sequence.root)
        child.node, child.speculator = sequence.node, sequence.speculator and sequence.speculator.fork()
        self._rest(child)
        return child

    def release(self, sequence: Sequence) -> None:
        """The idle sequence will not come back: give up its tail, and a private root that no other sequence uses."""
        self.refresh(sequence)
        self.idle_tails.remove(sequence)
        self._unexpect(sequence)
        sequence.table.truncate(0)
        self.tree.leave(sequence.root)

    def unshare_tail(self, sequence: Sequence) -> None:
        """Take a shared tail away from the idle forks of `sequence`, so that `sequence` need not copy it."""
        tail = set(sequence.table.own_pages)
        for idle in [idle for idle in self.idle_tails if tail & set(idle.table.own_pages)]:
            self.idle_tails.remove(idle)
            idle.table.truncate(idle.table.borrowed_tokens)

    def resident_tokens(self, sequence: Sequence) -> int:
        """How many tokens of an idle sequence have K/V that eviction has left."""
        borrowed = sequence.table.borrowed_tokens
        _, at = self.tree.climb(sequence.node, borrowed)
        return at if at < borrowed else sequence.kv_len

    def refresh(self, sequence: Sequence) -> None:
        """Cut an idle sequence's K/V to what eviction has left of it."""
        before = sequence.table.borrowed_tokens
        sequence.node, at = self.tree.climb(sequence.node, before)
        if at < before:
            self.idle_tails.remove(sequence)
            sequence.table.truncate(at)

    def expect(self, sequence: Sequence, seconds: float) -> None:
        """The idle sequence's next turn is expected in so many seconds: until then other sequences lose pages first.

        A hint holds for `LONGEST_HINT_S` at most. The hints of a tenant protect at most its share of the pool, which is
        the same for all tenants: where they would protect more, those furthest in the future are dropped.
        """
        self.refresh(sequence)
        self._unexpect(sequence)
        self._expect(sequence, self._clock() + min(seconds, LONGEST_HINT_S))
        self._limit_hints()
        self.tiers.find(self._find(sequence), sequence.log, self.tree.tick())

    def make_room(self, count: int) -> None:
        """Free `count` pages, or as many as can be freed: idle tails and leaves of the tree, by `EvictionRank`.

        The least recently used pages go first, and pages that are expected to be needed go last. An expectation that
        has not come true in time does not count any more.
        """
        allocator = self.pool.allocator
        target = allocator.num_free + count
        self._drop_late_expectations()
        while allocator.num_free < target:
            leaf, idle = self.tree.next_victim(), self.idle_tails.first()
            # Of equal ranks the tail goes first: it is of no use without the pages in front of it.
            if idle and (leaf is None or self.idle_tails.rank(idle) <= leaf.rank):
                self.idle_tails.remove(idle)
                idle.table.truncate(idle.table.borrowed_tokens)
            elif leaf:
                self.tree.trim(leaf, target - allocator.num_free)
            else:
                return

    @property
    def num_available(self) -> int:
        """Pages that are free, or would be free if everything idle were evicted."""
        in_use = {page for sequence in self.running for page in sequence.table.own_pages}
        return self.pool.allocator.num_pages - self.tree.num_locked - len(in_use)

    def _find(self, sequence: Sequence) -> Place:
        """Where the whole pages end that a turn of this idle sequence would borrow."""
        self.refresh(sequence)
        # Another sequence, such as a fork, may have extended the node in which this sequence's place lies.
        sequence.node = self.tree.split_at(sequence.node, sequence.table.borrowed_tokens)
        return self.tree.match(sequence.node, sequence.log, len(sequence.log) - 1)

    def _borrow_pages(self, sequence: Sequence) -> None:
        """Match more whole pages. The log's last token is left to be forwarded, because its logits are needed."""
        table = sequence.table
        found = self.tree.match(sequence.node, sequence.log, len(sequence.log) - 1)
        if found.pages:
            sequence.node = self.tree.move_lock(sequence.node, found.node, found.at)
            table.borrow(found.pages)

    def _copy_page_prefix(self, sequence: Sequence) -> None:
        """Where a page of the tree agrees with the log for longer than the sequence's last page goes, copy it."""
        table = sequence.table
        if found := self._find_page_prefix(sequence):
            prefix, gain = found
            self.tree.touch(prefix.node)  # so that making room does not evict it before other pages
            self.make_room(table.pages_needed(gain) - self.pool.allocator.num_free)
            found = self._find_page_prefix(sequence)  # it is gone if there were no other pages to evict
        if found:
            prefix, gain = found
            with suppress(OutOfPages):  # then these tokens are computed
                table.append(gain)
                self.pool.copy_page(prefix.page, table.pages[-1], prefix.length)
                table.commit()

    def _find_page_prefix(self, sequence: Sequence) -> tuple[PagePrefix, int] | None:
        """A page to copy from, and how many tokens more than the sequence's last page it has, if it has any more."""
        at = sequence.table.borrowed_tokens
        wanted = sequence.log[at : min(at + self.pool.page_size, len(sequence.log) - 1)]
        prefix = self.tree.partial_match(sequence.node, wanted)
        if prefix and (gain := at + prefix.length - sequence.kv_len) > 0:
            return prefix, gain
        return None

    def _rest(self, sequence: Sequence) -> None:
        """The sequence is idle from now on."""
        self.refresh(sequence)
        sequence.node = self.tree.split_at(sequence.node, sequence.table.borrowed_tokens)
        self.tree.touch(sequence.node)
        self._rank_tail(sequence)

    def _rank_tail(self, sequence: Sequence) -> None:
        """An idle sequence's tail has the rank that the node in front of it would have for this sequence alone."""
        if sequence.table.own_pages:
            rank = EvictionRank.of(sequence.node.last_used, self.expected_returns.get(sequence))
            self.idle_tails.put(sequence, rank)
        else:
            self.idle_tails.remove(sequence)

    def _expect(self, sequence: Sequence, when: float) -> None:
        sequence.node = self.tree.split_at(sequence.node, sequence.table.borrowed_tokens)
        self.tree.expect(sequence.node, when)
        self.expected_returns.put(sequence, when)
        self._rank_tail(sequence)

    def _unexpect(self, sequence: Sequence) -> float | None:
        """Drop an idle sequence's expectation. Returns the time at which it was expected, None if it was not."""
        when = self.expected_returns.remove(sequence)
        if when is not None:
            self.tree.unexpect(self.tree.climb(sequence.node, sequence.table.borrowed_tokens)[0], when)
            if sequence in self.idle_tails:
                self._rank_tail(sequence)
        return when

    def _limit_hints(self) -> None:
        """Otherwise a tenant that expects all its sessions back, always, would leave other tenants no room."""
        share = self.pool.allocator.num_pages // max(1, len(self.tree.tenants))
        for root in {sequence.root for sequence in self.expected_returns}:
            expected = [sequence for sequence in self.expected_returns if sequence.root is root]
            expected.sort(key=self.expected_returns.rank)
            while len({page for sequence in expected for page in sequence.table.pages}) > share:
                self._unexpect(expected.pop())

    def _drop_late_expectations(self) -> None:
        """A sequence that missed its expected return time loses its protection."""
        now = self._clock() if self.expected_returns else 0.0
        while (late := self.expected_returns.first()) and self.expected_returns.rank(late) < now:
            self._unexpect(late)
