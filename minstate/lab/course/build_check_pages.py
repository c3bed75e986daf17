"""The checker of step 2: a pool that counts owners, a page table that finds each token, pages that go back."""

from minstate.lab.course.build_evidence import coded, first_misplaced, recount, require, shape_of, short, unlike_naive
from minstate.lab.course.build_models import given, real_model, real_tokenizer, small_model

SIZE = 4  # slots of a page, in the checks on the small model


def pages_have_owners(engine) -> None:
    """Pool: a page that is taken has an owner, and one without owners can be taken again"""
    pool = engine.Pool(small_model(), 3, SIZE)
    taken = [pool.take() for _ in range(3)]
    require(
        sorted(taken) == [0, 1, 2],
        f"Pool.take: three calls on a pool of three pages gave {taken}. A page that has an owner is not free",
    )
    require(
        list(pool.owners) == [1, 1, 1], f"Pool.take: owners is {pool.owners} with all three pages taken, not [1, 1, 1]"
    )
    try:
        page = pool.take()
    except MemoryError:
        pass
    else:
        raise AssertionError(f"Pool.take gave page {page} though no page is free; it must raise MemoryError")
    pool.hold([taken[1]])
    pool.hold([taken[1]], -1)
    require(pool.owners[taken[1]] == 1, "Pool.hold: one owner more and one fewer must leave a page as it was")
    pool.hold([taken[1]], -1)
    try:
        page = pool.take()
    except MemoryError:
        raise AssertionError(
            "Pool.take raises MemoryError though a page has been given back: is it counted as free?"
        ) from None
    require(page == taken[1], f"Pool.take gave page {page}; only page {taken[1]} is free")


