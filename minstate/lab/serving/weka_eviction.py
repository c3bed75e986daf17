"""Eviction policies on recorded traffic: the hit rate of each, beside what the hashes of the trace allow.

A block of the trace is one page, and its hash id is the page's only token. So the real prefix cache replays a hundred
million tokens in seconds. Requests come in the order and at the times of the trace, and none waits for another.
"""

from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import groupby
from math import inf

import pandas as pd

from minstate.lab.serving.stub_pool import StubPool
from minstate.lab.serving.weka import WekaRequest, WekaTrace
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence

POLICIES = ("LRU", "clairvoyance")
END = 2**31 - 1  # stands behind each prompt: the last token of a log is never matched


@dataclass(frozen=True)
class BlockAccess:
    """A request as blocks, numbered over all traces, and when each block is used next: never earlier than the last."""

    at_s: float
    tokens: int
    blocks: tuple[int, ...]
    next_s: tuple[float, ...]
    block_size: int


def block_accesses(traces: Rows[WekaTrace], every_s: float = 60.0) -> list[BlockAccess]:
    """All requests of all traces in order of time. Traces begin `every_s` after each other."""
    numbers: dict[tuple, int] = {}
    rows: list[tuple[float, WekaTrace, WekaRequest, tuple[int, ...]]] = []
    for place, trace in enumerate(traces):
        space = "global" if trace.scope == "global" else place
        for request in trace.requests:
            blocks = tuple(numbers.setdefault((space, block), len(numbers)) for block in request.blocks)
            rows.append((place * every_s + request.at_s, trace, request, blocks))
    rows.sort(key=lambda row: row[0])
    next_s: dict[int, float] = {}
    accesses = []
    for at_s, trace, request, blocks in reversed(rows):
        uses = tuple(next_s.get(block, inf) for block in blocks)
        accesses.append(BlockAccess(at_s, request.tokens, blocks, uses, trace.block_size))
        next_s.update(dict.fromkeys(blocks, at_s))
    return accesses[::-1]


def allowed_hits(accesses: Rows[BlockAccess]) -> int:
    """Tokens that a cache without limit would find: of each request, the leading blocks that an earlier one had."""
    seen: set[int] = set()
    hits = 0
    for access in accesses:
        known = next((at for at, block in enumerate(access.blocks) if block not in seen), len(access.blocks))
        hits += known * access.block_size
        seen.update(access.blocks)
    return hits


def replay_blocks(accesses: Rows[BlockAccess], num_blocks: int, policy: str) -> int:
    """Tokens that a prefix cache of so many blocks finds. Raises `OutOfPages` if a request alone needs more.

    policy  "LRU", or "clairvoyance": the block whose next use is the furthest away is evicted first
    """
    now_s, hits = 0.0, 0
    cache = PrefixCache(StubPool(num_blocks, 1), clock=lambda: now_s)
    root = cache.tree.root("everybody")
    keeper = Sequence(cache.pool)  # keeps the root while nobody runs
    cache.enter(keeper, root)
    expected: deque[tuple[float, Sequence]] = deque()
    for access in accesses:
        now_s = access.at_s
        for _ in range(len(expected)):  # what was expected by now has come
            when, known = expected.popleft()
            if when <= now_s:
                cache.release(known)
            else:
                expected.append((when, known))
        sequence = Sequence(cache.pool)
        cache.enter(sequence, root)
        sequence.log += [*access.blocks, END]
        cache.begin(sequence)
        hits += sequence.kv_len * access.block_size
        sequence.table.append(len(access.blocks) - sequence.kv_len)
        sequence.table.commit()
        cache.publish(sequence)
        cache.end(sequence, len(sequence.log))
        if policy == "clairvoyance":
            expected += _expectations(cache, root, access, now_s)
        cache.release(sequence)
    return hits


def _expectations(cache: PrefixCache, root, access: BlockAccess, now_s: float) -> list[tuple[float, Sequence]]:
    """A sequence for each prefix of the prompt that is used next at a time of its own, expected back then."""
    found, length = [], 0
    for when, same in groupby(access.next_s):
        length += len(list(same))
        if when == inf:
            break
        prefix = Sequence(cache.pool)
        cache.enter(prefix, root)
        prefix.log += [*access.blocks[:length], END]
        cache.begin(prefix)
        cache.end(prefix, len(prefix.log))
        cache.expect(prefix, when - now_s)
        found.append((when, prefix))
    return found


def compare_on_weka(
    traces: Rows[WekaTrace], *, pools: Rows[float] = (1, 1 / 2, 1 / 4, 1 / 8), every_s: float = 60.0
) -> pd.DataFrame:
    """The hit rate of each policy, for pools that are shares of all blocks; and the one that the hashes allow."""
    accesses = block_accesses(traces, every_s)
    prompts = sum(access.tokens for access in accesses)
    different = len({block for access in accesses for block in access.blocks})
    longest = max(len(access.blocks) for access in accesses)
    allowed, rows = allowed_hits(accesses) / prompts, []
    for share in pools:
        num_blocks = max(longest, int(share * different)) + 1
        for policy in POLICIES:
            hits = replay_blocks(accesses, num_blocks, policy)
            rows.append(
                {"pool": share, "policy": policy, "blocks": num_blocks, "hit rate": hits / prompts, "allowed": allowed}
            )
    table = pd.DataFrame(rows).set_index(["pool", "policy"])
    table.attrs |= {"requests": len(accesses), "prompt tokens": prompts, "different blocks": different}
    return table
