"""Tiers: where the prefix tree's pages go when the pool has no room for them, and how they come back.

    pool ──demote──▶ host memory ──demote──▶ disk ──▶ lost
      ▲                   │                    │
      └──────promote──────┴────────────────────┘

The tree gives each of its pages a name, which stands for all tokens down to the page's end (`radix_node.page_names`).
Before pages are evicted, `demote` copies them into the first tier under their names. Where a match in the tree ends,
the names of the pages that the log goes on with are looked up in the tiers. `promote` copies what it finds into pages
of the sequence's own, which are then published as if they had been computed. So the tree, locks and owners know nothing
of tiers, the tiers own no page of the pool, and a page that a tier has lost is a page that is computed.

Each tier evicts its least recently used page, to the tier below. A hint (`Session.expect`) counts as a use. A page that
is promoted leaves the host tier, whose room another page can use, but stays on the disk for the next engine. While the
turn that is admitted next waits, a thread reads its pages from the disk, and checks them.

Bytes are stored as they are in the pool, so eviction never changes an output. Reading a page costs bytes ÷ bandwidth,
computing it costs FLOPs. `CostTable` has both, measured once, so no decision reads a clock: pages are promoted only
where this costs less. Otherwise they are computed, and the scheduler's timeline says so.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from minstate.arguments import whole_number
from minstate.disk_store import DiskStore, file_bytes
from minstate.draft_budget import CostTable
from minstate.errors import BrokenInvariant, OutOfPages
from minstate.paged_kv import KVPool, pages_for
from minstate.radix_node import TOKEN_BYTES, Node, Place, encode, page_names
from minstate.ranked_queue import RankedQueue
from minstate.sequence import Sequence


class Promotion(NamedTuple):
    """What a look into the tiers has brought."""

    tokens: int = 0  # whose K/V is in the pool again
    computed: int = 0  # tokens that a tier has, too, but that cost less to compute than to move
    seconds: float = 0.0


class HostStore:
    """Pages in host memory: pinned, so that a GPU can copy it; or, on a CPU, a file that is mapped into memory.

    The file has no name, and its room is reserved at once: a full disk is an error here, not a crash later on.
    """

    keeps = False

    def __init__(self, num_pages: int, page_bytes: int, *, pinned: bool):
        if pinned:
            self._memory = torch.empty((num_pages, page_bytes), dtype=torch.uint8, pin_memory=True)
        else:
            with tempfile.TemporaryFile(prefix="minstate-") as file:
                os.posix_fallocate(file.fileno(), 0, num_pages * page_bytes)
                mapped = np.memmap(file, np.uint8, "r+", shape=(num_pages, page_bytes))
            self._memory = torch.from_numpy(mapped)
        self._free, self._slots = list(range(num_pages)), dict[bytes, int]()

    def put(self, name: bytes, page: torch.Tensor) -> bool:
        """Copy a page's bytes here. There is room, because a tier never holds more than its number of pages."""
        self._slots[name] = self._free.pop()
        self._memory[self._slots[name]] = page
        return True

    def get(self, name: bytes) -> torch.Tensor:
        """A page's bytes, valid until the next `put`."""
        return self._memory[self._slots[name]]

    def drop(self, name: bytes) -> None:
        """Give the page's room up."""
        self._free.append(self._slots.pop(name))

    def check(self, names: set[bytes]) -> bool:
        """Whether it holds these pages, and each place is free or has one page."""
        places = sorted([*self._free, *self._slots.values()])
        return self._slots.keys() == names and places == list(range(len(self._memory)))


