"""Paged memory for keys and values: who owns which page, the tensors themselves, and one sequence's view of them.

A page holds the K/V of `page_size` consecutive tokens, for all layers. Sequences of any length then share one pool
without fragmentation, as processes share physical memory through page tables (PagedAttention, arXiv 2309.06180).

    PageAllocator   which pages are free, and how many owners the others have: plain integers, no tensors
    KVPool          the tensors: slot = page · page_size + offset
    PageTable       one sequence's pages in order: append, commit, truncate, fork with copy-on-write
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from minstate.errors import BadValue, BrokenInvariant, OutOfPages
from minstate.kv_int8 import row_width


class PageAllocator:
    """Hands out page ids and counts each page's owners; a page without an owner is free."""

    def __init__(self, num_pages: int):
        if num_pages < 1:
            raise BadValue(f"num_pages must be at least 1, not {num_pages}")
        self.owners = [0] * num_pages
        self._free = bytearray(b"\x01") * num_pages  # one byte a page, so that gaps are found at C speed
        self.num_free = num_pages
        self.reclaim: Callable[[int], None] = lambda _missing: None  # called to free so many pages, if they run out

    @property
    def num_pages(self) -> int:
        """Of all pages, free or not."""
        return len(self.owners)

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """`count` free pages, now with one owner each. Raises `OutOfPages`, and then nothing has changed.

        Attention reads a run of adjacent pages as one slice, so runs should be long: growth continues right behind
        page `after` where that is free, and new runs start inside the largest gaps.
        """
        if count < 0:
            raise BadValue(f"cannot allocate {count} pages")
        if count > self.num_free:
            self.reclaim(count - self.num_free)
        if count > self.num_free:
            why = f"{count} more KV pages needed, {self.num_free} of {self.num_pages} are free"
            ways = "close or roll back sessions, or build the engine with a larger num_pages"
            raise OutOfPages(f"{why}: {ways}", needed=count, available=self.num_free)
        pages = [] if after is None else self._take(after + 1, count)
        if len(pages) < count:
            gaps = [gap.span() for gap in re.finditer(rb"\x01+", self._free)]
            for start, end in sorted(gaps, key=lambda gap: gap[0] - gap[1]):  # the largest first
                # The owner of the page before the gap may want to grow into it: leave it half of what we can spare.
                spare = max(0, end - start - (count - len(pages))) if start > 0 else 0
                pages += self._take(start + spare // 2, count - len(pages))
                if len(pages) == count:
                    break
        return pages

    def _take(self, start: int, count: int) -> list[int]:
        """Up to `count` free pages from `start` on, as far as they are adjacent."""
        end = start
        while end < min(start + count, self.num_pages) and self._free[end]:
            self._free[end] = 0
            self.owners[end] = 1
            end += 1
        self.num_free -= end - start
        return list(range(start, end))

    def share(self, pages: Iterable[int]) -> None:
        """One more owner for each of `pages`, none of which may be free."""
        for page in pages:
            assert self.owners[page] > 0, f"page {page} is free"
            self.owners[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One owner fewer for each of `pages`; a page without an owner is free."""
        for page in pages:
            assert self.owners[page] > 0, f"page {page} is free already"
            self.owners[page] -= 1
            if self.owners[page] == 0:
                self._free[page] = 1
                self.num_free += 1

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Recount owners from `tables`, which must be all there are. Raises `BrokenInvariant`."""
        counted = Counter(page for table in tables for page in table)
        for page, owners in enumerate(self.owners):
            if owners != counted[page]:
                raise BrokenInvariant(f"page {page} is said to have {owners} owners and has {counted[page]}")
        if list(self._free) != [owners == 0 for owners in self.owners] or self.num_free != sum(self._free):
            raise BrokenInvariant("the allocator's free pages are not those without an owner")


class KVPool:
    """The keys and values of all pages: `kv[layer, 0 for K or 1 for V, kv_head, slot, width]`; int8 is in `kv_int8.py`.

    Heads come before slots, so that adjacent pages of one head are one stretch of memory. On a GPU, copies of pages are
    collected until `kv` is needed, and one kernel then makes them all, because a launch takes longer than a copy.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if page_size < 1:
            raise BadValue(f"page_size must be at least 1 token, not {page_size}")
        shape = (num_layers, 2, num_kv_heads, max(0, num_pages) * page_size, row_width(head_dim, dtype))
        try:
            # Not zeroed: the operating system lends memory only for what is written. Nothing unwritten is ever read.
            self._kv = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            size = math.prod(shape) * dtype.itemsize / 1e9
            why = f"no {size:,.0f} GB for {num_pages} KV pages: build the engine with fewer"
            raise OutOfPages(why, needed=num_pages) from error
        self.allocator, self.page_size, self._collect = PageAllocator(num_pages), page_size, self._kv.is_cuda
        self._copies: dict[int, tuple[int, int, int]] = {}  # pending copies by target: source, target, tokens

    def __repr__(self) -> str:
        return f"KVPool({self._kv.shape[3]:,} tokens in pages of {self.page_size}, {self._kv.nbytes / 1e9:.2f} GB)"

    @property
    def kv(self) -> torch.Tensor:
        """The tensor, with all copies made."""
        self.make_copies()
        return self._kv

    @property
    def bytes_per_page(self) -> int:
        """Bytes of K and V of one page, all layers."""
        return self._kv.nbytes // self.allocator.num_pages

    def copy_page(self, source: int, target: int, tokens: int | None = None) -> None:
        """Copy K and V of a page, or of its first `tokens`, in all layers."""
        tokens = self.page_size if tokens is None else tokens
        if not self._collect:
            pages = self._kv.unflatten(3, (-1, self.page_size))
            pages[:, :, :, target, :tokens] = pages[:, :, :, source, :tokens]
            return
        sources = {source for source, *_ in self._copies.values()}
        if target in sources or not self._copies.keys().isdisjoint((source, target)):
            self.make_copies()  # pending copies are made in any order, so none may depend on another
        self._copies[target] = source, target, tokens

    def make_copies(self) -> None:
        """Make the pending copies."""
        if not self._copies:
            return
        from minstate.kernels.copy_pages import copy_pages

        rows = torch.tensor(list(self._copies.values()), dtype=torch.int32)
        copy_pages(self._kv, rows.to(self._kv.device, non_blocking=True), self.page_size)
        self._copies.clear()  # only now: a forward pass that ran out of memory is tried again, and needs them


class PageTable:
    """One sequence's K/V: `pages[i // page_size]` holds token i.

        tokens   0 ─────────────── length ──────────── reserved
                 K/V written       slots handed out, K/V not written yet
        pages    borrowed │ own

    `append` hands out slots, a forward pass writes K/V into them, and `commit` counts them as written. What was not
    committed, `truncate` takes back. The first `borrowed` pages are full, belong to the prefix tree, and are only read.
    Each other page belongs to this table, or to the forks that share it, each with one share.
    """

    def __init__(self, pool: KVPool):
        self.pool = pool
        self.pages: list[int] = []
        self.length = 0
        self.reserved = 0
        self.borrowed = 0

    @property
    def own_pages(self) -> list[int]:
        """The pages behind the borrowed ones."""
        return self.pages[self.borrowed :]

    @property
    def borrowed_tokens(self) -> int:
        """How many tokens the borrowed pages hold."""
        return self.borrowed * self.pool.page_size

    @property
    def slots(self) -> list[int]:
        """The slot of each token that has K/V."""
        return self._slots(range(self.length))

    def _slots(self, positions: range) -> list[int]:
        page_size = self.pool.page_size
        return [self.pages[i // page_size] * page_size + i % page_size for i in positions]

    def pages_needed(self, count: int) -> int:
        """Free pages that `append(count)` will take, the copy of a shared last page included."""
        if count < 0:
            raise BadValue(f"cannot append {count} tokens")
        if count == 0:
            return 0
        new = pages_for(self.reserved + count, self.pool.page_size) - len(self.pages)
        return new + 1 if self._must_copy_last() else new

    def _must_copy_last(self) -> bool:
        partly_filled = self.reserved % self.pool.page_size > 0
        return partly_filled and self.pool.allocator.owners[self.pages[-1]] > 1

    def append(self, count: int) -> list[int]:
        """Hand out slots for `count` more tokens. Raises `OutOfPages`, and then nothing has changed.

        Copy-on-write: a partly filled last page with other owners is copied, and this table's share in it given up.
        """
        allocator = self.pool.allocator
        copy = count > 0 and self._must_copy_last()
        # A copy starts a run of its own: right behind the shared page it would stand in the other owner's way.
        after = self.pages[-1] if self.pages and not copy else None
        fresh = allocator.allocate(self.pages_needed(count), after)
        if copy:
            self.pool.copy_page(self.pages[-1], fresh[0])
            allocator.release([self.pages[-1]])
            self.pages[-1] = fresh.pop(0)
        self.pages += fresh
        self.reserved += count
        return self._slots(range(self.reserved - count, self.reserved))

    def commit(self) -> None:
        """K/V has been written into all slots that were handed out."""
        self.length = self.reserved

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on, and give up this table's share of pages that it then can spare.

        Slots that were handed out and not written go in any case. A borrowed page is kept whole or not at all, since
        nothing may be written behind its beginning.
        """
        if not 0 <= length <= self.length:
            raise BadValue(f"cannot truncate {self.length} tokens to {length}")
        if length < self.borrowed_tokens:
            length -= length % self.pool.page_size
        keep = pages_for(length, self.pool.page_size)
        released = self.pages[max(keep, self.borrowed) :]
        del self.pages[keep:]
        self.borrowed = min(self.borrowed, keep)
        self.length = self.reserved = length
        self.pool.allocator.release(released)

    def borrow(self, pages: list[int]) -> None:
        """Read `pages`, full ones that belong to the tree, behind those borrowed so far.

        They take the place of this table's own pages, which are given up, unless the tree has just taken one over.
        """
        ours = self.pages[self.borrowed : self.borrowed + len(pages)]
        self.pages[self.borrowed : self.borrowed + len(pages)] = pages
        self.borrowed += len(pages)
        self.length = self.reserved = max(self.length, self.borrowed_tokens)
        self.pool.allocator.release(own for own, page in zip(ours, pages, strict=False) if own != page)

    def fork(self) -> "PageTable":
        """A second table over the same pages: only metadata is copied; the fork that writes first copies a page."""
        child = PageTable(self.pool)
        child.pages, child.borrowed = list(self.pages), self.borrowed
        child.length, child.reserved = self.length, self.reserved
        self.pool.allocator.share(child.own_pages)
        return child

    def check(self) -> None:
        """Raises `BrokenInvariant` unless the table holds exactly the pages that its length needs, each once."""
        if self.reserved != self.length:
            raise BrokenInvariant(f"{self.reserved} slots were handed out between two steps, {self.length} are written")
        if self.borrowed_tokens > self.length:
            raise BrokenInvariant(f"{self.borrowed} full pages borrowed for {self.length} tokens")
        if len(self.pages) != pages_for(self.length, self.pool.page_size):
            raise BrokenInvariant(f"{len(self.pages)} pages of {self.pool.page_size} for {self.length} tokens")
        if len(set(self.pages)) != len(self.pages):
            raise BrokenInvariant(f"a page appears twice in {self.pages}")


def pages_for(tokens: int, page_size: int) -> int:
    """How many pages `tokens` tokens take."""
    return -(-tokens // page_size)


def page_runs(pages: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Group page ids into runs of adjacent ones: `[3, 4, 5, 9]` → `[(3, 6), (9, 10)]` (end exclusive)."""
    ids = np.asarray(pages, dtype=np.int64)
    if not len(ids):
        return []
    breaks = np.flatnonzero(np.diff(ids) != 1)
    first, last = ids[np.r_[0, breaks + 1]], ids[np.r_[breaks, -1]]
    return list(zip(first.tolist(), (last + 1).tolist(), strict=True))
