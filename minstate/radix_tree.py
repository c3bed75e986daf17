"""The prefix tree: which pages hold the K/V of which token ids, from the start of a conversation on.

Sessions whose logs begin alike share pages here, by reference (RadixAttention, arXiv 2312.07104). A node is a run of
whole pages; siblings differ in their first page. A place in the tree is a pair (node, at): `at` tokens below the root,
a page boundary with `node.start < at <= node.end`, or the root itself with `at = 0`.

The tree owns its pages once, however many sessions read them. A running turn locks its place, and with it the path
above; everything else may be evicted, from the ends of leaves: the least recently used first, and after them those to
which somebody is expected back, the latest first. An evicted node is marked `dead` and keeps its parent, so whoever
remembers a place climbs to what is left of it. A split keeps the old object as the *lower* half: a live node therefore
implies a live path.

Plain numbers and bytes, no tensors and no clock. `nodes_visited` and `tokens_compared` count the work.
"""

from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from sys import byteorder
from typing import TYPE_CHECKING, NamedTuple

from minstate.errors import BrokenInvariant
from minstate.ranked_queue import RankedQueue

if TYPE_CHECKING:  # its module imports torch
    from minstate.paged_kv import PageAllocator

TOKEN_BYTES = 4
Rank = tuple[bool, float]  # the lower goes first: False and when last used, or True and minus when expected to be used


@dataclass(eq=False, slots=True)
class Node:
    """A run of whole pages, and the tokens whose K/V they hold."""

    parent: "Node | None"  # None: a root, which has no pages
    start: int  # tokens above it
    key: bytearray  # its tokens, big-endian, so that bytes compare as tokens do
    pages: list[int]
    last_used: int  # in ticks of the tree
    children: list["Node"] = field(default_factory=list)  # sorted by key
    locks: int = 0  # by running turns that end here, plus one for each child that has any
    expected: list[float] = field(default_factory=list)  # sorted times at which somebody comes back to its end
    trimmed: bool = False  # has lost pages at its end
    dead: bool = False  # has lost all

    @property
    def end(self) -> int:
        return self.start + len(self.key) // TOKEN_BYTES

    @property
    def rank(self) -> Rank:
        return (True, -self.expected[0]) if self.expected else (False, self.last_used)

    def __repr__(self) -> str:
        state = "dead" if self.dead else f"{self.locks} locks" if self.locks else "evictable"
        return f"<Node {self.start}:{self.end}, {len(self.pages)} pages, {len(self.children)} children, {state}>"


class Place(NamedTuple):
    """Where a match ends, and the pages found on the way there."""

    node: Node
    at: int
    pages: list[int]


class Head(NamedTuple):
    """A page that begins with the wanted tokens and then goes on differently."""

    node: Node
    page: int
    count: int  # tokens that agree