class Tier:
    """Pages by name, `num_pages` at most, and when each was used last. What it evicts goes to the tier `below`."""

    def __init__(self, store: HostStore | DiskStore, num_pages: int, bytes_per_s: float, below: "Tier | None" = None):
        self.store, self.num_pages, self.bytes_per_s, self.below = store, num_pages, bytes_per_s, below
        self.used: RankedQueue[bytes, int] = RankedQueue()

    def put(self, name: bytes, used: int, page: torch.Tensor | None) -> None:
        """Keep a page that was last used at `used`, unless the store fails. `page` is only read if it is not here."""
        if page is not None and name not in self.used:
            self._make_room()
            if not self.store.put(name, page):
                return
        self.used.put(name, max(used, self.used.get(name) or used))

    def take(self, name: bytes) -> torch.Tensor | None:
        """A page's bytes, valid until the next `put`; None if the store has lost them."""
        page = self.store.get(name)
        if page is None or not self.store.keeps:
            self.forget(name)
        return page

    def forget(self, name: bytes) -> None:
        """The page is not here any more."""
        self.used.remove(name)
        self.store.drop(name)

    def _make_room(self) -> None:
        while len(self.used) >= self.num_pages and (name := self.used.first()) is not None:
            page = self.store.get(name) if self.below else None
            if self.below and page is not None:
                self.below.put(name, self.used.rank(name), page)
            self.forget(name)


