"""A growing log of token ids, and how much of it has keys and values."""

from minstate.errors import BrokenInvariant
from minstate.paged_kv import KVPool, PageTable
from minstate.radix_tree import Node
from minstate.speculation import Speculator


class Sequence:
    """A growing log of token ids, and how much of it has keys and values in the pool.

    `log[:kv_len]` has K/V; the rest has still to be forwarded. At rest `kv_len <= len(log) - 1`: the last token's
    logits are what the next token is chosen from, so there is always at least one token to forward.
    """

    def __init__(self, pool: KVPool):
        self.log: list[int] = []
        self.table = PageTable(pool)
        # In the prefix tree, and looked after by `PrefixCache`: whom it shares with, and where its borrowed pages end.
        self.root: Node | None = None
        self.node: Node | None = None
        self.speculator: Speculator | None = None

    @property
    def kv_len(self) -> int:
        return self.table.length

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on, and what K/V a sequence of that length may not keep at rest."""
        if self.speculator:
            self.speculator.truncate(self.log, length)
        del self.log[length:]
        self.table.truncate(min(self.kv_len, max(0, length - 1)))

    def check(self, *, at_rest: bool) -> None:
        """Raises `BrokenInvariant` if page table and log contradict each other."""
        self.table.check()
        if self.speculator:
            self.speculator.check(self.log)
        if self.kv_len > max(0, len(self.log) - at_rest):
            raise BrokenInvariant(f"{self.kv_len} tokens with K/V in a log of {len(self.log)}, {at_rest=}")
