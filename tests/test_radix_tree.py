"""The prefix tree by itself, against a dictionary from every published prefix to its page."""

import random
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minstate import BrokenInvariant
from minstate.invariants import check_tree
from minstate.paged_kv import PageAllocator
from minstate.radix_node import Node
from minstate.radix_tree import RadixTree

TOKENS = st.sampled_from([0, 1, 255, 256, 2**31])  # orders that differ in other bytes than the last
LOGS = st.lists(TOKENS, max_size=14)


def small_tree(num_pages: int = 64, page_size: int = 2) -> RadixTree:
    return RadixTree(PageAllocator(num_pages), page_size)


def publish(tree: RadixTree, root: Node, log: list[int]) -> Node:
    """Publish all full pages of `log`, as a sequence does that has computed them. Returns its node, locked."""
    found = tree.match(root, log, len(log))
    node = tree.lock(found.node, found.at)
    new = tree.allocator.allocate(len(log) // tree.page_size - len(found.pages))
    node, _, pages = tree.insert(node, log, new)
    assert pages == new, "no other sequence published in between"
    return node


def common(a, b) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Trees(RuleBasedStateMachine):
    """`published` says for each root which prefix ends in which page; `locked` and `remembered` are places."""

    @initialize(num_pages=st.integers(1, 24), page_size=st.integers(1, 3))
    def start(self, num_pages, page_size):
        self.tree = small_tree(num_pages, page_size)
        self.roots = [self.tree.root("a"), self.tree.root("b")]
        for root in self.roots:
            self.tree.join(root)
        self.published: dict[tuple, int] = {}
        self.locked, self.remembered = [], []  # (node, root, tokens on the path to it)

    def prefixes(self, tokens):
        size = self.tree.page_size
        return [tuple(tokens[:end]) for end in range(size, len(tokens) + 1, size)]

    @rule(which=st.integers(0, 1), log=LOGS, stay=st.booleans())
    def insert(self, which, log, stay):
        root, tree = self.roots[which], self.tree
        known = [prefix for prefix in self.prefixes(log) if (which, prefix) in self.published]
        needed = len(log) // tree.page_size - len(known)
        if needed > tree.allocator.num_free:
            return
        visited, compared = tree.nodes_visited, tree.tokens_compared
        node = publish(tree, root, log)
        assert tree.tokens_compared - compared <= 2 * len(log) + tree.page_size and tree.nodes_visited >= visited
        at = len(log) - len(log) % tree.page_size
        for prefix in self.prefixes(log)[len(known) :]:
            self.published[which, prefix] = -1  # `learn` fills in the page
        self.learn()
        place = (node, which, tuple(log[:at]))
        if stay:
            self.locked.append(place)
        else:
            tree.unlock(node)
        self.remembered.append(place)

    def learn(self):
        """Read prefix → page off the tree, and require that the prefixes are those expected."""
        found = {}
        for which, root in enumerate(self.roots):
            waiting = [(root, ())]
            while waiting:
                node, above = waiting.pop()
                tokens = above + tuple(self.decode(node.key))
                own = self.prefixes(tokens)[len(above) // self.tree.page_size :]
                found |= {(which, prefix): page for prefix, page in zip(own, node.pages, strict=True)}
                waiting += [(child, tokens) for child in node.children]
        assert found.keys() == self.published.keys()
        for prefix, page in self.published.items():
            assert page in (-1, found[prefix]), "a published page never moves"
        self.published = found

    @staticmethod
    def decode(key):
        return [int.from_bytes(key[i : i + 4], "big") for i in range(0, len(key), 4)]

    @rule(data=st.data())
    def unlock(self, data):
        if self.locked:
            at = data.draw(st.integers(0, len(self.locked) - 1))
            self.tree.unlock(self.locked.pop(at)[0])

    @rule(which=st.integers(0, 1), log=LOGS)
    def match(self, which, log):
        found = self.tree.match(self.roots[which], log, len(log))
        pages = [self.published[which, p] for p in self.prefixes(log) if (which, p) in self.published]
        assert (found.pages, found.at) == (pages, len(pages) * self.tree.page_size)
        rest = log[found.at : found.at + self.tree.page_size]
        below = [
            (common(prefix[found.at :], rest), page)
            for (root, prefix), page in self.published.items()
            if root == which
            and len(prefix) == found.at + self.tree.page_size
            and prefix[: found.at] == tuple(log[: found.at])
        ]
        longest = max((count for count, _ in below), default=0)
        locked = self.tree.lock(found.node, found.at)
        partial = self.tree.partial_match(locked, rest)
        self.tree.unlock(locked)
        if longest == 0:
            assert partial is None
        else:
            assert partial.length == longest and (longest, partial.page) in below

    @precondition(lambda self: self.remembered)
    @rule(data=st.data())
    def climb(self, data):
        node, which, tokens = data.draw(st.sampled_from(self.remembered))
        node, at = self.tree.climb(node, len(tokens))
        assert not node.dead and at <= len(tokens)
        assert all((which, prefix) in self.published for prefix in self.prefixes(tokens[:at])), "nothing stale"
        locked = self.tree.lock(node, at)
        resumed = self.tree.match(locked, list(tokens), len(tokens))
        afresh = self.tree.match(self.roots[which], list(tokens), len(tokens))
        self.tree.unlock(locked)
        assert (resumed.node, resumed.at) == (afresh.node, afresh.at), "climbing and matching finds all there is"

    @rule(count=st.integers(1, 8))
    def evict(self, count):
        tree = self.tree
        out_of_reach = {
            (which, prefix) for _, which, tokens in self.locked for prefix in self.prefixes(tokens)
        }  # fmt: skip
        assert tree.num_pages - tree.num_locked == len(self.published.keys() - out_of_reach)
        wanted = min(count, tree.num_pages - tree.num_locked)
        before = tree.allocator.num_free
        while tree.allocator.num_free < before + wanted:
            tree.trim(tree.next_victim(), before + wanted - tree.allocator.num_free)
        if wanted < count:
            assert tree.next_victim() is None
        gone = {prefix for prefix, page in self.published.items() if tree.allocator.owners[page] == 0}
        assert len(gone) == wanted and not gone & out_of_reach
        for which, prefix in self.published.keys() - gone:
            upper = self.prefixes(prefix)[:-1]
            assert all((which, each) not in gone for each in upper), "leaves first"
        self.published = {prefix: page for prefix, page in self.published.items() if prefix not in gone}

    @invariant()
    def bookkeeping_adds_up(self):
        self.learn()
        check_tree(self.tree, [node for node, _, _ in self.locked])
        self.tree.allocator.check([list(self.published.values())])


TestTrees = Trees.TestCase
TestTrees.settings = settings(stateful_step_count=50, max_examples=5 * settings.default.max_examples)


def test_the_tree_needs_no_torch():
    probe = """
import sys, types
package = types.ModuleType("minstate"); package.__path__ = ["minstate"]
sys.modules["minstate"] = package
import minstate.radix_tree
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_the_least_recently_used_page_is_evicted_first():
    """Using a place is using the whole path to it, even after the pages further down are evicted."""
    tree, rng = small_tree(num_pages=400, page_size=1), random.Random(5)
    root, used = tree.root("a"), {}  # prefix → when it was last used
    for now in range(60):
        log = [rng.randrange(3) for _ in range(rng.randrange(1, 7))]
        node = publish(tree, root, log)
        tree.touch(node)
        tree.unlock(node)
        used |= {tuple(log[:end]): now for end in range(1, len(log) + 1)}
    while used:
        tree.trim(tree.next_victim(), 1)
        leaves = [prefix for prefix in used if not any(other[: len(prefix)] == prefix != other for other in used)]
        victim = min(leaves, key=used.get)
        assert tree.match(root, list(victim), len(victim)).at == len(victim) - 1, "this leaf, and only its page"
        del used[victim]
        assert tree.num_pages == len(used)


def test_a_childless_leaf_is_extended_in_place_unless_others_need_it_as_it_is():
    tree = small_tree()
    root = tree.root("a")
    node = publish(tree, root, [1, 2, 3, 4])
    grown, _, _ = tree.insert(node, [1, 2, 3, 4, 5, 6], tree.allocator.allocate(1))
    assert grown is node and node.end == 6
    tree.lock(node, 6)
    child, _, _ = tree.insert(node, [1, 2, 3, 4, 5, 6, 7, 8], tree.allocator.allocate(1))
    assert child is not node and child.parent is node
    check_tree(tree, [node, child])


def test_a_split_keeps_the_object_as_its_lower_half():
    """The three steps drawn in `radix_tree.py`: remembered places stay right, and a live node has a live path."""
    tree = small_tree()
    root, first, second = tree.root("t"), [1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 9]
    a = publish(tree, root, first)
    tree.unlock(a)
    assert (a.start, a.end, a.locks, a.is_evictable) == (0, 6, 0, True)

    found = tree.match(root, second, len(second))
    assert (found.node, found.at) == (a, 2), "the match ends inside A"
    b = tree.lock(found.node, found.at)
    assert (b.start, b.end, b.locks, b.children) == (0, 2, 1, [a]) and b is not a
    assert (a.start, a.end, a.locks, a.parent) == (2, 6, 0, b), "A is the lower half"
    assert tree.climb(a, 6) == (a, 6) and tree.climb(a, 2) == (b, 2), "places in A are still right"

    assert tree.partial_match(b, second[2:4]) == (a, a.pages[0], 1)
    c, at, _ = tree.insert(b, second, tree.allocator.allocate(2))
    assert (c.start, at, c.locks, b.locks, b.children) == (2, 6, 1, 1, [a, c]) and a.is_evictable
    grown, _, _ = tree.insert(c, [*second, 7, 8], tree.allocator.allocate(1))
    assert grown is c and c.end == 8
    check_tree(tree, [c])


def test_what_grows_where_something_was_evicted_is_not_mistaken_for_it():
    tree = small_tree()
    root = tree.root("a")
    node = publish(tree, root, [1, 2, 3, 4, 5, 6])
    tree.unlock(node)
    tree.trim(tree.next_victim(), 1)
    other = publish(tree, root, [1, 2, 3, 4, 7, 8])
    climbed, at = tree.climb(node, 6)
    assert at < 6 and not climbed.dead
    assert at == 4 and other.parent is climbed and not node.dead, "what grows there is a child, not the old leaf"
    assert tree.match(root, [1, 2, 3, 4, 5, 6], 6).at == 4


def test_a_private_root_goes_with_its_last_user():
    tree = small_tree()
    root = tree.private_root()
    tree.join(root)
    tree.join(root)
    tree.unlock(publish(tree, root, [1, 2, 3, 4]))
    tree.leave(root)
    assert tree.num_pages == 2
    tree.leave(root)
    assert tree.num_pages == 0 and tree.allocator.num_free == 64 and tree.next_victim() is None
    check_tree(tree, [])


def chain(tree: RadixTree, tokens: int) -> tuple[Node, list[int]]:
    log = list(range(tokens))
    return publish(tree, tree.root("a"), log), log


@pytest.mark.parametrize("tokens", [100, 10_000, 100_000])
def test_publishing_costs_what_is_new_and_resuming_costs_nothing(tokens):
    tree = small_tree(num_pages=tokens // 10, page_size=20)
    node, log = chain(tree, tokens)
    visited, compared = tree.nodes_visited, tree.tokens_compared
    tree.insert(node, [*log, *range(40)], tree.allocator.allocate(2))
    assert tree.climb(node, tokens) == (node, tokens)
    assert tree.nodes_visited == visited and tree.tokens_compared == compared


def test_eviction_does_not_look_at_every_leaf():
    """Of 2,000 leaves each eviction touches a few entries of a heap."""
    tree = small_tree(num_pages=5000, page_size=1)
    for first in range(2000):
        tree.unlock(publish(tree, tree.root("a"), [first, first]))
    pops = 0
    original = tree._update_rank

    def counted(node):
        nonlocal pops
        pops += 1
        original(node)

    tree._update_rank = counted
    for _ in range(1000):
        tree.trim(tree.next_victim(), 1)
    assert pops <= 3000
    check_tree(tree, [])


@pytest.mark.parametrize(
    "damage", ["lock", "dead", "order", "page count", "start", "heap", "locked pages", "foreign lock"]
)
def test_check_finds_wrong_bookkeeping(damage):
    tree = small_tree()
    root = tree.root("a")
    first, second = publish(tree, root, [1, 2, 3, 4]), publish(tree, root, [1, 2, 5, 6])
    tree.unlock(second)
    check_tree(tree, [first])
    locked = [first]
    if damage == "lock":
        first.locks += 1
    elif damage == "dead":
        second.dead = True
    elif damage == "order":
        first.parent.children.reverse()
    elif damage == "page count":
        tree.num_pages += 1
    elif damage == "start":
        second.start += 2
    elif damage == "heap":
        tree.evictable_leaves.remove(tree.next_victim())
    elif damage == "locked pages":
        tree.num_locked -= 1
    else:
        locked.append(Node(None, 0, bytearray(), [], 0))
    with pytest.raises(BrokenInvariant):
        check_tree(tree, locked)
