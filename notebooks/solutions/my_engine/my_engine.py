"""My engine. `model` is a Transformer of given.py, T the number of new tokens, n the number of all tokens so far."""

import torch


# ---- Step 1: a cache that grows
class Cache:
    """K and V of a text's first `length` tokens: kv [layers, 2, capacity, H_kv, D]. Other rows mean nothing."""

    def __init__(self, model, capacity=16):
        shape = (model.num_layers, 2, capacity, model.num_kv_heads, model.head_dim)
        self.kv, self.length = torch.empty(shape, dtype=model.dtype), 0

    def extend(self, layer, k, v):
        """Write k and v [T, H_kv, D] of T new tokens behind `length`. Returns K and V of all: [2, length + T, H_kv, D].
        Where there is no room, `kv` becomes one of twice the capacity or more. `length` stays, for the next layer."""
        end, capacity = self.length + len(k), self.kv.shape[2]
        if end > capacity:
            room = self.kv.new_empty(*self.kv.shape[:2], max(capacity, end - capacity), *self.kv.shape[3:])
            self.kv = torch.cat((self.kv, room), dim=2)
        self.kv[layer, :, self.length : end] = torch.stack((k, v))
        return self.kv[layer, :, :end]

    def truncate(self, length):
        """Forget the tokens from position `length` on."""
        self.length = length


def attention(q, k, v):
    """What the last T of n tokens read: q [T, H, D], k and v [n, H_kv, D] → [T, H, D].
    A token reads itself and all earlier ones. H / H_kv neighbouring query heads read the same head of K and V."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    seen = torch.arange(len(k)) <= torch.arange(len(k) - len(q), len(k))[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@torch.inference_mode()
def forward(model, ids, cache):
    """The last layer's output [T, hidden] for the new tokens `ids`. The cache then has their K and V in all layers."""
    positions = torch.arange(cache.length, cache.length + len(ids))
    x = model.embed(ids)
    for layer in range(model.num_layers):
        q, k, v = model.qkv(layer, x, positions)
        x = model.finish(layer, x, attention(q, *cache.extend(layer, k, v)))
    cache.length += len(ids)
    return x


# ---- Step 2: pages and a page table
class Pool:
    """Memory for all texts, in pages of `page_size` slots, one a token: kv [layers, 2, num_pages · page_size, H_kv, D].
    owners[page] says how many hold the page. A page that nobody holds is free."""

    def __init__(self, model, num_pages, page_size=16):
        shape = (model.num_layers, 2, num_pages * page_size, model.num_kv_heads, model.head_dim)
        self.kv, self.page_size, self.owners = torch.empty(shape, dtype=model.dtype), page_size, [0] * num_pages

    def take(self):
        """A free page, which has one owner from here on. Raises MemoryError if there is none."""
        if 0 not in self.owners:
            raise MemoryError(f"all {len(self.owners)} pages are in use")
        page = self.owners.index(0)
        self.owners[page] = 1
        return page

    def hold(self, pages, change=1):
        """One owner more for each of `pages`; with change=-1, one fewer."""
        for page in pages:
            self.owners[page] += change


