"""A growing log of token ids, and how much of it has keys and values."""

from collections.abc import Iterable

from minstate.errors import BrokenInvariant
from minstate.paged_kv import KVPool, PageTable
from minstate.radix_node import Node
from minstate.ragged_batch import Chunk
from minstate.speculation import Speculator


class Sequence:
    """What scheduler and engine work on: a log of token ids, and the page table of its K/V.

    `log[:kv_len]` has K/V; the rest has still to be forwarded. At rest `kv_len <= len(log) - 1`: the last token's
    logits are what the next token is chosen from, so there is always at least one token to forward.
    """

    # Its place in the prefix tree, written by `PrefixCache` alone, from `PrefixCache.enter` on.
    root: Node  # the root that it shares with others
    node: Node  # the node where its borrowed pages end

    def __init__(self, pool: KVPool):
        self.log: list[int] = []
        self.table = PageTable(pool)
        self.speculator: Speculator | None = None

    @property
    def kv_len(self) -> int:
        """How many tokens, from the first on, have K/V."""
        return self.table.length

    def chunk(self, count: int, draft: Iterable[int] = ()) -> Chunk:
        """The next `count` tokens to forward, and a draft behind the end of the log.

        Logits are wanted at the log's end and at every token of the draft: earlier tokens' successors are known.
        """
        start, end, draft = self.kv_len, self.kv_len + count, list(draft)
        reaches_end = end == len(self.log)
        return Chunk(self.table, self.log[start:end] + draft, 1 + len(draft) if reaches_end else 0)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on, and the K/V that a sequence of that length may not keep at rest."""
        if self.speculator:
            self.speculator.truncate(self.log, length)
        del self.log[length:]
        self.table.truncate(min(self.kv_len, max(0, length - 1)))

    def check(self, *, at_rest: bool) -> None:
        """Raises `BrokenInvariant` if page table and log contradict each other."""
        self.table.check()
        if self.speculator:
            self.speculator.check(self.log)
        most = max(0, len(self.log) - 1) if at_rest else len(self.log)
        if self.kv_len > most:
            raise BrokenInvariant(f"{self.kv_len} tokens with K/V in a log of {len(self.log)}, {at_rest=}")
