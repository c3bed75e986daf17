"""The checker of step 3: a session forwards each token of its log once, and knows when a reply is complete."""

from itertools import pairwise

from minstate.lab.course.build_evidence import require, short, unlike_naive
from minstate.lab.course.build_models import Witness, naive_reply, real_model, real_tokenizer, small_model, stop_tokens

INPUTS = ([50, 51, 52, 53, 54, 55], [60, 61, 62], [70], [80, 81, 82, 83])
COUNT = 5


def each_token_goes_through_once(engine) -> None:
    """Session: each token is forwarded once, so a turn costs Δ: the previous reply's last token and the new input"""
    model = Witness(small_model())
    session, log = engine.Session(model, engine.Cache(model), set()), []
    for turn, ids in enumerate(INPUTS, 1):
        before = len(model.passes)
        context = max(0, len(log) - 1)
        reply = session.send(list(ids), COUNT)
        prompt = log + ids
        require(
            not log or list(session.log[: len(prompt) + 1]) != [*log, log[-1], *ids],
            f"turn {turn}: token {log and log[-1]}, the last of the previous reply, stands in `log` twice: it is "
            "ingested twice. It was logged when it was chosen; the input goes right behind it",
        )
        require(
            list(session.log) == prompt + list(reply),
            f"turn {turn}: `log` is {short(session.log)}; it must be the log before, the input, and the reply, "
            f"{short(prompt + list(reply))}",
        )
        passes = model.passes[before:]
        _require_delta(turn, passes[0], prompt, context)
        for (new, positions), following in pairwise([*passes, ([], [])]):
            require(len(new) > 0, f"turn {turn}: a pass over no token")
            if following[0]:
                _require_next(turn, following, positions[-1] + 1, session.log)
        log = list(session.log)
        require(
            session.cache.length == len(log) - 1,
            f"after turn {turn}, cache.length is {session.cache.length} with {len(log)} tokens in the log; it must be "
            "one fewer. The last token was chosen, and no pass is needed for it before the next turn",
        )


def _require_delta(turn: int, first, prompt: list[int], context: int) -> None:
    ids, positions = first
    wanted = prompt[context:]
    if ids == wanted and positions == list(range(context, len(prompt))):
        return
    what = f"turn {turn}: its first pass forwards {short(ids)} at positions {short(positions)}"
    rule = f"It must forward Δ, {short(wanted)}, at positions {short(range(context, len(prompt)))}"
    if turn > 1 and ids == prompt:
        raise AssertionError(f"{what}: the whole conversation again. {rule}")
    if turn > 1 and ids == wanted[1:]:
        raise AssertionError(
            f"{what}. {rule}: token {wanted[0]}, the last of the previous reply, was never ingested. It was chosen, "
            "and no pass has forwarded it, so it has no K and V, and no later token can read it"
        )
    if turn > 1 and ids[1:] == wanted and ids[0] in (wanted[0], prompt[context - 1]):
        raise AssertionError(
            f"{what}. {rule}: a token is ingested twice. Token {ids[0]} was forwarded in the previous turn; its K and "
            "V would stand in the cache twice"
        )
    raise AssertionError(f"{what}. {rule}")


def _require_next(turn: int, following, position: int, log) -> None:
    ids, positions = following
    wanted = [log[position]] if position < len(log) else []
    if ids == wanted and positions == [position]:
        return
    what = f"turn {turn}: a later pass forwards {short(ids)} at positions {short(positions)}"
    if len(ids) > 1:
        raise AssertionError(f"{what}: tokens are ingested twice; all but the newest had K and V already")
    raise AssertionError(f"{what}; it must forward the newest token, {wanted}, at position {position}")


def replies_are_the_models(engine) -> None:
    """Session.send: the reply is what the given transformer generates behind the whole log"""
    model = Witness(small_model())
    session, log = engine.Session(model, engine.Cache(model), set()), []
    for turn, ids in enumerate(INPUTS, 1):
        log += ids
        wanted, reply = naive_reply(model, log, COUNT), list(session.send(list(ids), COUNT))
        require(len(reply) == COUNT, f"turn {turn}: the reply has {len(reply)} tokens, and `count` is {COUNT}")
        require(
            reply == wanted,
            f"turn {turn}: the reply is {reply}; the given transformer says {wanted} behind the same log. Is the "
            "token chosen from the last row of x, by argmax?",
        )
        log += reply


def stop_tokens_end_a_reply(engine) -> None:
    """Session.done: a token of `stop` ends the reply, is a part of it, and does nothing in the input"""
    model, ids = Witness(small_model()), list(INPUTS[0])
    free = naive_reply(model, ids, 12)
    at = next(i for i in range(2, 12) if free[i] not in free[:i])
    session = engine.Session(model, engine.Cache(model), {free[at]})
    reply = list(session.send(ids, 12))
    require(
        reply == free[: at + 1],
        f"with stop = {{{free[at]}}} the reply is {reply}; it must be {free[: at + 1]}: it ends with that token, "
        "which is a part of it (the model has said it, and later turns must see it)",
    )
    session = engine.Session(model, engine.Cache(model), {ids[-1]})
    reply = list(session.send(ids, 3))
    require(
        len(reply) > 0,
        "the reply is empty where the *input* ends with a token of `stop`, as messages do. Only a token of the reply "
        "ends it",
    )


def real_turns_cost_delta(engine) -> None:
    """the real model: three turns of a chat forward each token once, and say what the given transformer says"""
    model, encode = Witness(real_model()), real_tokenizer().encode
    turns = ["<|im_start|>user\nName a colour.<|im_end|>\n", "\n<|im_start|>user\nAnother one.<|im_end|>\n"]
    session, spans = engine.Session(model, engine.PagedCache(engine.Pool(model, 32)), stop_tokens()), []
    for text in [*turns, turns[1]]:
        reply = session.send(encode(text + "<|im_start|>assistant\n"), 10)
        spans.append((len(session.log) - len(reply), len(session.log)))
    require(
        model.tokens == len(session.log) - 1,
        f"{model.tokens} tokens went through the real model in three turns; the log has {len(session.log)}, so "
        f"{len(session.log) - 1} suffice",
    )
    odd = [unlike_naive(model, session.log, start, end) for start, end in spans]
    require(odd == [None] * 3, f"the replies differ from the given transformer's at the places {odd} of the log")


CHECKS = (each_token_goes_through_once, replies_are_the_models, stop_tokens_end_a_reply, real_turns_cost_delta)