class PagedCache:
    """What `Cache` does, over a pool: token i lies in page `pages[i // page_size]`, at i % page_size.
    The page table `pages` has the pages that `length` tokens need, and those that a pass writes into; no more."""

    def __init__(self, pool):
        self.pool, self.pages, self.length = pool, [], 0

    def extend(self, layer, k, v):
        """As `Cache.extend`, but nothing is copied: where there is no room, the table gets another page."""
        end, size, kv = self.length + len(k), self.pool.page_size, self.pool.kv[layer]
        while len(self.pages) * size < end:
            self.pages.append(self.pool.take())
        slots = (torch.tensor(self.pages)[:, None] * size + torch.arange(size)).flatten()[:end]
        kv[:, slots[self.length :]] = torch.stack((k, v))
        return kv[:, slots]

    def truncate(self, length):
        """Forget the tokens from position `length` on. Pages that hold none of the others go back."""
        keep = -(-length // self.pool.page_size)
        self.pool.hold(self.pages[keep:], -1)
        self.pages, self.length = self.pages[:keep], length


# ---- Step 3: a session whose turn costs Δ
class Session:
    """A conversation: `log` has all its tokens, input and replies; `cache` has K and V of the first `cache.length`.
    Between two turns `cache.length == len(log) - 1`: the last token was chosen, and not forwarded."""

    def __init__(self, model, cache, stop):
        self.model, self.cache, self.stop, self.log = model, cache, stop, []

    def begin(self, ids, count):
        """A turn begins, with the input `ids`. The reply ends after `count` tokens, or with one of the set `stop`."""
        self.log += ids
        self.start, self.end = len(self.log), len(self.log) + count

    @property
    def done(self):
        """Whether the reply is complete."""
        return len(self.log) == self.end or (len(self.log) > self.start and self.log[-1] in self.stop)

    def pending(self):
        """What the next pass forwards: the tokens of the log without K and V. In a turn's first pass, this is Δ."""
        return self.log[self.cache.length :]

    def receive(self, x):
        """The pass over `pending()` gave x [T, hidden]: choose the next token."""
        self.log.append(int(self.model.logits(x[-1:]).argmax()))

    def send(self, ids, count):
        """A whole turn. Returns the reply."""
        self.begin(ids, count)
        while not self.done:
            self.receive(forward(self.model, self.pending(), self.cache))
        return self.log[self.start :]


# ---- Step 4: a prefix tree that shares pages
class PrefixTree:
    """A node: a text `ids` that fills `pages`, and `children` that go on from there, by the ids of their first page.
    The root is an empty text. The tree is an owner of its pages, so they outlive the sessions."""

    def __init__(self, pool, ids=(), pages=()):
        self.pool, self.ids, self.pages, self.children = pool, list(ids), list(pages), {}

    def match(self, ids):
        """The pages that hold the beginning of `ids`, as far as the tree has it; whole pages only."""
        child = self.children.get(tuple(ids[: self.pool.page_size]))
        if not child:
            return []
        same = child.same_pages(ids)
        return child.pages[:same] + (child.match(ids[len(child.ids) :]) if same == len(child.pages) else [])

    def insert(self, ids, pages):
        """Keep `pages`, which `ids` fill. Of a beginning that the tree has already, it keeps the pages it has."""
        key = tuple(ids[: self.pool.page_size])
        if pages and key not in self.children:
            self.children[key] = PrefixTree(self.pool, ids, pages)
            self.pool.hold(pages)
        elif pages:
            child, same = self.children[key], self.children[key].same_pages(ids)
            child.split(same)
            child.insert(ids[len(child.ids) :], pages[same:])

    def split(self, count):
        """Keep the first `count` pages; if there are more, they move into a new node below, with all children."""
        if count < len(self.pages):
            lower = PrefixTree(self.pool, self.ids[count * self.pool.page_size :], self.pages[count:])
            lower.children, self.children = self.children, {tuple(lower.ids[: self.pool.page_size]): lower}
            self.ids, self.pages = self.ids[: -len(lower.ids)], self.pages[:count]

    def same_pages(self, ids):
        """How many pages of this node hold the beginning of `ids`."""
        size, starts = self.pool.page_size, range(0, len(self.ids), self.pool.page_size)
        return next((i // size for i in starts if self.ids[i : i + size] != ids[i : i + size]), len(self.pages))


class SharingSession(Session):
    """A session that begins with the pages of others, and leaves its own to others."""

    def __init__(self, model, tree, stop):
        super().__init__(model, PagedCache(tree.pool), stop)
        self.tree = tree

    def begin(self, ids, count):
        """As `Session.begin`. The first turn takes what the tree has, but leaves a token to forward."""
        super().begin(ids, count)
        if not self.cache.pages:
            self.cache.pages = self.tree.match(self.log[:-1])
            self.cache.length = len(self.cache.pages) * self.tree.pool.page_size
            self.tree.pool.hold(self.cache.pages)

    def pending(self):
        """As `Session.pending`; and the pages that are full by now go into the tree."""
        full = self.cache.length // self.tree.pool.page_size
        self.tree.insert(self.log[: full * self.tree.pool.page_size], self.cache.pages[:full])
        return super().pending()


# ---- Step 5: prompt lookup with verification
def lookup(log, ngram=2, most=8):
    """A draft: what followed the last `ngram` tokens when they last occurred before, `most` tokens at most."""
    for end in range(len(log) - 1, ngram - 1, -1):
        if log[end - ngram : end] == log[-ngram:]:
            return log[end : end + most]
    return []


def verify(draft, chosen):
    """The part of `chosen` that counts: chosen[i] is the model's choice behind draft[:i], if that much was right."""
    right = 0
    while right < len(draft) and draft[right] == chosen[right]:
        right += 1
    return chosen[: right + 1]


class DraftingSession(SharingSession):
    """A session that forwards a draft behind what is pending. It says the same tokens, in fewer passes."""

    def pending(self):
        """As before, and a draft: shorter than what the reply may still have, since a pass adds a token of its own."""
        self.draft = lookup(self.log)[: self.end - len(self.log) - 1]
        return super().pending() + self.draft

    def receive(self, x):
        """Log what counts, up to a token of `stop`. A rejected draft leaves nothing: `cache.length == len(log) - 1`."""
        chosen = self.model.logits(x[-1 - len(self.draft) :]).argmax(-1).tolist()
        for token in verify(self.draft, chosen):
            if not self.done:
                self.log.append(token)
        self.cache.truncate(len(self.log) - 1)


# ---- Step 6: two sessions in one ragged batch
@torch.inference_mode()
def forward_batch(model, parts):
    """What `forward` gives for each of `parts`, (ids, cache), in one pass: all new tokens lie side by side."""
    counts = [len(ids) for ids, _ in parts]
    positions = torch.cat([torch.arange(cache.length, cache.length + len(ids)) for ids, cache in parts])
    x = model.embed([token for ids, _ in parts for token in ids])
    for layer in range(model.num_layers):
        q, k, v = (each.split(counts) for each in model.qkv(layer, x, positions))
        attended = [attention(q[i], *cache.extend(layer, k[i], v[i])) for i, (_, cache) in enumerate(parts)]
        x = model.finish(layer, x, torch.cat(attended))
    for ids, cache in parts:
        cache.length += len(ids)
    return x.split(counts)


def run(model, sessions):
    """Complete the turns that `sessions` have begun: each pass is for all whose reply is not complete."""
    while running := [session for session in sessions if not session.done]:
        parts = [(session.pending(), session.cache) for session in running]
        for session, x in zip(running, forward_batch(model, parts), strict=True):
            session.receive(x)
