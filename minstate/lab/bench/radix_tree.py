"""What the prefix tree's bookkeeping costs without any model: counts, and microseconds."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from minstate.paged_kv import KVPool
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence

PAGE_SIZE = 16


def cache_of(tokens: int) -> PrefixCache:
    """An empty cache for `tokens` tokens, of a model with one number for K and one for V."""
    num_pages = tokens // PAGE_SIZE + 64
    return PrefixCache(KVPool(num_layers=1, num_kv_heads=1, head_dim=1, num_pages=num_pages, page_size=PAGE_SIZE))


def idle_sequence(cache: PrefixCache, log: list[int]) -> Sequence:
    """A sequence whose turn has ended: all of `log` but the last token has K/V."""
    sequence = Sequence(cache.pool)
    cache.enter(sequence, cache.tree.root("a"))
    grow(cache, sequence, log)
    return sequence


def grow(cache: PrefixCache, sequence: Sequence, new: list[int]) -> None:
    """One turn's bookkeeping: find the K/V that the cache has, forward the rest, publish it, become idle."""
    sequence.log += new
    cache.begin(sequence)
    cache.extend(sequence)
    sequence.table.append(len(sequence.log) - 1 - sequence.kv_len)
    sequence.table.commit()
    cache.publish(sequence)
    cache.end(sequence, len(sequence.log))


def match(tokens: int, node_pages: int | None = None) -> tuple[PrefixCache, Callable[[], object]]:
    """A new session finds a whole prompt that others have computed, in one node or in nodes of `node_pages` pages."""
    cache = cache_of(tokens)
    tree, allocator = cache.tree, cache.pool.allocator
    log = np.random.default_rng(0).integers(0, 49152, tokens).tolist()
    root, pages = tree.root("a"), tokens // PAGE_SIZE
    node, at = tree.lock(root, 0), 0
    while at < pages * PAGE_SIZE:
        tree.lock(node, at)  # a second lock: the next pages do not extend this node, but become its child
        new = allocator.allocate(min(node_pages or pages, pages - at // PAGE_SIZE))
        node, at, _ = tree.insert(node, log, new)
    return cache, lambda: tree.match(root, log, tokens)


def turn(tokens: int) -> tuple[PrefixCache, Callable[[], object]]:
    """A session of `tokens` tokens takes a turn of 64 new tokens."""
    cache = cache_of(2 * tokens + 64 * 2000)
    sequence = idle_sequence(cache, [7] * tokens)
    return cache, lambda: grow(cache, sequence, [8] * 64)


def evict(leaves: int) -> tuple[PrefixCache, Callable[[], object]]:
    """One page is needed, and each of `leaves` idle sessions has one that may be evicted."""
    cache = cache_of(PAGE_SIZE * (leaves + 64))
    for leaf in range(leaves):
        idle_sequence(cache, [*[leaf] * PAGE_SIZE, 0])
    return cache, lambda: cache.make_room(1)


def radix_tree(rounds: int = 50) -> pd.DataFrame:
    """For growing sizes: how many nodes one operation visits, how many tokens it compares, and its microseconds."""
    rows = []
    for operation, make, sizes in [
        ("match in one node, tokens", match, (1_000, 10_000, 100_000)),
        ("match, 16 pages a node, tokens", partial(match, node_pages=16), (1_000, 10_000, 100_000)),
        ("match, one page a node, tokens", partial(match, node_pages=1), (1_000, 10_000, 100_000)),
        ("turn of 64 new tokens, tokens before it", turn, (1_000, 10_000, 100_000)),
        ("evict a page, leaves", evict, (100, 1_000, 10_000)),
    ]:
        for size in sizes:
            cache, run = make(size)
            tree, times = cache.tree, []
            visited, compared = tree.nodes_visited, tree.tokens_compared
            for _ in range(rounds):
                start = time.perf_counter()
                run()
                times.append(1e6 * (time.perf_counter() - start))
            rows.append(
                {
                    "operation": operation,
                    "size": size,
                    "nodes visited": (tree.nodes_visited - visited) / rounds,
                    "tokens compared": (tree.tokens_compared - compared) / rounds,
                    "median µs": np.median(times),
                    "slowest µs": max(times),
                }
            )
    return pd.DataFrame(rows).set_index(["operation", "size"])
