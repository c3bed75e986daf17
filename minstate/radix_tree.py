"""The prefix tree: which pages hold the K/V of which tokens, from the beginning of a conversation on.

Sequences whose logs begin alike share pages here, by reference ([RadixAttention](https://arxiv.org/abs/2312.07104)). A
node is a run of whole pages; siblings differ in their first page. A place in the tree is a pair (node, at): `at` tokens
below the root, a page boundary with `node.start < at <= node.end`, or the root itself with `at = 0`.

The drawing has two tokens a page; A, B and C are node objects.

    1. A turn publishes 1 2 3 4 5 6 and ends. Its sequence remembers the place (A, 6).

        root ── A [1 2│3 4│5 6]         no locks: a leaf, evictable from its end

    2. Another turn matches 1 2 3 9 9 9. One whole page agrees, so the match ends inside A, at the place (A, 2). `lock`
       splits A there. The new object B is the upper half. A stays the lower half, so the place (A, 6) is still right.

        root ── B [1 2]                 1 lock: the turn
                └─ A [3 4│5 6]          no locks

    3. The page 3 4 begins with the 3 that the turn wants. `partial_match` finds it, so the K/V of this token can be
       copied. Once the turn has computed 9 9 9, `insert` publishes 3 9 9 9 behind B, and the turn's lock moves there.

        root ── B [1 2]                 1 lock: its child C has one
                ├─ A [3 4│5 6]          no locks: evictable
                └─ C [3 9│9 9]          1 lock: the turn; what it publishes next extends C in place

The tree owns its pages once, however many sequences read them. A running turn locks its place, and with it the path
above. All other pages may be evicted, from the ends of leaves, in the order of `EvictionRank`. An evicted node is
marked `dead` and keeps its parent, so a sequence that remembers a place climbs to what is left of it. Since a split
keeps the old object as the *lower* half, a live node implies a live path.

The tree holds plain numbers and bytes, no tensors and no clock. `nodes_visited` and `tokens_compared` count its work.
"""

import hashlib
import secrets
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING

from minstate.radix_node import TOKEN_BYTES, EvictionRank, Key, Node, PagePrefix, Place, encode, page_names
from minstate.ranked_queue import RankedQueue

if TYPE_CHECKING:  # its module imports torch
    from minstate.paged_kv import PageAllocator


