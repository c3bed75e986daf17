"""A pool of KV pages without tensors. A simulation only needs to know who owns which page."""

from collections.abc import Iterable

from minstate.paged_kv import PageAllocator
from minstate.ragged_batch import Chunk


class StubAllocator(PageAllocator):
    """Hands out the page that was freed last. Where a page lies matters to attention, but not to any count."""

    def __init__(self, num_pages: int):
        super().__init__(num_pages)
        self._stack = list(range(num_pages))

    def allocate(self, count: int, after: int | None = None) -> list[int]:  # noqa: ARG002  as the original
        """As `PageAllocator.allocate`, but without the search for long runs of adjacent pages."""
        if count > self.num_free:
            self.reclaim(count - self.num_free)
        if not 0 <= count <= self.num_free:
            return super().allocate(count)  # raises the error that names what is missing
        pages = [self._stack.pop() for _ in range(count)]
        for page in pages:
            self._take(page, 1)
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """As `PageAllocator.release`."""
        pages = list(pages)
        super().release(pages)
        self._stack += [page for page in pages if not self.owners[page]]


class StubPool:
    """In place of a `KVPool`: pages and their owners, but no keys and values."""

    def __init__(self, num_pages: int, page_size: int, bytes_per_page: int = 0):
        self.allocator, self.page_size, self.bytes_per_page = StubAllocator(num_pages), page_size, bytes_per_page

    def copy_page(self, source: int, target: int, tokens: int | None = None) -> None:
        """Do nothing: there is no K/V to copy."""


def reserve_slots(chunks: list[Chunk]) -> None:
    """In place of `RaggedBatch.build`: give all chunks slots, or none. Raises `OutOfPages`."""
    try:
        for chunk in chunks:
            chunk.table.append(len(chunk.token_ids))
    except BaseException:
        for chunk in chunks:
            chunk.table.truncate(chunk.table.length)
        raise
