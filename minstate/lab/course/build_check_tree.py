"""The checker of step 4: a tree that finds pages by their text, splits nodes at pages, and owns what it keeps."""

import torch

from minstate.lab.course.build_evidence import recount, require, short, tree_nodes, unlike_naive
from minstate.lab.course.build_models import Witness, naive_reply, real_model, real_tokenizer, small_model, stop_tokens

SIZE = 4  # slots of a page, in the checks on the small model
A, B, C, D, E = ([letter * 10 + i for i in range(SIZE)] for letter in range(1, 6))  # the texts of five pages


def _grown(engine, *texts: list[int]):
    """A tree into which the texts were inserted, each with pages of its own, and what each text was given."""
    pool = engine.Pool(small_model(), 24, SIZE)
    tree, given_pages = engine.PrefixTree(pool), []
    for text in texts:
        pages = [pool.take() for _ in range(len(text) // SIZE)]
        tree.insert(list(text), list(pages))
        given_pages.append(pages)
    return pool, tree, given_pages


def a_text_is_found_by_pages(engine) -> None:
    """PrefixTree.match: the longest known beginning, in whole pages"""
    pool, tree, ((a, b, c),) = _grown(engine, A + B + C)
    require(engine.PrefixTree(pool).match(A + B) == [], "PrefixTree.match finds pages in an empty tree")
    cases = {
        "the same text": (A + B + C, [a, b, c]),
        "a longer text": (A + B + C + D, [a, b, c]),
        "a text that ends inside its second page": (A + B[:2], [a]),
        "a text that differs in its third page": (A + B + D, [a, b]),
        "a text that differs in the last token of its first page": ([*A[:-1], 99, *B], []),
    }
    for what, (ids, wanted) in cases.items():
        got = list(tree.match(list(ids)))
        why = (
            "It gives a page too many: a page counts only if all of its tokens agree" if len(got) > len(wanted) else ""
        )
        why = why or "It must give the pages from the beginning on, as far as they agree"
        require(got == wanted, f"PrefixTree.match: for {what}, it gives the pages {got}, not {wanted}. {why}")


def a_split_cuts_between_pages(engine) -> None:
    """PrefixTree.insert: a node splits where texts part, and every text is still found"""
    texts = (A + B + C, A + B + C + D, A + E, A + B + E + D, E)
    _, tree, pages = _grown(engine, *texts)
    for node in tree_nodes(tree):
        require(
            len(node.ids) == len(node.pages) * SIZE and len(node.pages) > 0,
            f"a split is off: a node has {len(node.ids)} tokens and {len(node.pages)} pages of {SIZE}. `split` has to "
            "cut ids behind count · page_size tokens and pages behind `count`",
        )
        for key, child in node.children.items():
            require(
                tuple(key) == tuple(child.ids[:SIZE]),
                f"a child that begins with {short(child.ids[:SIZE])} is filed under the key {key}: after a split, the "
                "lower part begins with another page",
            )
    (a, b, c), (_, _, _, d), (_, e), (_, _, e2, d2), (e3,) = pages
    wanted = ([a, b, c], [a, b, c, d], [a, e], [a, b, e2, d2], [e3])
    for text, found in zip(texts, wanted, strict=True):
        got = list(tree.match(list(text)))
        require(
            got == found,
            f"after five texts were inserted, match gives the pages {got} for one of them, not {found}. Where texts "
            "part, the node splits behind the pages that they share; what was below it stays below its lower part",
        )


def the_tree_owns_what_it_keeps(engine) -> None:
    """PrefixTree.insert: the tree is an owner of each page in it, once, and of no other"""
    pool, tree, pages = _grown(engine, A + B + C, A + D, A + B + C, A + B)
    recount(pool, pages, [page for node in tree_nodes(tree) for page in node.pages])


def what_the_tree_says_is_in_its_pages(engine) -> None:
    """SharingSession: pages go into the tree when all of their tokens have K and V, under these tokens"""
    model = Witness(small_model())
    pool = engine.Pool(model, 40, SIZE)
    tree = engine.PrefixTree(pool)
    sessions = []
    for ids, count in ((A + B + C[:3], 7), (A + B + C + D, 3), (A + B[:2] + E, 6)):
        sessions.append(engine.SharingSession(model, tree, set()))
        sessions[-1].send(list(ids), count)
        require_tree(engine, model, tree)
    require(tree_nodes(tree) != [], "SharingSession puts no page into the tree")
    recount(pool, [each.cache.pages for each in sessions], [page for node in tree_nodes(tree) for page in node.pages])
    for each in sessions:
        each.cache.truncate(0)
    recount(pool, [], [page for node in tree_nodes(tree) for page in node.pages])


def require_tree(engine, model, tree) -> None:
    """Every page of the tree holds the K and V of the text that leads to it, computed again from the first token on."""
    size = tree.pool.page_size
    waiting = [(child, []) for child in tree.children.values()]
    while waiting:
        node, before = waiting.pop()
        text, cache = before + list(node.ids), engine.Cache(model)
        require(
            len(node.ids) == len(node.pages) * size,
            f"SharingSession has put {len(node.pages)} pages into the tree for {len(node.ids)} tokens. A page may be "
            f"published when it is full, that is, when `cache.length` is beyond its {size} slots",
        )
        engine.forward(model, text, cache)
        for number, page in enumerate(node.pages):
            start = len(before) + number * size
            wanted, there = cache.kv[:, :, start : start + size], tree.pool.kv[:, :, page * size : (page + 1) * size]
            require(
                torch.allclose(wanted, there),
                f"the tree says that page {page} holds the tokens {text[start : start + size]} behind {start} others, "
                "but its K and V are not theirs. A page may be published when it is full: when `cache.length` is "
                "beyond its end",
            )
        waiting += [(child, text) for child in node.children.values()]


def a_second_session_borrows(engine) -> None:
    """SharingSession.begin: a session borrows what the tree has, forwards the rest, and at least one token"""
    model = Witness(small_model())
    pool = engine.Pool(model, 40, SIZE)
    tree, prompts = engine.PrefixTree(pool), (A + B + C[:2], A + B + D[:3], A + B)
    sessions = []
    for prompt, shared in zip(prompts, (0, 8, 4), strict=True):
        before = len(model.passes)
        sessions.append(engine.SharingSession(model, tree, set()))
        reply = list(sessions[-1].send(list(prompt), 5))
        ids, positions = model.passes[before]
        what = f"a prompt of {len(prompt)} tokens, of which the tree has whole pages with {shared}"
        require(
            len(ids) > 0,
            f"{what}: nothing is left to forward. The last token's output is needed, so match only log[:-1]",
        )
        require(
            len(ids) == len(prompt) - shared,
            f"{what}: the first pass forwards {len(ids)} tokens, not {len(prompt) - shared}",
        )
        require(
            positions == list(range(shared, len(prompt))),
            f"{what}: the first pass begins at position {positions[0]}, not {shared}: `cache.length` counts borrowed "
            "tokens",
        )
        wanted = naive_reply(small_model(), list(prompt), 5)
        require(reply == wanted, f"{what}: the reply is {reply}; the given transformer says {wanted}")
        tables = [each.cache.pages for each in sessions]
        recount(pool, tables, [page for node in tree_nodes(tree) for page in node.pages])


def real_agents_share_a_prompt(engine) -> None:
    """the real model: the second agent forwards its own words only, and says what the given transformer says"""
    model, encode = Witness(real_model()), real_tokenizer().encode
    system = "<|im_start|>system\nYou keep the stock of a small shop. Answer in one short sentence.<|im_end|>\n" * 3
    tree, forwarded = engine.PrefixTree(engine.Pool(model, 64)), []
    for question in ("What is a shelf?", "What is a crate?"):
        session, before = engine.SharingSession(model, tree, stop_tokens()), len(model.passes)
        reply = session.send(encode(f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"), 10)
        forwarded.append(len(model.passes[before][0]))
        odd = unlike_naive(model, session.log, len(session.log) - len(reply))
        require(odd is None, f"the real model's token {odd} differs from that of the given transformer")
    shared = len(encode(system)) // 16 * 16
    require(
        forwarded[1] <= forwarded[0] - shared,
        f"the first agent forwards a prompt of {forwarded[0]} tokens, the second {forwarded[1]}; they share {shared} "
        "in whole pages",
    )


CHECKS = (
    a_text_is_found_by_pages,
    a_split_cuts_between_pages,
    the_tree_owns_what_it_keeps,
    a_second_session_borrows,
    what_the_tree_says_is_in_its_pages,
    real_agents_share_a_prompt,
)
