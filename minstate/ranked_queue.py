"""A queue of items with ranks: the item with the lowest rank comes first, and a rank may change at any time.

A heap cannot find an entry in its middle. So when an item's rank changes, or the item is removed, its old entry stays
in the heap. `first` skips such an outdated entry, because it disagrees with the item's current rank. The heap never
holds more outdated entries than current ones, so an operation takes amortised O(log n).
"""

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Rank = TypeVar("Rank")


class RankedQueue(Generic[Item, Rank]):
    """Items by rank. Of items with equal ranks, the one that has had its rank for longest comes first."""

    def __init__(self):
        self._current: dict[Item, tuple[Rank, int]] = {}  # an item's rank, and the number of its entry
        self._heap: list[tuple[Rank, int, Item]] = []  # entry numbers differ, so items are never compared
        self._last_number = 0

    def put(self, item: Item, rank: Rank) -> None:
        """Add `item`, or change its rank."""
        if item in self._current and self._current[item][0] == rank:
            return
        self._last_number += 1
        self._current[item] = rank, self._last_number
        heapq.heappush(self._heap, (rank, self._last_number, item))
        self._rebuild_if_outdated()

    def remove(self, item: Item) -> Rank | None:
        """Take `item` out. Returns its rank, or None if the queue does not hold it."""
        rank, _ = self._current.pop(item, (None, 0))
        self._rebuild_if_outdated()
        return rank

    def rank(self, item: Item) -> Rank:
        """The rank of `item`. Raises `KeyError` if the queue does not hold it."""
        return self._current[item][0]

    def get(self, item: Item) -> Rank | None:
        """The rank of `item`, or None if the queue does not hold it."""
        return self._current[item][0] if item in self._current else None

    def first(self) -> Item | None:
        """The item with the lowest rank, or None if the queue is empty."""
        while self._heap and self._current.get(self._heap[0][2]) != self._heap[0][:2]:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def __contains__(self, item: Item) -> bool:
        return item in self._current

    def __iter__(self) -> Iterator[Item]:
        """Items in the order in which they were added."""
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def _rebuild_if_outdated(self) -> None:
        """Rebuild the heap once more than half of its entries are outdated: O(1) for each of these entries."""
        if len(self._heap) > 2 * len(self._current):
            self._heap = [(rank, number, item) for item, (rank, number) in self._current.items()]
            heapq.heapify(self._heap)
