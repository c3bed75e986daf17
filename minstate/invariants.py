"""What must hold for pages, tree, tails and expectations between two steps: recounted from scratch.

    pages         Each page is free, owned by one node of the tree, or among the own pages of a sequence and its forks.
    tree          Siblings are sorted and differ in their first page. Locks add up. The queue of evictable leaves holds
                  exactly the live leaves without locks, each with its rank.
    sequences     The tree's tokens and pages down to a sequence's place are the sequence's own, position by position.
                  A running sequence has its place locked.
    tiers         Each tier holds the pages that it counts, and no more than it may.
    tails         Of an idle sequence's K/V less than a page is not in the tree. This tail is evicted before the pages
                  in front of it.
    expectations  Each expected sequence is idle, and entered once in the tree, at the node where its place ends.

The bookkeeping itself never recounts: it keeps all of this true at O(what is new). `Engine.check()` and the tests call
these functions, which take as long as there is to count, and raise `BrokenInvariant`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from minstate.errors import BrokenInvariant
from minstate.prefix_cache import PrefixCache
from minstate.radix_node import TOKEN_BYTES, EvictionRank, Node, page_names
from minstate.radix_tree import RadixTree
from minstate.request import Request
from minstate.sequence import Sequence
from minstate.session import Session


def check_engine(
    cache: PrefixCache, sessions: list[Session], open_: set[Sequence], running: list[Request], requests: list[Request]
) -> None:
    """Recount all sessions and pages, given the running turns, and all that are under way. Raises `BrokenInvariant`.

    open_  sequences of sessions that are open, or whose destructor has left them to be released
    """
    for session in sessions:
        session.check()
    check_cache(cache, open_, running=[request.sequence for request in running])
    if {session.running for session in sessions} - {None} != set(requests):
        raise BrokenInvariant("the turns of the sessions are not those of the scheduler")


def check_cache(cache: PrefixCache, sequences: Iterable[Sequence], running: Iterable[Sequence]) -> None:
    """Recount all pages, given all open sequences and those whose turns are running. Raises `BrokenInvariant`."""
    sequences, running = list(sequences), set(running)
    idle = set(sequences) - running
    if running != cache.running:
        raise BrokenInvariant("the cache's running sequences are not those of running turns")
    if +cache.tree.users != Counter(sequence.root for sequence in sequences):
        raise BrokenInvariant("the sequences under the tree's roots are not those that are open")
    check_tree(cache.tree, [sequence.node for sequence in running])
    cache.tiers.check()
    pages_of_nodes = [node.pages for node in cache.tree.nodes()]
    cache.pool.allocator.check([*pages_of_nodes, *(sequence.table.own_pages for sequence in sequences)])
    _check_places(cache, sequences, running)
    _check_tails(cache, idle)
    _check_expectations(cache, idle)


def check_tree(tree: RadixTree, locked: Iterable[Node]) -> None:
    """Recount the tree, given the node that each running turn has locked. Raises `BrokenInvariant`."""
    nodes, turns = list(tree.nodes()), Counter(locked)
    for node in nodes:
        _check_node(tree, node, turns[node])
    if not set(tree.evictable_leaves) <= set(nodes):
        raise BrokenInvariant("a node in the queue of evictable leaves is not in the tree")
    if not turns.keys() <= set(nodes):
        raise BrokenInvariant("a running turn's node is not in the tree")
    num_pages = sum(len(node.pages) for node in nodes)
    num_locked = sum(len(node.pages) for node in nodes if node.locks)
    if (num_pages, num_locked) != (tree.num_pages, tree.num_locked):
        counted = f"{tree.num_pages} pages, {tree.num_locked} of them locked"
        raise BrokenInvariant(f"the tree counts {counted}; it has {num_pages} and {num_locked}")


def _check_node(tree: RadixTree, node: Node, turns: int) -> None:
    """Recount one node, whose end is the place of so many running turns."""
    page_bytes = tree.page_size * TOKEN_BYTES
    names = list(page_names(node.parent.names[-1], node.key, page_bytes)) if node.parent else node.names
    first_pages = [bytes(child.key[:page_bytes]) for child in node.children]
    children_with_locks = [child for child in node.children if child.locks]
    rank = node.rank if node.is_evictable else None
    for holds, fault in [
        (not node.dead, "is in the tree and dead"),
        (len(node.key) == len(node.pages) * page_bytes, "has a key and pages of different lengths"),
        (node.names == names, "has names that are not those of its pages"),
        (bool(node.pages) == bool(node.parent), "is a root with pages, or another node without"),
        (first_pages == sorted(set(first_pages)), "has children out of order, or with the same first page"),
        (all(child.parent is node for child in node.children), "has a child with another parent"),
        (all(child.start == node.end for child in node.children), "has a child that does not start at its end"),
        (node.locks == turns + len(children_with_locks), "has a wrong number of locks"),
        (node.expected == sorted(node.expected), "has expectations out of order"),
        (tree.evictable_leaves.get(node) == rank, "would not be evicted in its turn"),
    ]:
        if not holds:
            raise BrokenInvariant(f"{node} {fault}")


def _check_places(cache: PrefixCache, sequences: list[Sequence], running: set[Sequence]) -> None:
    for sequence in sequences:
        node, at = _place(cache, sequence)
        if sequence in running and (node is not sequence.node or at != node.end):
            raise BrokenInvariant("a running turn's place in the tree is not what it has locked")
        path = cache.tree.match(sequence.root, sequence.log, at)
        if (path.at, path.pages) != (at, sequence.table.pages[: len(path.pages)]):
            raise BrokenInvariant(f"the tree's tokens or pages down to {node} are not the sequence's")


def _check_tails(cache: PrefixCache, idle: set[Sequence]) -> None:
    if set(cache.idle_tails) != {sequence for sequence in idle if sequence.table.own_pages}:
        raise BrokenInvariant("the tails that can be evicted are not those of idle sequences")
    for sequence in cache.idle_tails:
        if len(sequence.table.own_pages) > 1 or sequence.kv_len % cache.pool.page_size == 0:
            raise BrokenInvariant("an idle sequence keeps full pages to itself")
        rank, expected_at = cache.idle_tails.rank(sequence), cache.expected_returns.get(sequence)
        if expected_at is None:
            in_turn = not rank.is_expected
        else:
            in_turn = rank == EvictionRank.of(sequence.node.last_used, expected_at)
        if not in_turn or rank > sequence.node.rank:
            raise BrokenInvariant("a tail would not be evicted in its turn, before the pages in front of it")


def _check_expectations(cache: PrefixCache, idle: set[Sequence]) -> None:
    if not set(cache.expected_returns) <= idle:
        raise BrokenInvariant("a sequence is expected back that is running, or closed")
    times = defaultdict(list)
    for sequence in cache.expected_returns:
        node, at = _place(cache, sequence)
        times[node].append(cache.expected_returns.rank(sequence))
        if at != node.end:
            raise BrokenInvariant(f"{node} is protected for a sequence that does not need its end")
    if any(node.expected != sorted(times[node]) for node in cache.tree.nodes()):
        raise BrokenInvariant("a node's expected times are not those of the sequences that are expected there")


def _place(cache: PrefixCache, sequence: Sequence) -> tuple[Node, int]:
    """Where what eviction has left of a sequence's borrowed pages ends."""
    return cache.tree.climb(sequence.node, sequence.table.borrowed_tokens)
