# ruff: noqa: D100, F821, PIE790


# ---- Step 2: pages and a page table
class Pool:
    """Memory for all texts, in pages of `page_size` slots, one a token: kv [layers, 2, num_pages · page_size, H_kv, D].
    owners[page] says how many hold the page. A page that nobody holds is free."""

    def __init__(self, model, num_pages, page_size=16):
        shape = (model.num_layers, 2, num_pages * page_size, model.num_kv_heads, model.head_dim)
        self.kv, self.page_size, self.owners = torch.empty(shape, dtype=model.dtype), page_size, [0] * num_pages

    def take(self):
        """A free page, which has one owner from here on. Raises MemoryError if there is none."""
        ...

    def hold(self, pages, change=1):
        """One owner more for each of `pages`; with change=-1, one fewer."""
        ...


class PagedCache:
    """What `Cache` does, over a pool: token i lies in page `pages[i // page_size]`, at i % page_size.
    The page table `pages` has the pages that `length` tokens need, and those that a pass writes into; no more."""

    def __init__(self, pool):
        self.pool, self.pages, self.length = pool, [], 0

    def extend(self, layer, k, v):
        """As `Cache.extend`, but nothing is copied: where there is no room, the table gets another page."""
        ...

    def truncate(self, length):
        """Forget the tokens from position `length` on. Pages that hold none of the others go back."""
        ...
