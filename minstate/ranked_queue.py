"""What is given up first: things with a rank each, the lowest first, in O(log n).

A heap cannot find an entry in its middle. So one whose rank has changed gets a new entry, and the old one, which then
disagrees with the present rank, is passed over when it comes up. There are never more old entries than present ones.
"""

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Rank = TypeVar("Rank")


class RankedQueue(Generic[Item, Rank]):
    """Items by rank; of equal ranks, the one that got it earlier."""

    def __init__(self):
        self._present: dict[Item, tuple[Rank, int]] = {}  # its rank, and the number of its entry
        self._heap: list[tuple[Rank, int, Item]] = []  # numbers differ, so items are never compared
        self._entered = 0

    def put(self, item: Item, rank: Rank) -> None:
        """Enter `item`, or give it another rank."""
        if item in self._present and self._present[item][0] == rank:
            return
        self._entered += 1
        self._present[item] = rank, self._entered
        heapq.heappush(self._heap, (rank, self._entered, item))
        self._tidy()

    def remove(self, item: Item) -> Rank | None:
        """Take `item` out. Returns its rank; None if it was not in."""
        rank, _ = self._present.pop(item, (None, 0))
        self._tidy()
        return rank

    def rank(self, item: Item) -> Rank | None:
        """None if `item` is not in."""
        return self._present[item][0] if item in self._present else None

    def first(self) -> Item | None:
        """The item with the lowest rank."""
        while self._heap and self._present.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def __contains__(self, item: Item) -> bool:
        return item in self._present

    def __iter__(self) -> Iterator[Item]:
        """In the order of their entering."""
        return iter(self._present)

    def __len__(self) -> int:
        return len(self._present)

    def _tidy(self) -> None:
        """Rebuilding costs what the entries cost that have become old since the last time."""
        if len(self._heap) > 2 * len(self._present):
            self._heap = [(rank, number, item) for item, (rank, number) in self._present.items()]
            heapq.heapify(self._heap)