class RadixTree:
    """Prefix trees over one allocator's pages: one root for each tenant, and private ones."""

    def __init__(self, allocator: "PageAllocator", page_size: int):
        self.allocator, self.page_size = allocator, page_size
        self.tenants: dict[Hashable, Node] = {}
        self.private: set[Node] = set()  # roots of no tenant
        self.users: Counter[Node] = Counter()  # how many sequences each root serves
        self.num_pages = 0  # owned by the tree
        self.num_locked = 0  # of these, out of reach for eviction
        self.nodes_visited = self.tokens_compared = 0
        self._heap: RankedQueue[Node, Rank] = RankedQueue()  # every leaf that can be evicted
        self._ticks = 0

    # Roots.

    def root(self, tenant: Hashable) -> Node:
        """The root that `tenant`'s sequences share, and nobody else's."""
        if tenant not in self.tenants:
            self.tenants[tenant] = self._new_root()
        return self.tenants[tenant]

    def private_root(self) -> Node:
        """A root that is dropped with its pages once as many sequences have left as `join`ed."""
        root = self._new_root()
        self.private.add(root)
        return root

    def join(self, root: Node) -> None:
        """One more sequence under `root`."""
        self.users[root] += 1

    def leave(self, root: Node) -> None:
        """One sequence fewer under `root`."""
        self.users[root] -= 1
        if root in self.private and not self.users[root]:
            self._drop(root)
        self._forget_if_empty(root)

    # Reading.

    def match(self, node: Node, log: list[int], stop: int) -> Place:
        """From the end of `node`, where `log` is known to agree, go down as far as whole pages of `log[:stop]` do."""
        at, pages = node.end, []
        while at == node.end and stop - at >= self.page_size:
            first = _encode(log[at : at + self.page_size])  # of a long log that goes no further, no more is looked at
            where = _place_of(first, node)
            if where == len(node.children) or not node.children[where].key.startswith(first):
                break
            node = node.children[where]
            self.nodes_visited += 1
            count = self._common(node.key, _encode(log[at : min(stop, node.end)])) // self.page_size
            pages += node.pages[:count]
            at += count * self.page_size
        return Place(node, at, pages)

    def head(self, node: Node, tokens: list[int]) -> Head | None:
        """The page behind the end of `node` with the longest head in common with `tokens`, if any has one.

        In sorted order it is a neighbour of the place where `tokens` would stand.
        """
        want, best = _encode(tokens), None
        where = _place_of(want, node)
        for child in node.children[max(0, where - 1) : where + 1]:
            count = self._common(child.key[: len(want)], want)
            if count > (best.count if best else 0):
                best = Head(child, child.pages[0], count)
        return best

    def climb(self, node: Node, at: int) -> tuple[Node, int]:
        """What is left of a place that was remembered: the lowest live one above it. O(1) if nothing happened."""
        while node.parent and (node.dead or at <= node.start):
            at = min(at, node.start)
            node = node.parent
            self.nodes_visited += 1
        return node, min(at, node.end)

    # Writing.

    def insert(self, node: Node, log: list[int], pages: list[int]) -> Place:
        """Publish `pages`, which hold `log` from the end of `node` on; the caller has locked `node`.

        Gives the caller's lock on to the new place, and returns it with the canonical pages. Where the tree had pages
        for these tokens already, the canonical ones are the tree's and the caller keeps its own, as duplicates; the
        others belong to the tree from now on.
        """
        found = self.match(node, log, node.end + len(pages) * self.page_size)
        node = self.move_lock(node, found.node, found.at)
        new = pages[len(found.pages) :]
        if not new:
            return Place(node, found.at, found.pages)
        end = found.at + len(new) * self.page_size
        key = _encode(log[found.at : end])
        self.num_pages += len(new)
        only_ours = node.parent and not node.children and node.locks == 1 and not node.expected
        if only_ours and not node.trimmed:
            node.key += key
            node.pages += new
            self.num_locked += len(new)
        else:
            child = Node(node, found.at, bytearray(key), new, self._tick())
            node.children.insert(_place_of(key, node), child)
            node = self.move_lock(node, child, end)
        return Place(node, end, found.pages + new)

    def lock(self, node: Node, at: int) -> Node:
        """Keep everything down to the place (node, at) from being evicted. Returns the node that ends there."""
        locked = node = self.ending_at(node, at)
        while node:
            node.locks += 1
            if node.locks > 1:
                break
            self.num_locked += len(node.pages)
            self._queue(node)
            node = node.parent
        return locked

    def unlock(self, node: Node) -> None:
        """Take back one `lock` of this node."""
        while node:
            node.locks -= 1
            if node.locks:
                break
            self.num_locked -= len(node.pages)
            self._queue(node)
            node = node.parent

    def move_lock(self, node: Node, target: Node, at: int) -> Node:
        """`lock` another place, then `unlock` this node; returns the node that is locked now."""
        locked = self.lock(target, at)
        self.unlock(node)
        return locked

    def touch(self, node: Node) -> None:
        """`node` is in use now."""
        node.last_used = self._tick()
        self._queue(node)

    def ending_at(self, node: Node, at: int) -> Node:
        """The node that ends at the place (node, at): what concerns that place and not what lies behind it."""
        return self._split(node, at) if at < node.end else node

    # Evicting.

    def expect(self, node: Node, when: float) -> None:
        """Somebody will come back to the end of `node`: spare it, and so all above it, while there is anything else.

        It is not extended in place meanwhile: what others put behind it is not what is expected to be used.
        """
        insort(node.expected, when)
        self._queue(node)

    def unexpect(self, node: Node, when: float) -> None:
        """Take back one `expect` of this node, or of one below it that has died."""
        del node.expected[bisect_left(node.expected, when)]
        self._queue(node)

    def oldest(self) -> Node | None:
        """The leaf to evict from: of those unexpected the least recently used, else the one whose user comes last."""
        return self._heap.first()

    def trim(self, leaf: Node, count: int) -> None:
        """Evict up to `count` pages from the end of `leaf`, which `oldest` returned.

        A leaf that was trimmed never grows again, so that a place remembered in it can only become shorter, and nothing
        that is published later is mistaken for what was there.
        """
        keep, parent = max(0, len(leaf.pages) - count), leaf.parent
        if not keep:
            del parent.children[_place_of(leaf.key, parent)]
            parent.last_used = max(parent.last_used, leaf.last_used)  # using a node uses the path to it
            for when in leaf.expected:
                insort(parent.expected, when)
            self._queue(parent)
            self._forget_if_empty(parent)
        evicted = leaf.pages[keep:]
        del leaf.pages[keep:], leaf.key[keep * self.page_size * TOKEN_BYTES :]
        leaf.trimmed, leaf.dead = True, not keep
        self._queue(leaf)
        self.num_pages -= len(evicted)
        self.allocator.release(evicted)

    # Looking.

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before their children."""
        waiting = [*self.tenants.values(), *self.private]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    def check(self, locked: Iterable[Node]) -> None:
        """Recount everything, given the node of each running turn. Raises `BrokenInvariant`."""
        nodes, direct = list(self.nodes()), Counter(locked)
        for node in nodes:
            firsts = [bytes(child.key[: self.page_size * TOKEN_BYTES]) for child in node.children]
            for holds, what in [
                (not node.dead, "is in the tree and dead"),
                (len(node.key) == len(node.pages) * self.page_size * TOKEN_BYTES, "has other tokens than pages"),
                (bool(node.pages) == bool(node.parent), "is a root with pages, or an inner node without"),
                (firsts == sorted(set(firsts)), "has children out of order, or with the same first page"),
                (all(child.parent is node and child.start == node.end for child in node.children), "has odd children"),
                (node.locks == direct[node] + sum(child.locks > 0 for child in node.children), "has odd locks"),
                (node.expected == sorted(node.expected), "has expectations out of order"),
                (self._heap.rank(node) == (node.rank if _evictable(node) else None), "would be evicted out of order"),
            ]:
                if not holds:
                    raise BrokenInvariant(f"{node} {what}")
        if not set(self._heap) <= set(nodes):
            raise BrokenInvariant("a node that could be evicted is not in the tree")
        if not direct.keys() <= set(nodes):
            raise BrokenInvariant("a running turn's node is not in the tree")
        counts = sum(len(node.pages) for node in nodes), sum(len(node.pages) for node in nodes if node.locks)
        if counts != (self.num_pages, self.num_locked):
            raise BrokenInvariant(f"{counts} pages and locked ones, not {self.num_pages} and {self.num_locked}")

    def _new_root(self) -> Node:
        return Node(None, 0, bytearray(), [], self._tick())

    def _tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def _common(self, a: bytes, b: bytes) -> int:
        """Tokens that agree at the beginning."""
        length = min(len(a), len(b))
        self.tokens_compared += length // TOKEN_BYTES
        if a == b:
            return length // TOKEN_BYTES
        # The highest bit in which two numbers differ tells where two texts do, at the speed of memory.
        differ = int.from_bytes(a[:length], "big") ^ int.from_bytes(b[:length], "big")
        return (length - (differ.bit_length() + 7) // 8) // TOKEN_BYTES

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` at `at`. Returns the new upper half; the object itself becomes the lower half."""
        pages, tokens = (at - node.start) // self.page_size, (at - node.start) * TOKEN_BYTES
        upper = Node(node.parent, node.start, node.key, node.pages, node.last_used, [node])
        upper.locks = int(node.locks > 0)
        upper.parent.children[_place_of(node.key, node.parent)] = upper
        node.parent, node.start, node.key, node.pages = upper, at, node.key[tokens:], node.pages[pages:]
        del upper.key[tokens:], upper.pages[pages:]
        return upper

    def _queue(self, node: Node) -> None:
        """Its rank may have changed, or whether it can be evicted at all."""
        if _evictable(node):
            self._heap.put(node, node.rank)
        else:
            self._heap.remove(node)

    def _drop(self, root: Node) -> None:
        waiting = [root]
        while waiting:
            node = waiting.pop()
            waiting += node.children
            self.num_pages -= len(node.pages)
            self.allocator.release(node.pages)
            node.dead, node.key, node.pages, node.children = True, bytearray(), [], []
            self._queue(node)

    def _forget_if_empty(self, root: Node) -> None:
        if not root.children and self.users.get(root) == 0:
            self.private.discard(root)
            self.tenants = {tenant: other for tenant, other in self.tenants.items() if other is not root}
            del self.users[root]


def _place_of(key: bytes, parent: Node) -> int:
    """The index at which a child that begins with `key` stands among its siblings, or would stand."""
    return bisect_left(parent.children, key, key=attrgetter("key"))


def _evictable(node: Node) -> bool:
    return bool(node.parent) and not (node.dead or node.children or node.locks)


def _encode(tokens: list[int]) -> bytes:
    """Four big-endian bytes a token."""
    ids = array("I", tokens)
    if byteorder == "little":
        ids.byteswap()
    return ids.tobytes()