class RadixTree:
    """Prefix trees over one allocator's pages: one root for each tenant, and private roots."""

    def __init__(self, allocator: "PageAllocator", page_size: int):
        self.allocator, self.page_size = allocator, page_size
        self.tenants: dict[Hashable, Node] = {}
        self.private: set[Node] = set()  # roots that belong to no tenant
        self.users: Counter[Node] = Counter()  # how many sequences each root serves
        self.num_pages = 0  # owned by the tree
        self.num_locked = 0  # how many of these cannot be evicted, because a running turn locks them
        self.nodes_visited = self.tokens_compared = 0
        self.evictable_leaves: RankedQueue[Node, EvictionRank] = RankedQueue()  # to be read only
        # Called before pages are evicted: their names, the pages, and when they were last used.
        self.demote: Callable[[list[bytes], list[int], int], None] = lambda _names, _pages, _used: None
        self._ticks = 0

    # Roots.

    def root(self, tenant: Hashable) -> Node:
        """The root that all sequences of `tenant` share, and no other tenant's."""
        if tenant not in self.tenants:
            self.tenants[tenant] = self._new_root(hashlib.sha256(repr(tenant).encode()).digest())
        return self.tenants[tenant]

    def private_root(self) -> Node:
        """A root of no tenant. It is dropped with its pages when the last sequence that joined it leaves."""
        root = self._new_root(secrets.token_bytes(32))
        self.private.add(root)
        return root

    def join(self, root: Node) -> None:
        """Count one more sequence under `root`."""
        self.users[root] += 1

    def leave(self, root: Node) -> None:
        """Count one sequence fewer under `root`."""
        self.users[root] -= 1
        if root in self.private and not self.users[root]:
            self._release_pages_below(root)
        self._drop_if_unused(root)

    # Reading.

    def match(self, node: Node, log: list[int], stop: int) -> Place:
        """Follow `log[:stop]` by whole pages, from the end of `node`, up to which `log` is known to agree."""
        at, pages = node.end, []
        while at == node.end and stop - at >= self.page_size:
            first_page = encode(log[at : at + self.page_size])  # encode more of a long log only if this page is found
            index = node.child_index(first_page)
            if index == len(node.children) or not node.children[index].key.startswith(first_page):
                break
            node = node.children[index]
            self.nodes_visited += 1
            count = self._common_length(node.key, encode(log[at : min(stop, node.end)])) // self.page_size
            pages += node.pages[:count]
            at += count * self.page_size
        return Place(node, at, pages)

    def partial_match(self, node: Node, tokens: list[int]) -> PagePrefix | None:
        """The page behind the end of `node` with the longest common prefix with `tokens`; None if no page has any.

        Children are sorted, so this page belongs to a neighbour of the index at which `tokens` would stand.
        """
        wanted, best = encode(tokens), None
        index = node.child_index(wanted)
        for child in node.children[max(0, index - 1) : index + 1]:
            length = self._common_length(child.key[: len(wanted)], wanted)
            if length > (best.length if best else 0):
                best = PagePrefix(child, child.pages[0], length)
        return best

    def climb(self, node: Node, at: int) -> tuple[Node, int]:
        """The lowest live place on the path to a remembered place. O(1) if nothing was evicted."""
        while node.parent and (node.dead or at <= node.start):
            at = min(at, node.start)
            node = node.parent
            self.nodes_visited += 1
        return node, min(at, node.end)

    # Writing.

    def insert(self, node: Node, log: list[int], pages: list[int]) -> Place:
        """Publish `pages`, which hold the K/V of `log` from the end of `node` on. The caller has locked `node`.

        Returns the place where `pages` end, with the canonical pages, and moves the caller's lock to it. Where the tree
        has pages for these tokens already, the tree's pages are canonical, and the caller keeps its own as duplicates.
        The other pages belong to the tree from now on.
        """
        found = self.match(node, log, node.end + len(pages) * self.page_size)
        node = self.move_lock(node, found.node, found.at)
        new = pages[len(found.pages) :]
        if not new:
            return Place(node, found.at, found.pages)
        end = found.at + len(new) * self.page_size
        key = encode(log[found.at : end])
        names = page_names(node.names[-1], key, self.page_size * TOKEN_BYTES)
        self.num_pages += len(new)
        only_ours = node.parent and not node.children and node.locks == 1 and not node.expected
        if only_ours and not node.trimmed:
            node.key += key
            node.pages += new
            node.names += names
            self.num_locked += len(new)
        else:
            child = Node(node, found.at, bytearray(key), new, self.tick(), names=list(names))
            node.children.insert(node.child_index(key), child)
            node = self.move_lock(node, child, end)
        return Place(node, end, found.pages + new)

    def lock(self, node: Node, at: int) -> Node:
        """Protect the whole path down to the place (node, at) from eviction. Returns the node that ends there."""
        locked = self.split_at(node, at)
        above: Node | None = locked
        while above:
            above.locks += 1
            if above.locks > 1:
                break  # the path further up is locked already
            self.num_locked += len(above.pages)
            self._update_rank(above)
            above = above.parent
        return locked

    def unlock(self, node: Node) -> None:
        """Undo one `lock` of this node."""
        above: Node | None = node
        while above:
            above.locks -= 1
            if above.locks:
                break
            self.num_locked -= len(above.pages)
            self._update_rank(above)
            above = above.parent

    def move_lock(self, node: Node, target: Node, at: int) -> Node:
        """Lock the place (target, at), then unlock `node`. Returns the node that is locked now."""
        locked = self.lock(target, at)
        self.unlock(node)
        return locked

    def touch(self, node: Node) -> None:
        """Record that `node` is used now."""
        node.last_used = self.tick()
        self._update_rank(node)

    def split_at(self, node: Node, at: int) -> Node:
        """The node that ends at the place (node, at): `node`, or a new upper half if the place lies inside it."""
        if at >= node.end:
            return node
        pages, key_bytes = (at - node.start) // self.page_size, (at - node.start) * TOKEN_BYTES
        parent = node.parent
        assert parent, "a root has nothing to split"
        upper = Node(parent, node.start, node.key, node.pages, node.last_used, [node])
        upper.locks, upper.names, node.names = 1 if node.locks else 0, node.names[:pages], node.names[pages:]
        parent.children[parent.child_index(node.key)] = upper
        node.parent, node.start, node.key, node.pages = upper, at, node.key[key_bytes:], node.pages[pages:]
        del upper.key[key_bytes:], upper.pages[pages:]
        return upper

    # Evicting.

    def expect(self, node: Node, when: float) -> None:
        """A sequence is expected back at the end of `node`: evict it, and the path above, after all unexpected pages.

        Meanwhile `node` is not extended in place, because the sequence does not need what is published behind it.
        """
        insort(node.expected, when)
        self._update_rank(node)

    def unexpect(self, node: Node, when: float) -> None:
        """Undo one `expect` of this node, or of a node below it that is dead."""
        del node.expected[bisect_left(node.expected, when)]
        self._update_rank(node)

    def next_victim(self) -> Node | None:
        """The leaf whose last page is evicted next, or None if every page is locked."""
        return self.evictable_leaves.first()

    def trim(self, leaf: Node, count: int) -> None:
        """Evict up to `count` pages from the end of `leaf`, which `next_victim` returned.

        A trimmed leaf never grows again. So a remembered place in it can only become shorter, and pages that are
        published later are never mistaken for those that were evicted.
        """
        keep, parent = max(0, len(leaf.pages) - count), leaf.parent
        assert parent, "a root is no leaf to evict from"
        evicted = leaf.pages[keep:]  # where they are demoted to, a hint counts as a use
        self.demote(leaf.names[keep:], evicted, self.tick() if leaf.expected else leaf.last_used)
        if not keep:
            del parent.children[parent.child_index(leaf.key)]
            parent.last_used = max(parent.last_used, leaf.last_used)  # using a node uses the path to it
            for when in leaf.expected:
                insort(parent.expected, when)
            self._update_rank(parent)
            self._drop_if_unused(parent)
        del leaf.pages[keep:], leaf.names[keep:], leaf.key[keep * self.page_size * TOKEN_BYTES :]
        leaf.trimmed, leaf.dead = True, not keep
        self._update_rank(leaf)
        self.num_pages -= len(evicted)
        self.allocator.release(evicted)

    def tick(self) -> int:
        """A later time than all before."""
        self._ticks += 1
        return self._ticks

    def nodes(self, roots: Iterable[Node] | None = None) -> Iterator[Node]:
        """All nodes, or those below `roots`, parents before their children."""
        waiting = [*self.tenants.values(), *self.private] if roots is None else list(roots)
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def _new_root(self, name: bytes) -> Node:
        return Node(None, 0, bytearray(), [], self.tick(), names=[name])

    def _common_length(self, a: Key, b: Key) -> int:
        """How many tokens two keys have in common at their beginning."""
        length = min(len(a), len(b))
        self.tokens_compared += length // TOKEN_BYTES
        if a == b:
            return length // TOKEN_BYTES
        # Read as two large numbers, the keys differ first where the highest bit of their XOR is set. This is one
        # operation at the speed of memory, whereas a loop would take a step for each token.
        differ = int.from_bytes(a[:length], "big") ^ int.from_bytes(b[:length], "big")
        return (length - (differ.bit_length() + 7) // 8) // TOKEN_BYTES

    def _update_rank(self, node: Node) -> None:
        """Every change to a node's rank, or to whether it is evictable, ends here."""
        if node.is_evictable:
            self.evictable_leaves.put(node, node.rank)
        else:
            self.evictable_leaves.remove(node)

    def _release_pages_below(self, root: Node) -> None:
        """Give up all nodes and pages under a private root that has lost its last sequence."""
        waiting = [root]
        while waiting:
            node = waiting.pop()
            waiting += node.children
            self.num_pages -= len(node.pages)
            self.allocator.release(node.pages)
            node.dead, node.key, node.pages, node.children = True, bytearray(), [], []
            self._update_rank(node)

    def _drop_if_unused(self, root: Node) -> None:
        if not root.children and self.users.get(root) == 0:
            self.private.discard(root)
            self.tenants = {tenant: other for tenant, other in self.tenants.items() if other is not root}
            del self.users[root]
