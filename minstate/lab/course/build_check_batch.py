"""The checker of step 6: one pass for several texts, in which each text sees itself alone."""

import torch

from minstate.lab.course.build_evidence import recount, require, shape_of, short, tree_nodes, unlike_naive
from minstate.lab.course.build_models import Witness, real_model, real_tokenizer, small_model, stop_tokens

TEXTS = ([50, 51, 52, 53, 54, 55, 56], [70, 71, 72], [90, 91, 92, 93, 94])
NEW = ([57], [73, 74, 75, 76], [95, 96])  # a decode, a prefill, a draft


def _batch(engine, model, texts, new):
    """What forward_batch gives for `new` behind `texts`, and the caches; the witness notes that pass alone."""
    pool = engine.Pool(model, 24, 4)
    caches = [engine.PagedCache(pool) for _ in texts]
    for ids, cache in zip(texts, caches, strict=True):
        engine.forward(model, list(ids), cache)
    model.passes.clear()
    return list(
        engine.forward_batch(model, [(list(ids), cache) for ids, cache in zip(new, caches, strict=True)])
    ), caches


def each_text_has_its_rows(engine) -> None:
    """forward_batch: one pass, and for each text the rows that a pass of its own would give"""
    model = Witness(small_model())
    rows, caches = _batch(engine, model, TEXTS, NEW)
    require(
        len(model.passes) == 1,
        f"forward_batch: {len(model.passes)} passes (calls of `embed`) for {len(TEXTS)} texts. One is the point of it: "
        "embed all new tokens together",
    )
    ids, positions = model.passes[0]
    require(
        ids == [token for new in NEW for token in new],
        f"forward_batch embeds {short(ids)}, not all new tokens in order",
    )
    wanted = [len(text) + i for text, new in zip(TEXTS, NEW, strict=True) for i in range(len(new))]
    require(
        positions == wanted,
        f"forward_batch: the positions are {short(positions)} and must be {wanted}. A token's position is its place "
        "in its own text, wherever it lies in the batch",
    )
    require(
        [shape_of(each) for each in rows] == [str([len(new), model.config.hidden_size]) for new in NEW],
        f"forward_batch gives rows of the shapes {[shape_of(each) for each in rows]} for parts of "
        f"{[len(new) for new in NEW]} tokens",
    )
    for number, (text, new, cache) in enumerate(zip(TEXTS, NEW, caches, strict=True)):
        end = len(text) + len(new)
        require(
            cache.length == end,
            f"forward_batch: afterwards the cache of text {number} has length {cache.length}, not {end}",
        )


def texts_do_not_see_each_other(engine) -> None:
    """forward_batch: what stands in one text changes nothing in another"""
    before, _ = _batch(engine, Witness(small_model()), TEXTS, NEW)
    for changed in range(len(TEXTS)):
        texts, new = list(TEXTS), list(NEW)
        texts[changed], new[changed] = (
            [token + 100 for token in TEXTS[changed]],
            [token + 100 for token in NEW[changed]],
        )
        after, _ = _batch(engine, Witness(small_model()), texts, new)
        for number in range(len(TEXTS)):
            if number != changed and not torch.allclose(before[number], after[number]):
                raise AssertionError(
                    f"the rows of text {number} change when text {changed} does: ragged rows see each other. Attention "
                    "has to run for each text by itself, with its own queries over its own cache"
                )
    model = Witness(small_model())
    for number, (text, new) in enumerate(zip(TEXTS, NEW, strict=True)):
        alone = engine.forward(model, [*text, *new], engine.Cache(model))[len(text) :]
        far = float((alone - before[number]).abs().max())
        if not far < 1e-6:
            found = [i for i, rows in enumerate(before) if rows.shape == alone.shape and torch.allclose(rows, alone)]
            where = f"; text {found[0]} has them" if found else ""
            raise AssertionError(
                f"forward_batch: the rows of text {number} differ by {far:.2g} from those of a pass over it "
                f"alone{where}. Are q, k and v cut at the same tokens, and put together in the same order?"
            )


def turns_share_passes(engine) -> None:
    """run: as many passes as the longest turn, and every reply as if alone"""
    counts, alone = (9, 4, 1), []
    for text, count in zip(TEXTS, counts, strict=True):
        model = Witness(small_model())
        alone.append(list(engine.Session(model, engine.Cache(model), set()).send(list(text), count)))
    model = Witness(small_model(), most=3 * max(counts))
    pool = engine.Pool(model, 40, 4)
    sessions = [engine.Session(model, engine.PagedCache(pool), set()) for _ in TEXTS]
    for session, text, count in zip(sessions, TEXTS, counts, strict=True):
        session.begin(list(text), count)
    engine.run(model, sessions)
    replies = [list(session.log[len(text) :]) for session, text in zip(sessions, TEXTS, strict=True)]
    for number, (reply, wanted) in enumerate(zip(replies, alone, strict=True)):
        require(
            reply == wanted,
            f"run: session {number} says {short(reply)}, and alone it says {short(wanted)}. Does each session receive "
            "its own rows, and only while its reply is not complete?",
        )
    require(
        len(model.passes) == max(counts),
        f"run: replies of {counts} tokens took {len(model.passes)} passes, and {max(counts)} are enough: each pass "
        "takes all sessions that are not done",
    )
    tokens = sum(len(ids) for ids, _ in model.passes)
    wanted = sum(len(text) + count - 1 for text, count in zip(TEXTS, counts, strict=True))
    require(
        tokens == wanted, f"run: {tokens} tokens were forwarded, and {wanted} suffice; is a complete session left out?"
    )


def real_sessions_share_passes(engine) -> None:
    """the real model: two drafting sessions in one batch, in fewer passes than one after the other"""
    model, encode = Witness(real_model()), real_tokenizer().encode
    line = "INSERT INTO {} (id, customer) VALUES ({}, 'Ada');\n"
    rows = ["".join(line.format(name, number) for number in range(411, 415)) for name in ("orders", "parcels")]
    pool = engine.Pool(model, 64)
    tree = engine.PrefixTree(pool)
    sessions = [engine.DraftingSession(model, tree, stop_tokens()) for _ in rows]
    for session, text in zip(sessions, rows, strict=True):
        session.begin(encode(text), 20)
    engine.run(model, sessions)
    for number, (session, text) in enumerate(zip(sessions, rows, strict=True)):
        odd = unlike_naive(model, session.log, len(encode(text)))
        require(
            odd is None, f"the real model's token {odd} in session {number} differs from that of the given transformer"
        )
    require(len(model.passes) < 20, f"two replies of 20 tokens took {len(model.passes)} passes")
    recount(pool, [each.cache.pages for each in sessions], [page for node in tree_nodes(tree) for page in node.pages])


CHECKS = (each_text_has_its_rows, texts_do_not_see_each_other, turns_share_passes, real_sessions_share_passes)
