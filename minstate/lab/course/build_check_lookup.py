"""The checker of step 5: where a draft comes from, what of it counts, and that nothing else remains of it."""

from collections.abc import Callable
from contextlib import contextmanager

from minstate.lab.course.build_check_tree import require_tree
from minstate.lab.course.build_evidence import recount, require, short, tree_nodes, unlike_naive
from minstate.lab.course.build_models import Witness, naive_reply, real_model, real_tokenizer, small_model, stop_tokens

INPUTS = ([50, 51, 52, 53, 54, 55], [60, 61, 62])
COUNT = 14


def a_draft_is_what_followed_last_time(engine) -> None:
    """lookup: what followed the same tokens the last time, without them"""
    cases = {
        "once before": ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
        "twice before; the later one counts": ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),
        "never before": ([1, 2, 3, 4], []),
        "only the last token before": ([5, 2, 3, 1, 2], []),
        "overlapping with itself": ([7, 7, 7], [7]),
        "fewer tokens than an n-gram": ([7], []),
        "no token": ([], []),
    }
    for what, (log, wanted) in cases.items():
        got = list(engine.lookup(list(log)))
        why = "the end of the log matches itself; look further to the left" if wanted and not got else ""
        why = why or "what followed the last earlier occurrence, up to the end of the log"
        require(
            got == wanted,
            f"lookup: for {log}, whose last two tokens occurred {what}, it gives {got}, not {wanted}: {why}",
        )
    got = list(engine.lookup([1, 2, *range(3, 30), 1, 2], most=4))
    require(got == [3, 4, 5, 6], f"lookup(…, most=4) gives {got}, not the first four tokens, [3, 4, 5, 6]")
    got = list(engine.lookup([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], ngram=3))
    require(
        got[:2] == [9, 2], f"lookup(…, ngram=3) must compare three tokens; behind 1, 2, 3 came 9, and it gives {got}"
    )


def what_counts_of_a_draft(engine) -> None:
    """verify: the model's choices up to the first that the draft did not guess, and that one, too"""
    cases = (
        ([5, 6, 7], [5, 6, 9, 1], [5, 6, 9]),
        ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8]),
        ([5, 6, 7], [4, 6, 7, 8], [4]),
        ([], [3], [3]),
    )
    for draft, chosen, wanted in cases:
        got = list(engine.verify(list(draft), list(chosen)))
        if got == wanted:
            continue
        what = f"verify: for the draft {draft} and the choices {chosen}, it gives {got}, not {wanted}"
        if got == wanted[:-1]:
            raise AssertionError(
                f"{what}. The first choice that was not guessed counts, too: the model chose it behind tokens that are "
                "all right, so a pass earns at least one token"
            )
        if got[: len(draft)] == draft:
            raise AssertionError(f"{what}: rejected guesses are kept. Only what the model chose may be said")
        raise AssertionError(
            f"{what}: choices behind a wrong guess answer another text, even where they agree by chance"
        )


@contextmanager
def guessing(engine, guess: Callable[[list[int]], list[int]]):
    """Within it, the student's `lookup` is `guess`."""
    own, engine.lookup = engine.lookup, lambda log, *_, **__: list(guess(list(log)))
    try:
        yield
    finally:
        engine.lookup = own


def _oracle(text: list[int], right: int) -> Callable[[list[int]], list[int]]:
    """Drafts of up to six tokens of `text`, with which the log will have grown; the first `right` of them are right."""
    return lambda log: [
        token if i < right else (token + 1) % 200 for i, token in enumerate(text[len(log) : len(log) + 6])
    ]


