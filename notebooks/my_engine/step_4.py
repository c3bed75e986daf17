# ruff: noqa: D100, F821, PIE790


# ---- Step 4: a prefix tree that shares pages
class PrefixTree:
    """A node: a text `ids` that fills `pages`, and `children` that go on from there, by the ids of their first page.
    The root is an empty text. The tree is an owner of its pages, so they outlive the sessions."""

    def __init__(self, pool, ids=(), pages=()):
        self.pool, self.ids, self.pages, self.children = pool, list(ids), list(pages), {}

    def match(self, ids):
        """The pages that hold the beginning of `ids`, as far as the tree has it; whole pages only."""
        ...

    def insert(self, ids, pages):
        """Keep `pages`, which `ids` fill. Of a beginning that the tree has already, it keeps the pages it has."""
        ...

    def split(self, count):
        """Keep the first `count` pages; if there are more, they move into a new node below, with all children."""
        ...

    def same_pages(self, ids):
        """How many pages of this node hold the beginning of `ids`."""
        ...


class SharingSession(Session):
    """A session that begins with the pages of others, and leaves its own to others."""

    def __init__(self, model, tree, stop):
        super().__init__(model, PagedCache(tree.pool), stop)
        self.tree = tree

    def begin(self, ids, count):
        """As `Session.begin`. The first turn takes what the tree has, but leaves a token to forward."""
        ...

    def pending(self):
        """As `Session.pending`; and the pages that are full by now go into the tree."""
        ...
