"""A node of the prefix tree: a run of whole pages, the tokens whose K/V they hold, and when they are evicted.

A node's key is its tokens, each as four big-endian bytes. Bytes in this form compare as the token ids do, so Python
sorts, bisects and compares keys at the speed of memory.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from sys import byteorder
from typing import NamedTuple

TOKEN_BYTES = 4
Key = bytes | bytearray


class EvictionRank(NamedTuple):
    """When pages are evicted: those with the lowest rank go first. Ranks compare field by field.

    Pages that no sequence is expected to need go first, and among these the least recently used. Of the expected pages,
    those that are needed furthest in the future go first ([Belady 1966](https://doi.org/10.1147/sj.52.0078)).
    """

    is_expected: bool
    order: float  # the time of last use; of expected pages the negated time of return, since the furthest goes first

    @classmethod
    def of(cls, last_used: int, expected_at: float | None) -> "EvictionRank":
        """The rank of pages that were used at `last_used`; `expected_at` is None if no sequence is expected back."""
        return cls(False, last_used) if expected_at is None else cls(True, -expected_at)


@dataclass(eq=False, slots=True)
class Node:
    """A run of whole pages in the prefix tree."""

    parent: "Node | None"  # None for a root, which has no pages
    start: int  # tokens above this node
    key: bytearray  # its tokens, see `encode`
    pages: list[int]
    last_used: int  # in ticks of the tree
    children: list["Node"] = field(default_factory=list)  # sorted by key
    locks: int = 0  # running turns whose place is this node's end, plus children that have locks
    expected: list[float] = field(default_factory=list)  # sorted times at which a sequence is expected back at its end
    trimmed: bool = False  # pages were evicted from its end
    dead: bool = False  # all its pages were evicted
    names: list[bytes] = field(default_factory=list)  # of its pages, see `page_names`; a root has one name, and no page

    @property
    def end(self) -> int:
        """Tokens above this node and in it."""
        return self.start + len(self.key) // TOKEN_BYTES

    @property
    def is_evictable(self) -> bool:
        """Whether it is a live leaf that no running turn locks."""
        return self.parent is not None and not (self.dead or self.children or self.locks)

    @property
    def rank(self) -> EvictionRank:
        """When its last page is evicted, if it is evictable: the first sequence to return decides."""
        return EvictionRank.of(self.last_used, self.expected[0] if self.expected else None)

    def child_index(self, key: Key) -> int:
        """The index in `children` at which a child that begins with `key` stands, or would stand."""
        return bisect_left(self.children, key, key=attrgetter("key"))

    def __repr__(self) -> str:
        state = "dead" if self.dead else f"{self.locks} locks" if self.locks else "evictable"
        return f"<Node {self.start}:{self.end}, {len(self.pages)} pages, {len(self.children)} children, {state}>"


class Place(NamedTuple):
    """Where a match ends, and the pages on the path that was matched."""

    node: Node
    at: int
    pages: list[int]


class PagePrefix(NamedTuple):
    """The common prefix of a page: the page begins with the wanted tokens, and then differs."""

    node: Node
    page: int
    length: int  # tokens that agree


def page_names(above: bytes, key: Key, page_bytes: int) -> Iterator[bytes]:
    """A name for each page of `key`: a digest of its tokens and of the name `above` it.

    So a name stands for a tenant and for all tokens from the root on: pages of equal names hold the same K/V.
    """
    for start in range(0, len(key), page_bytes):
        above = hashlib.sha256(above + key[start : start + page_bytes]).digest()
        yield above


def encode(tokens: list[int]) -> bytes:
    """Four big-endian bytes a token."""
    ids = array("I", tokens)
    if byteorder == "little":
        ids.byteswap()
    return ids.tobytes()