def the_table_finds_each_token(engine) -> None:
    """PagedCache.extend: token i lies in page pages[i // page_size], and no text writes into another's page"""
    model = small_model()
    pool = engine.Pool(model, 12, SIZE)
    caches, totals = [engine.PagedCache(pool), engine.PagedCache(pool)], [0, 0]
    for text, count in ((0, 3), (1, 5), (0, 2), (1, 1), (0, 9), (1, 4)):  # in turns: their pages alternate
        cache, total = caches[text], totals[text]
        for layer in range(model.num_layers):
            k_and_v = cache.extend(layer, *coded(model, text, layer, range(total, total + count)))
            needed = -(-(total + count) // SIZE)
            require(
                len(cache.pages) == needed,
                f"PagedCache.extend: in layer {layer} the table has {len(cache.pages)} pages for {total + count} "
                f"tokens, and {needed} of {SIZE} slots suffice. The first layer of a pass takes its pages; the next "
                "ones find them",
            )
            require(
                cache.length == total,
                f"PagedCache.extend has moved `length` from {total} to {cache.length}; it stays until all layers are "
                "done",
            )
            wanted = [total + count, model.num_kv_heads, model.head_dim]
            require(
                len(k_and_v) == 2 and all(list(each.shape) == wanted for each in k_and_v),
                f"PagedCache.extend returns {' and '.join(map(shape_of, k_and_v))}; it must be K and V, {wanted} each. "
                "(An index such as kv[layer, :, slots] moves the dimension of slots to the front)",
            )
            _require_rows(first_misplaced(k_and_v, text, layer), text, cache, total)
        totals[text] = cache.length = total + count
    _require_layout(pool, caches, totals)


def _require_rows(odd, text: int, cache, before: int) -> None:
    if odd is None:
        return
    place = f"token {odd.token} of text {text}, which is in page {cache.pages[odd.token // SIZE]}"
    if odd.label and odd.label.text != text:
        raise AssertionError(
            f"two texts write into the same slots: where {place}, should lie, there is {odd.label} of text "
            f"{odd.label.text}"
        )
    found = str(odd.label) if odd.label else "a number that was never written"
    which = "an old token" if odd.token < before else "a new token"
    raise AssertionError(
        f"PagedCache.extend: for {which}, {place}, it returns {found}. Token i lies in slot "
        "pages[i // page_size] · page_size + i % page_size"
    )


def _require_layout(pool, caches, totals) -> None:
    for text, (cache, total) in enumerate(zip(caches, totals, strict=True)):
        slots = [cache.pages[i // SIZE] * SIZE + i % SIZE for i in range(total)]
        for layer in range(len(pool.kv)):
            odd = first_misplaced(pool.kv[layer][:, slots], text, layer)
            require(
                odd is None,
                f"the page table of text {text} says that its token {odd and odd.token} is in slot "
                f"{odd and slots[odd.token]}, and there lies {odd and odd.label}",
            )


def pages_go_back(engine) -> None:
    """PagedCache.truncate: the pages that are spared go back, all of them, and leave the table"""
    model = small_model()
    pool = engine.Pool(model, 8, SIZE)
    other, cache = engine.PagedCache(pool), engine.PagedCache(pool)
    for each, count in ((other, 5), (cache, 15)):
        for layer in range(model.num_layers):
            each.extend(layer, *coded(model, 2, layer, range(count)))
        each.length = count
    for keep in (13, 12, 5, 0):
        pages = list(cache.pages)
        cache.truncate(keep)
        what, needed = f"PagedCache.truncate({keep})", -(-keep // SIZE)
        require(
            cache.length == keep,
            f"{what}: the write pointer was not reset; `length` is {cache.length}, and the next token would be "
            "written there",
        )
        lost = [page for page in pages[:needed] if pool.owners[page] == 0]
        require(
            not lost,
            f"{what} gives back page {lost[:1]}, which holds some of the {keep} tokens that stay: round up, not down",
        )
        recount(pool, [other.pages, cache.pages])
        require(
            list(cache.pages) == pages[:needed],
            f"{what}: the table has the pages {cache.pages}; {keep} tokens need {pages[:needed]}",
        )
    require(
        sum(owners > 0 for owners in pool.owners) == 2, "after truncate(0) only the other text's two pages are in use"
    )


def the_forward_pass_is_unchanged(engine) -> None:
    """forward: over pages it gives what it gives over one tensor, after a truncation too"""
    model, ids = small_model(), list(range(30, 60))
    pool = engine.Pool(model, 12, SIZE)
    cache, wanted = engine.PagedCache(pool), given().forward(model, ids)
    for start, end in ((0, 11), (11, 12), (12, 22), (9, 30)):
        if start < cache.length:
            cache.truncate(start)
        x = engine.forward(model, ids[start:end], cache)
        far = float((x - wanted[start:end]).abs().max())
        require(
            far < 1e-6, f"forward over a PagedCache: tokens {start} to {end - 1} differ from given.forward by {far:.2g}"
        )


def real_texts_in_one_pool(engine) -> None:
    """the real model: two texts grow in turns in one pool, say what the given transformer says, and leave it empty"""
    model, encode = real_model(), real_tokenizer().encode
    texts = [
        encode("The three states of matter are"),
        encode("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,"),
    ]
    pool = engine.Pool(model, 12)
    caches, logs, new = [engine.PagedCache(pool) for _ in texts], [list(text) for text in texts], list(texts)
    for _ in range(8):
        for i, cache in enumerate(caches):
            new[i] = [int(model.logits(engine.forward(model, new[i], cache)[-1:]).argmax())]
            logs[i] += new[i]
    for log, text in zip(logs, texts, strict=True):
        odd = unlike_naive(model, log, len(text))
        require(
            odd is None, f"the real model's token {odd} of {short(log[:4])} differs from that of the given transformer"
        )
    for cache in caches:
        cache.truncate(0)
    recount(pool, [cache.pages for cache in caches])


CHECKS = (
    pages_have_owners,
    the_table_finds_each_token,
    pages_go_back,
    the_forward_pass_is_unchanged,
    real_texts_in_one_pool,
)
