"""The checker of step 1: a cache that grows, attention for the last T of n tokens, a forward pass that uses both."""

import torch

from minstate.lab.course.build_evidence import coded, first_misplaced, require, shape_of, short, unlike_naive
from minstate.lab.course.build_models import Witness, given, real_model, real_tokenizer, small_model

PROMPT = "The three states of matter are"


def rows_stay_where_they_are(engine) -> None:
    """Cache.extend: a cache that grows keeps each row where it was"""
    model, pieces = small_model(), (3, 1, 7, 20)
    cache, total = engine.Cache(model, 4), 0
    for count in pieces:
        for layer in range(model.num_layers):
            k_and_v = cache.extend(layer, *coded(model, 0, layer, range(total, total + count)))
            _require_rows(model, k_and_v, total, count, layer)
            require(
                cache.length == total,
                f"Cache.extend has moved `length` from {total} to {cache.length}. It must stay: the next layer writes "
                "into the same rows, and `forward` moves it once, when all layers are done",
            )
        total += count
        cache.length = total


def _require_rows(model, k_and_v, before: int, count: int, layer: int) -> None:
    wanted = [before + count, model.num_kv_heads, model.head_dim]
    require(
        len(k_and_v) == 2 and all(list(each.shape) == wanted for each in k_and_v),
        f"Cache.extend, with {before} tokens in the cache and {count} new ones, returns "
        f"{' and '.join(map(shape_of, k_and_v))}. It must return K and V of all tokens so far, {wanted} each",
    )
    odd = first_misplaced(k_and_v, 0, layer)
    if odd is None:
        return
    place = f"the row for the {'KV'[odd.kind]} of token {odd.token}, head {odd.head}, layer {layer}"
    found = f"holds {odd.label}" if odd.label else "holds numbers that were never written"
    if odd.token < before:
        raise AssertionError(
            f"Cache.extend: a row changed when the cache grew. With {before + count} tokens, {place} {found}. A larger "
            "tensor has other strides: memory that is taken over in one piece (resize_, view, flatten) lands in other "
            "rows. Copy the old rows by their indices, or concatenate along the dimension of tokens"
        )
    raise AssertionError(
        f"Cache.extend: {place} {found}. With {before} tokens in the cache, the new ones go into the rows from "
        f"`length` = {before} on, K at [layer, 0], V at [layer, 1]"
    )


def truncate_moves_the_write_pointer(engine) -> None:
    """Cache.truncate: what comes next is written where the forgotten tokens were"""
    model = small_model()
    for keep in (2, 0):
        cache = engine.Cache(model, 4)
        for layer in range(model.num_layers):
            cache.extend(layer, *coded(model, 1, layer, range(6)))
        cache.length = 6
        cache.truncate(keep)
        require(
            cache.length == keep,
            f"Cache.truncate({keep}): the write pointer was not reset. `length` is {cache.length} and must be {keep}; "
            "the next text would be written behind the tokens that are to be forgotten, and attention would read them",
        )
        for layer in range(model.num_layers):
            k_and_v = cache.extend(layer, *coded(model, 1, layer, range(keep, keep + 3)))
            odd = first_misplaced(k_and_v, 1, layer)
            require(
                odd is None and len(k_and_v[0]) == keep + 3,
                f"after Cache.truncate({keep}) and three new tokens, K and V in layer {layer} are not those of the "
                f"{keep} tokens that stay and of the new ones",
            )


def each_query_reads_its_past(engine) -> None:
    """attention: each query reads its own key and all earlier ones, and no later one"""
    model = small_model()
    for queries, keys in ((5, 5), (1, 5), (2, 5), (3, 8)):
        q = torch.zeros(queries, model.num_heads, model.head_dim, dtype=model.dtype)  # all keys weigh the same
        k = torch.zeros(keys, model.num_kv_heads, model.head_dim, dtype=model.dtype)
        v = torch.eye(keys, model.head_dim, dtype=model.dtype)[:, None].repeat(1, model.num_kv_heads, 1)
        read = engine.attention(q, k, v)
        require(
            shape_of(read) == str([queries, model.num_heads, model.head_dim]),
            f"attention returns {shape_of(read)} for {queries} queries; it must be {[*q.shape]}, the shape of q",
        )
        for query in range(queries):
            _require_past(read[query], query, queries, keys)


def _require_past(read, query: int, queries: int, keys: int) -> None:
    token = keys - queries + query
    seen = [key for key in range(keys) if read[:, key].abs().max() > 1e-6]
    what = f"attention: query {query} of {queries} belongs to token {token} of {keys}"
    require(
        not bool(read.isnan().any()),
        f"{what} and its output is NaN, the softmax over no key at all. It must read the keys 0 to {token}, its own "
        "included: compare with <=, not with <",
    )
    if seen == list(range(token + 1)):
        return
    what = f"{what} and reads the keys {short(seen)}"
    wanted = f"It must read the keys 0 to {token}"
    if seen == list(range(query + 1)):
        raise AssertionError(
            f"{what}. {wanted}: the causal mask is square, built as if queries and keys began at the same token. The "
            "queries are the last tokens, so row i of the mask has n − T + i + 1 keys. "
            "(scaled_dot_product_attention(is_causal=True) builds the square one, too)"
        )
    if any(key > token for key in seen):
        raise AssertionError(f"{what}. {wanted}: later tokens must be masked out, with −inf, before the softmax")
    if seen == list(range(token)):
        raise AssertionError(f"{what}. {wanted}: its own key is missing; compare with <=, not with <")
    raise AssertionError(f"{what}. {wanted}")