def any_draft_leaves_the_same_reply(engine) -> None:
    """DraftingSession: the reply is the same with right, wrong and half-right drafts, and nothing of a draft remains"""
    plain = small_model()
    for right in (6, 0, 2):
        model = Witness(small_model())
        pool = engine.Pool(model, 40, 4)
        tree, log = engine.PrefixTree(pool), []
        session = engine.DraftingSession(model, tree, set())
        for ids in INPUTS:
            log += ids
            wanted, before = naive_reply(plain, log, COUNT), len(model.passes)
            with guessing(engine, _oracle(log + wanted, right)):
                session.begin(list(ids), COUNT)
                while not session.done:
                    said = len(session.log) - len(log)
                    session.receive(engine.forward(model, session.pending(), session.cache))
                    _require_pass(session, log, wanted, said, right)
            log += wanted
            passes, most = len(model.passes) - before, -(-COUNT // (right + 1))
            require(
                passes <= most,
                f"with {right} right guesses in each draft, {COUNT} tokens take {passes} passes, not {most}",
            )
        require_tree(engine, model, tree)
        recount(pool, [session.cache.pages], [page for node in tree_nodes(tree) for page in node.pages])


def _require_pass(session, prompt: list[int], wanted: list[int], said: int, right: int) -> None:
    what = f"after a pass whose draft had {right} right guesses"
    reply, left = list(session.log[len(prompt) :]), COUNT - said
    require(
        len(reply) <= COUNT,
        f"{what}, the reply has {len(reply)} tokens; `count` is {COUNT}, and accepted guesses may not go beyond it",
    )
    if reply != wanted[: len(reply)]:
        odd = next(i for i, token in enumerate(reply) if token != wanted[i])
        raise AssertionError(
            f"{what}, the log has token {reply[odd]} where the model chooses {wanted[odd]}: rejected guesses are kept "
            "in the log, or choices are read from rows that belong to other tokens (the last 1 + len(draft) rows "
            "count)"
        )
    length, log = session.cache.length, len(session.log)
    require(
        length <= log - 1,
        f"{what}, cache.length is {length} and the log has {log} tokens: rejected drafts are kept in the cache. Their "
        f"K and V stand where the next tokens belong; truncate to {log - 1}",
    )
    require(length == log - 1, f"{what}, cache.length is {length}; only {log - 1} leaves one token to forward")
    drafted = len(session.draft)
    require(
        drafted < max(1, left),
        f"a pass forwards a draft of {drafted} tokens though the reply may have {left} more: one of them is the "
        "model's own",
    )


def a_stop_token_ends_the_reply(engine) -> None:
    """DraftingSession: the reply ends with a token of `stop`, wherever in a draft it stands"""
    plain, ids = small_model(), list(INPUTS[0])
    free = naive_reply(plain, ids, COUNT)
    at = next(i for i in range(2, COUNT) if free[i] not in free[:i])
    model = Witness(small_model())
    session = engine.DraftingSession(model, engine.PrefixTree(engine.Pool(model, 40, 4)), {free[at]})
    with guessing(engine, _oracle(ids + free, 6)):
        reply = list(session.send(ids, COUNT))
    require(
        reply == free[: at + 1],
        f"the reply {short(reply)} goes on behind the stop token {free[at]}, which stood inside an accepted draft; it "
        f"must be {free[: at + 1]}",
    )
    length, log = session.cache.length, len(session.log)
    require(length == log - 1, f"after a stop inside a draft, cache.length is {length} and must be {log - 1}")


def real_drafts_save_passes(engine) -> None:
    """the real model: structured text takes fewer passes, and is what the given transformer says"""
    model, encode = Witness(real_model()), real_tokenizer().encode
    rows = "".join(f"INSERT INTO orders (id, customer) VALUES ({n}, 'Ada');\n" for n in range(411, 415))
    session = engine.DraftingSession(model, engine.PrefixTree(engine.Pool(model, 64)), stop_tokens())
    reply = session.send(encode(rows), 24)
    odd = unlike_naive(model, session.log, len(session.log) - len(reply))
    require(odd is None, f"the real model's token {odd} differs from that of the given transformer")
    require(len(model.passes) <= 14, f"{len(reply)} tokens of a table took {len(model.passes)} passes; 14 are enough")


CHECKS = (
    a_draft_is_what_followed_last_time,
    what_counts_of_a_draft,
    any_draft_leaves_the_same_reply,
    a_stop_token_ends_the_reply,
    real_drafts_save_passes,
)