class Tiers:
    """The tiers below one pool, the fastest first. Raises OSError if host memory has no room for `host_tokens`."""

    def __init__(self, pool: KVPool, costs: CostTable | None = None, host_tokens: int = 0):
        self._pool, self._costs = pool, costs or CostTable.default("float32")
        self.tiers: list[Tier] = []
        if pages := pages_for(whole_number("host_tokens", host_tokens), pool.page_size):
            store = HostStore(pages, pool.bytes_per_page, pinned=pool.kv.is_cuda)
            self.tiers.append(Tier(store, pages, self._costs.host_bytes_per_s))
        self.next: Sequence | None = None  # the waiting sequence whose pages are read ahead

    def add_disk(self, folder: str | Path | None, max_bytes: int, fingerprint: str) -> None:
        """Keep pages in a folder, too: those that are there already, and `max_bytes` at most. Raises as `DiskStore`."""
        if folder is None:
            return
        kv, size = self._pool.kv, self._pool.page_size
        layout = {"format": "minstate-pages-1", "model": fingerprint, "dtype": str(kv.dtype), "page_size": size}
        store = DiskStore(
            folder, self._pool.bytes_per_page, json.dumps(layout | {"shape": [*kv.shape[:3], kv.shape[4]]})
        )
        each = file_bytes(self._pool.bytes_per_page)
        disk = Tier(store, whole_number("disk_bytes", max_bytes, each) // each, self._costs.disk_bytes_per_s)
        names = store.names()
        for age, name in enumerate(reversed(names), 1):
            if age <= disk.num_pages:
                disk.used.put(name, -age)
            else:
                store.drop(name)
        for tier in self.tiers:
            tier.below = disk
        self.tiers.append(disk)

    def demote(self, names: list[bytes], pages: list[int], used: int) -> None:
        """Keep pages of the pool that are about to be evicted, and were last used at `used`."""
        if self.tiers:
            self._put(self.tiers[0], list(zip(names, pages, strict=True)), used)

    def flush(self, nodes: Iterable[Node]) -> None:
        """Copy the tree's pages, and the host tier's, to the disk; where it is too small, those used last."""
        if not self.tiers or not self.tiers[-1].store.keeps:
            return
        disk, used, waiting = self.tiers[-1], dict[Node, int](), list(nodes)
        for tier in self.tiers[:-1]:
            for name in sorted(tier.used, key=tier.used.rank):
                disk.put(name, tier.used.rank(name), tier.store.get(name))
        for node in reversed(waiting):  # children first: to use a node is to use the path to it
            used[node] = max([node.last_used, *(used[child] for child in node.children)])
        for node in sorted(waiting, key=lambda node: (used[node], -node.start)):
            self._put(disk, list(zip(node.names, node.pages, strict=False)), used[node])  # a root has no pages

    def find(self, place: Place, log: list[int], now: int) -> list[tuple[bytes, Tier]]:
        """The pages behind a place in the tree that tiers have, by their names. They are used `now`."""
        found = []
        for name in self._names(place, log) if self.tiers else ():
            if (tier := self._tier_of(name)) is None:
                break
            found.append((name, tier))
        for name, tier in reversed(found):  # of equals the deepest is evicted first
            tier.used.put(name, now)
        return found

    def read_ahead(self, sequence: Sequence, place: Place, now: int) -> None:
        """The sequence's turn is admitted next: begin to read what `promote` will want behind its place in the tree."""
        self.next = sequence
        if self.tiers and isinstance(store := self.tiers[-1].store, DiskStore):
            found = self.find(place, sequence.log, now)
            worth = self._worth_moving(found, len(sequence.log), place.at, sequence.kv_len)
            store.read_ahead([name for name, tier in found[:worth] if tier.store is store])

    def promote(self, sequence: Sequence, now: int) -> Promotion:
        """Copy what `find` finds into pages of the sequence's own, as far as that costs less than computing it."""
        start_s, before, size, table = time.perf_counter(), sequence.kv_len, self._pool.page_size, sequence.table
        found = self.find(Place(sequence.node, table.borrowed_tokens, []), sequence.log, now)
        worth = self._worth_moving(found, len(sequence.log), table.borrowed_tokens, before)
        for name, _ in found[:worth]:
            at = table.length // size * size
            try:
                table.append(at + size - table.length)  # may demote pages, and so move even this one to another tier
            except OutOfPages:
                break
            tier = self._tier_of(name)
            data = tier.take(name) if tier else None
            if data is None:
                table.truncate(table.length)
                break
            self._write(data, table.pages[-1], table.length - at)
            table.commit()
        if self.next is sequence:
            self.next = None
        seconds = time.perf_counter() - start_s
        return Promotion(table.length - before, (len(found) - worth) * size, seconds)

    def check(self) -> None:
        """Recount all tiers. Raises `BrokenInvariant`."""
        for tier in self.tiers:
            if len(tier.used) > tier.num_pages or not tier.store.check(set(tier.used)):
                raise BrokenInvariant(f"a {type(tier.store).__name__} does not hold the pages that its tier counts")

    def _names(self, place: Place, log: list[int]) -> Iterator[bytes]:
        """The names of the log's whole pages behind a place. The log's last token is left to be forwarded."""
        size, (node, at, _) = self._pool.page_size, place
        above = node.names[(at - node.start) // size - 1]  # a root has one name, and its place is 0
        whole = max(0, (len(log) - 1 - at) // size * size)
        return page_names(above, encode(log[at : at + whole]), size * TOKEN_BYTES)

    def _tier_of(self, name: bytes) -> Tier | None:
        return next((tier for tier in self.tiers if name in tier.used), None)

    def _worth_moving(self, found: list[tuple[bytes, Tier]], length: int, at: int, known: int) -> int:
        """How many of the pages from `at` on cost less to read than to compute, run by run of pages in one tier.

        length  of the log, of which `known` tokens have K/V, or `at` if these are more
        """
        ms, start, worth = self._costs.at(length), max(at, known), 0
        for tier, run in groupby(found, key=lambda pair: pair[1]):
            pages = len(list(run))
            end = at + (worth + pages) * self._pool.page_size
            if 1000 * pages * self._pool.bytes_per_page / tier.bytes_per_s >= ms(length - start) - ms(length - end):
                break
            start, worth = end, worth + pages
        return worth

    def _put(self, tier: Tier, pages: list[tuple[bytes, int]], used: int) -> None:
        """Copy pages of the pool into a tier, the deepest first: of equals it is evicted first."""
        for name, page in reversed(pages):
            tier.put(name, used, None if name in tier.used else self._read(page))

    def _read(self, page: int) -> torch.Tensor:
        """The bytes of a page of the pool."""
        return self._slots_of(page).flatten().view(torch.uint8)

    def _write(self, data: torch.Tensor, page: int, first: int) -> None:
        """Copy a page's bytes into a page of the pool, from its slot `first` on."""
        target = self._slots_of(page)
        target[:, :, :, first:] = data.view(target.dtype).view(target.shape)[:, :, :, first:]

    def _slots_of(self, page: int) -> torch.Tensor:
        return self._pool.kv.unflatten(3, (-1, self._pool.page_size))[:, :, :, page]
