"""How pages pass between sequences and the prefix tree: who owns which, and for how long.

    free ──append──▶ private to one sequence ──publish──▶ owned by the tree ──evict──▶ free

- A *running* turn has its place in the tree locked. After every step its full pages are published: the tree owns them
  from then on, the sequence borrows them, and others may borrow them too.
- An *idle* sequence locks nothing. It remembers its place, and keeps the private pages behind it, its tail. Both may be
  taken from it while it rests: `refresh` cuts it to what is left. Nothing ever waits for an idle session.
- Whole pages are shared by reference. Where a match ends inside a page, that head is copied, so reuse is exact to the
  token.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

import torch

from minstate.errors import BrokenInvariant, OutOfPages
from minstate.paged_kv import KVPool
from minstate.radix_tree import Head, Node, RadixTree, Rank
from minstate.ranked_queue import RankedQueue
from minstate.sequence import Sequence


class PrefixCache:
    """Every sequence of one pool, the tree that they share, and the order in which they lose their pages."""

    def __init__(self, pool: KVPool, clock: Callable[[], float] = time.monotonic):
        self.pool, self.tree, self._clock = pool, RadixTree(pool.allocator, pool.page_size), clock
        self._expected: RankedQueue[Sequence, float] = RankedQueue()  # idle; by when its next turn is expected
        self._tails: RankedQueue[Sequence, Rank] = RankedQueue()  # idle, with private pages
        self._active: set[Sequence] = set()  # in a running turn
        pool.allocator.reclaim = self.make_room

    def enter(self, sequence: Sequence, root: Node) -> None:
        """A sequence without K/V begins to share with those under `root`."""
        sequence.root = sequence.node = root
        self.tree.join(root)

    def begin(self, sequence: Sequence) -> None:
        """A turn begins: find again what the sequence had, and what the tree has of its log besides, and lock it."""
        self.refresh(sequence)
        self._tails.remove(sequence)
        self._unexpect(sequence)
        self._active.add(sequence)
        sequence.node = self.tree.lock(sequence.node, sequence.table.borrowed_tokens)
        self._borrow_pages(sequence)

    def extend(self, sequence: Sequence) -> int:
        """While a prompt is being prefilled: take what others have published of it by now. Returns tokens gained."""
        before = sequence.kv_len
        self._borrow_pages(sequence)
        self._copy_head(sequence)
        return sequence.kv_len - before

    def publish(self, sequence: Sequence) -> None:
        """After a step: the tree takes the sequence's full pages, and the sequence those the tree had already."""
        table = sequence.table
        full = table.pages[table.borrowed : sequence.kv_len // self.pool.page_size]
        if full:
            sequence.node, _, pages = self.tree.insert(sequence.node, sequence.log, full)
            table.borrow(pages)  # only now are duplicates given up

    def end(self, sequence: Sequence, length: int) -> None:
        """The turn is over, and `length` tokens of the log stay."""
        locked = sequence.node
        sequence.truncate(length)
        self._active.discard(sequence)
        self._rest(sequence)
        self.tree.unlock(locked)

    def pause(self, sequence: Sequence) -> None:
        """The turn waits: its K/V stays, as that of an idle sequence, which may be evicted."""
        self.end(sequence, len(sequence.log))

    def peek(self, sequence: Sequence) -> int:
        """Tokens of an idle sequence's log that a turn would find, by whole pages of others or of its own."""
        self.refresh(sequence)
        # Meanwhile others, a fork for one, may have extended the node in which the sequence's place lies.
        sequence.node = self.tree.ending_at(sequence.node, sequence.table.borrowed_tokens)
        found = self.tree.match(sequence.node, sequence.log, len(sequence.log) - 1)
        return max(sequence.kv_len, found.at)

    def rollback(self, sequence: Sequence, length: int) -> None:
        """Cut an idle sequence's log to `length` tokens. It is still expected back, if it was."""
        self.refresh(sequence)
        when = self._unexpect(sequence)
        sequence.truncate(length)
        self._rest(sequence)
        if when is not None:
            self._expect(sequence, when)

    def fill(self, sequence: Sequence, kv: torch.Tensor) -> None:
        """An idle sequence gets the K/V of its log's beginning, `[layers, 2, H_kv, tokens, D]`, from outside the pool.

        What others have of it already is shared. Raises `OutOfPages`; the sequence then has none.
        """
        kv, tokens = kv.to(self.pool.kv.device), kv.shape[3]
        self.begin(sequence)
        try:
            known = sequence.kv_len
            if tokens > known:
                slots = sequence.table.append(tokens - known)
                self.pool.kv[:, :, :, slots] = kv[:, :, :, known:]
                self.publish(sequence)
        except BaseException:
            self.end(sequence, 0)
            raise
        self.end(sequence, len(sequence.log))

    def fork(self, sequence: Sequence) -> Sequence:
        """A second idle sequence with the same log and pages. Whoever first writes into the tail copies it."""
        self._rest(sequence)  # being forked is a use
        child = Sequence(self.pool)
        child.log, child.table = list(sequence.log), sequence.table.fork()
        self.enter(child, sequence.root)
        child.node = sequence.node
        child.speculator = sequence.speculator and sequence.speculator.fork()
        self._rest(child)
        return child

    def release(self, sequence: Sequence) -> None:
        """The idle sequence will not come back: give up its tail, and a private root that nobody else uses."""
        self.refresh(sequence)
        self._tails.remove(sequence)
        self._unexpect(sequence)
        sequence.table.truncate(0)
        self.tree.leave(sequence.root)

    def forget(self, sequence: Sequence, root: Node) -> None:
        """The idle sequence loses all its K/V, as if by eviction, and goes on under `root`."""
        self.tree.join(root)
        self.release(sequence)
        sequence.root = sequence.node = root

    def disown_tail(self, sequence: Sequence) -> None:
        """Idle sequences that share the tail of this one, which would have to copy it, give it up."""
        tail = set(sequence.table.own_pages)
        for idle in [idle for idle in self._tails if tail & set(idle.table.own_pages)]:
            self._tails.remove(idle)
            idle.table.truncate(idle.table.borrowed_tokens)

    def resident(self, sequence: Sequence) -> int:
        """Tokens of an idle sequence that eviction has left it."""
        borrowed = sequence.table.borrowed_tokens
        _, at = self.tree.climb(sequence.node, borrowed)
        return at if at < borrowed else sequence.kv_len

    def refresh(self, sequence: Sequence) -> None:
        """Cut an idle sequence's K/V to what eviction has left of it."""
        before = sequence.table.borrowed_tokens
        sequence.node, at = self.tree.climb(sequence.node, before)
        if at < before:
            self._tails.remove(sequence)
            sequence.table.truncate(at)

    def expect(self, sequence: Sequence, seconds: float) -> None:
        """The idle sequence's next turn is said to come in so many seconds: others lose their pages first."""
        self.refresh(sequence)
        self._unexpect(sequence)
        self._expect(sequence, self._clock() + seconds)

    def make_room(self, count: int) -> None:
        """Free `count` pages, or what can be had: idle tails and leaves of the tree, the least recently used first.

        Sequences that are expected back come last, the one that is furthest from its turn first (Belady, IBM Systems
        Journal 5(2), 1966). An expectation that has not come true counts no more.
        """
        allocator = self.pool.allocator
        target = allocator.num_free + count
        self._give_up_late()
        while allocator.num_free < target:
            leaf, idle = self.tree.oldest(), self._tails.first()
            if idle and (leaf is None or self._tails.rank(idle) <= leaf.rank):  # a tail goes before what it hangs on
                self._tails.remove(idle)
                idle.table.truncate(idle.table.borrowed_tokens)
            elif leaf:
                self.tree.trim(leaf, target - allocator.num_free)
            else:
                return

    @property
    def num_available(self) -> int:
        """Pages that are free, or would be if everything idle were evicted."""
        active = {page for sequence in self._active for page in sequence.table.own_pages}
        return self.pool.allocator.num_pages - self.tree.num_locked - len(active)

    def check(self, sequences: Iterable[Sequence], running: Iterable[Sequence]) -> None:
        """Recount all pages, given all open sequences and those in a turn. Raises `BrokenInvariant`."""
        sequences, running = list(sequences), set(running)
        if running != self._active:
            raise BrokenInvariant("the sequences that are in use are not those of running turns")
        if +self.tree.users != Counter(sequence.root for sequence in sequences):
            raise BrokenInvariant("the sequences under the tree's roots are not those that are open")
        self.tree.check(sequence.node for sequence in running)
        owned = [node.pages for node in self.tree.nodes()]
        self.pool.allocator.check([*owned, *(sequence.table.own_pages for sequence in sequences)])
        self._check_tails(set(sequences) - running)
        self._check_expected(set(sequences) - running)
        for sequence in sequences:
            node, at = self.tree.climb(sequence.node, sequence.table.borrowed_tokens)
            if sequence in running and (node is not sequence.node or at != node.end):
                raise BrokenInvariant("a running turn's place in the tree is not what it has locked")
            self._check_path(sequence, node, at)

    def _check_tails(self, idle: set[Sequence]) -> None:
        if set(self._tails) != {sequence for sequence in idle if sequence.table.own_pages}:
            raise BrokenInvariant("the tails that can be reclaimed are not those of idle sequences")
        for sequence in self._tails:
            when, rank = self._expected.rank(sequence), self._tails.rank(sequence)
            if rank > sequence.node.rank or rank[0] != (when is not None) or (rank[0] and rank[1] != -when):
                raise BrokenInvariant("a tail would not be evicted in its turn, before the pages that it hangs on")
        if any(
            len(sequence.table.own_pages) > 1 or sequence.kv_len % self.pool.page_size == 0 for sequence in self._tails
        ):
            raise BrokenInvariant("an idle sequence keeps full pages to itself")

    def _check_expected(self, idle: set[Sequence]) -> None:
        """Each expectation is entered once, at the node where what is left of its sequence ends."""
        if not set(self._expected) <= idle:
            raise BrokenInvariant("a sequence is expected back that is running, or closed")
        times = defaultdict(list)
        for sequence in self._expected:
            node, at = self.tree.climb(sequence.node, sequence.table.borrowed_tokens)
            times[node].append(self._expected.rank(sequence))
            if at != node.end:
                raise BrokenInvariant(f"{node} is spared for somebody who does not need its end")
        if any(node.expected != sorted(times[node]) for node in self.tree.nodes()):
            raise BrokenInvariant("nodes are spared for others than those who are expected")

    def _check_path(self, sequence: Sequence, node: Node, at: int) -> None:
        """Tokens and pages on the way down to (node, at) are the sequence's, position by position."""
        path = self.tree.match(sequence.root, sequence.log, at)
        if (path.at, path.pages) != (at, sequence.table.pages[: len(path.pages)]):
            raise BrokenInvariant(f"the tree's tokens or pages above {node} are not the sequence's")

    def _borrow_pages(self, sequence: Sequence) -> None:
        """Go on down the tree by whole pages. The last token is left to be forwarded: its logits are wanted."""
        table = sequence.table
        found = self.tree.match(sequence.node, sequence.log, len(sequence.log) - 1)
        if found.pages:
            sequence.node = self.tree.move_lock(sequence.node, found.node, found.at)
            table.borrow(found.pages)

    def _copy_head(self, sequence: Sequence) -> None:
        """Where the tree has a page that agrees for longer than our own last page goes, copy it."""
        table = sequence.table
        head, gain = self._find_head(sequence)
        if gain > 0:
            self.tree.touch(head.node)  # lest it is the first to make room
            self.make_room(table.pages_needed(gain) - self.pool.allocator.num_free)
            head, gain = self._find_head(sequence)  # if there was nothing else to evict, it has gone all the same
        if gain > 0:
            with suppress(OutOfPages):  # then it is computed
                table.append(gain)
                self.pool.copy_page(head.page, table.pages[-1], head.count)

    def _find_head(self, sequence: Sequence) -> tuple[Head | None, int]:
        """The page to copy, and how many tokens more than our own it has."""
        at = sequence.table.borrowed_tokens
        head = self.tree.head(sequence.node, sequence.log[at : min(at + self.pool.page_size, len(sequence.log) - 1)])
        return head, at + head.count - sequence.kv_len if head else 0

    def _rest(self, sequence: Sequence) -> None:
        """The sequence is idle from now on."""
        self.refresh(sequence)
        sequence.node = self.tree.ending_at(sequence.node, sequence.table.borrowed_tokens)
        self.tree.touch(sequence.node)
        self._rank_tail(sequence)

    def _rank_tail(self, sequence: Sequence) -> None:
        """An idle sequence's tail has the rank of the node behind which it goes on: see `make_room`."""
        when = self._expected.rank(sequence)
        if sequence.table.own_pages:
            self._tails.put(sequence, (False, sequence.node.last_used) if when is None else (True, -when))
        else:
            self._tails.remove(sequence)

    def _expect(self, sequence: Sequence, when: float) -> None:
        sequence.node = self.tree.ending_at(sequence.node, sequence.table.borrowed_tokens)
        self.tree.expect(sequence.node, when)
        self._expected.put(sequence, when)
        self._rank_tail(sequence)

    def _unexpect(self, sequence: Sequence) -> float | None:
        """The idle sequence's expectation counts no more. Returns when it was for, if there was one."""
        when = self._expected.remove(sequence)
        if when is not None:
            self.tree.unexpect(self.tree.climb(sequence.node, sequence.table.borrowed_tokens)[0], when)
            if sequence in self._tails:
                self._rank_tail(sequence)
        return when

    def _give_up_late(self) -> None:
        """Who did not come when expected is as all others."""
        now = self._clock() if self._expected else 0.0
        while (late := self._expected.first()) and self._expected.rank(late) < now:
            self._unexpect(late)