def heads_share_keys_in_groups(engine) -> None:
    """attention: neighbouring query heads share a head of K and V"""
    model = small_model()
    heads, kv_heads = model.num_heads, model.num_kv_heads
    q = torch.zeros(1, heads, model.head_dim, dtype=model.dtype)
    k = torch.zeros(3, kv_heads, model.head_dim, dtype=model.dtype)
    v = torch.eye(kv_heads, model.head_dim, dtype=model.dtype)[None].repeat(3, 1, 1)
    reads = [int(row.argmax()) for row in engine.attention(q, k, v)[0]]
    wanted = [head // (heads // kv_heads) for head in range(heads)]
    require(
        reads == wanted,
        f"attention: with {heads} query heads and {kv_heads} heads of K and V, query heads 0 to {heads - 1} read the "
        f"K/V heads {reads}. They must read {wanted}: neighbours share a head. `repeat_interleave` repeats each head "
        "in place; `repeat` lays whole copies behind each other",
    )


def attention_weighs_keys_rightly(engine) -> None:
    """attention: the weights are the softmax of q · k / √D"""
    model, draw = small_model(), torch.Generator().manual_seed(1)
    shapes = ((6, model.num_heads), (6, model.num_kv_heads), (6, model.num_kv_heads))
    q, k, v = (torch.randn(*shape, model.head_dim, generator=draw, dtype=model.dtype) for shape in shapes)
    wanted = given().attention(q, k, v)
    for queries in (6, 2):
        got = engine.attention(q[-queries:], k, v)
        if not torch.allclose(got, wanted[-queries:]):
            unscaled = given().attention(q * model.head_dim**0.5, k, v)[-queries:]
            why = (
                "the scores are not divided by √D" if torch.allclose(got, unscaled) else "compare with given.attention"
            )
            far = float((got - wanted[-queries:]).abs().max())
            raise AssertionError(
                f"attention differs from that of given.py by {far:.2g} for {queries} queries of 6: {why}"
            )


def positions_count_on(engine) -> None:
    """forward: positions go on where the cache ends, and the cache is longer afterwards"""
    model, ids = Witness(small_model()), [40, 41, 42, 43, 44, 45, 46, 47, 48]
    cache, start = engine.Cache(model), 0
    for count in (5, 1, 3):
        engine.forward(model, ids[start : start + count], cache)
        (new, positions), wanted = model.passes[-1], list(range(start, start + count))
        what = f"forward: {count} new tokens behind {start} in the cache"
        require(
            new == ids[start : start + count], f"{what}: it embeds {short(new)}, not the new tokens, and these alone"
        )
        if positions != wanted:
            why = (
                "each pass begins at 0; begin at cache.length"
                if positions == list(range(count))
                else "give each its place"
            )
            if start and positions and positions[0] - wanted[0] in (1, -1):
                why = "they are off by one; the first new token stands at cache.length, as it is before the pass"
            elif positions and positions[0] == wanted[0] + 1:
                why = "they are off by one; the first token of a text stands at position 0"
            raise AssertionError(f"{what} get the positions {short(positions)}, not {wanted}: {why}")
        start += count
        require(
            cache.length == start,
            f"{what}: afterwards cache.length is {cache.length}, not {start}. Add the number of new tokens once, when "
            "the last layer has stored its K and V",
        )


def passes_in_pieces_agree(engine) -> None:
    """forward: in pieces, it gives what given.forward gives for the whole text"""
    model, ids = small_model(), list(range(30, 70))
    wanted, cache, start = given().forward(model, ids), engine.Cache(model), 0
    for count in (17, 1, 1, 4, 17):
        x = engine.forward(model, ids[start : start + count], cache)
        require(
            shape_of(x) == str([count, wanted.shape[1]]),
            f"forward returns {shape_of(x)} for {count} new tokens; it must be {[count, wanted.shape[1]]}, the last "
            "layer's output (without `logits`)",
        )
        far = (x - wanted[start : start + count]).abs().amax(1)
        odd = next((i for i, each in enumerate(far.tolist()) if not each < 1e-6), None)
        require(
            odd is None,
            f"forward: of a pass over {count} tokens behind {start}, token {odd} differs from given.forward by "
            f"{float(far.max()):.2g}. Cache and attention are right by themselves: what does `forward` pass between "
            "them?",
        )
        start += count


def real_model_says_the_same(engine) -> None:
    """the real model: 12 tokens, each from a pass over one token, are those of the given transformer"""
    model, ids = real_model(), real_tokenizer().encode(PROMPT)
    cache, log, new = engine.Cache(model), list(ids), list(ids)
    for _ in range(12):
        new = [int(model.logits(engine.forward(model, new, cache)[-1:]).argmax())]
        log += new
    forwarded = model.tokens
    require(forwarded == len(ids) + 11, f"{forwarded} tokens went through the real model, and {len(ids) + 11} suffice")
    odd = unlike_naive(model, log, len(ids))
    require(odd is None, f"the real model's token {odd} differs from that of the given transformer")


CHECKS = (
    rows_stay_where_they_are,
    truncate_moves_the_write_pointer,
    each_query_reads_its_past,
    heads_share_keys_in_groups,
    attention_weighs_keys_rightly,
    positions_count_on,
    passes_in_pieces_agree,
    real_model_says_the_same,
)
