"""One experiment for each step, on the real model: what the student's engine saves, against the same without the step.

An experiment takes the student's engine and returns numbers that JSON holds. `seconds` differ from run to run; all
other numbers are counted, and equal in every run. `python -m minstate.lab.course.build_demos` records them with the
solution.
"""

import json
import random
import sys
import time
from collections.abc import Callable

from minstate.lab.course.build import RECORDED
from minstate.lab.course.build_final import beside_minstate
from minstate.lab.course.build_models import (
    Witness,
    given,
    load_file,
    real_model,
    real_tokenizer,
    small_model,
    stop_tokens,
)
from minstate.lab.course.build_steps import SOLUTION

STORY = (
    "The harbour of Farleigh has nine cranes. On Monday the first of them broke, and the crew had to unload by hand. "
)
SYSTEM = "You keep the stock of a boat chandlery in Farleigh. Answer briefly, and name shelf and number. "
SHELVES = (
    "Shelf 1 holds rope, 40 coils. Shelf 2 holds varnish, 12 cans. Shelf 3 holds pumps, 7 pieces. Shelf 4 is empty. "
)
TURNS = (
    "How many pumps are there?",
    "A customer takes two of them. How many are left?",
    "What does shelf 2 hold?",
    "Which shelf is empty?",
    "We put six lanterns there. What does it hold?",
    "Name one thing that we do not have.",
)


def encode(text: str) -> list[int]:
    """The token ids of a text."""
    return real_tokenizer().encode(text)


def question(text: str, first: bool = True) -> list[int]:
    """A user's message in ChatML, and where the reply begins; the first one behind the system message."""
    before = f"<|im_start|>system\n{SYSTEM + SHELVES}<|im_end|>\n" if first else "\n"
    return encode(f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def _timed(run: Callable):
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def tokens_per_pass(engine) -> dict:
    """Step 1: 16 tokens behind a short story, without a cache and with one."""
    ids, model, cached = encode(STORY), Witness(real_model()), Witness(real_model())

    def with_cache() -> list[int]:
        cache, reply = engine.Cache(cached), []
        while len(reply) < 16:
            x = engine.forward(cached, reply[-1:] or ids, cache)
            reply.append(int(cached.logits(x[-1:]).argmax()))
        return reply

    without, slow = _timed(lambda: given().generate(model, ids, 16))
    reply, fast = _timed(with_cache)
    counts = {name: [len(ids) for ids, _ in each.passes] for name, each in (("naive", model), ("cached", cached))}
    return {"same": reply == without, **counts, "seconds": {"naive": slow, "cached": fast}}


def pages_in_turns(engine) -> dict:
    """Step 2: texts that grow in turns, end, and leave their pages to others; who holds which page after each event."""
    model, draw = small_model(), random.Random(2)
    pool, caches, events, most = engine.Pool(model, 24, 16), {}, [], 0
    for number in range(60):
        name = draw.choice("ABCDE")
        cache = caches.setdefault(name, engine.PagedCache(pool))
        if cache.length > 70 or (number > 20 and draw.random() < 0.1):
            caches.pop(name).truncate(0)
        else:
            engine.forward(model, [draw.randrange(200) for _ in range(draw.randrange(4, 30))], cache)
        owner = {page: name for name, each in caches.items() for page in each.pages}
        events.append("".join(owner.get(page, "·") for page in range(24)))
        most = max(most, sum(each.length for each in caches.values()))
    used, reserved = sum(each.length for each in caches.values()), 16 * sum(len(each.pages) for each in caches.values())
    return {"events": events, "most": most, "slots": 24 * 16, "used": used, "reserved": reserved, "open": len(caches)}


def tokens_per_turn(engine) -> dict:
    """Step 3: a conversation of six turns, as a session, and as a server runs it that keeps nothing between turns."""
    model, plain, forgetful, seconds = real_model(), real_model(), [], {"stateless": [], "session": []}
    session, costs, same = engine.Session(model, engine.Cache(model), stop_tokens()), [], True
    for turn, text in enumerate(TURNS):
        ids, log = question(text, turn == 0), list(session.log)
        before = model.tokens
        reply, spent = _timed(lambda ids=ids: session.send(ids, 16))
        costs.append(model.tokens - before)
        seconds["session"].append(spent)
        again, before = engine.Session(plain, engine.Cache(plain), stop_tokens()), plain.tokens
        whole, spent = _timed(lambda again=again, ids=log + ids: again.send(ids, 16))
        forgetful.append(plain.tokens - before)
        seconds["stateless"].append(spent)
        same = same and list(reply) == list(whole)
    return {"same": same, "stateless": forgetful, "session": costs, "log": len(session.log), "seconds": seconds}


def prompts_of_agents(engine) -> dict:
    """Step 4: five agents with one system message; tokens that the first pass of each forwards, and pages in use."""
    result = {}
    for name in ("alone", "sharing"):
        model = Witness(real_model())
        pool = engine.Pool(model, 128)
        tree, first, sessions = engine.PrefixTree(pool), [], []
        for text in TURNS[:5]:
            alone = name == "alone"
            kind = engine.Session if alone else engine.SharingSession
            sessions.append(kind(model, engine.PagedCache(pool) if alone else tree, stop_tokens()))
            before = len(model.passes)
            sessions[-1].send(question(text), 8)
            first.append(len(model.passes[before][0]))
        result[name] = {"first": first, "pages": sum(owners > 0 for owners in pool.owners)}
        result[name] |= {"replies": [each.log[-4:] for each in sessions]}
    return result | {"same": result["alone"].pop("replies") == result["sharing"].pop("replies")}


CUSTOMERS = {411: "Keiko", 412: "Elif", 413: "Ada", 414: "Ben"}
STATEMENT = "INSERT INTO orders (id, customer, state) VALUES ({}, '{}', 'sent');\n"
TABLE = "".join(STATEMENT.format(*each) for each in CUSTOMERS.items())


def tokens_per_pass_with_drafts(engine) -> dict:
    """Step 5: a list of SQL statements goes on for 60 tokens: how many each pass adds, and the pieces of text."""
    result, replies = {}, []
    for name, kind in (("plain", engine.SharingSession), ("drafting", engine.DraftingSession)):
        model = Witness(real_model())
        session, added = kind(model, engine.PrefixTree(engine.Pool(model, 64)), stop_tokens()), []

        def turn(session=session, model=model, added=added) -> None:
            session.begin(encode(TABLE), 60)
            while not session.done:
                length = len(session.log)
                session.receive(engine.forward(model, session.pending(), session.cache))
                added.append(len(session.log) - length)

        _, spent = _timed(turn)
        replies.append(session.log[session.start :])
        result[name] = {"added": added, "forwarded": sum(len(ids) for ids, _ in model.passes), "seconds": spent}
    pieces = [real_tokenizer().decode([token]) for token in replies[1]]
    return result | {"same": replies[0] == replies[1], "pieces": pieces}


def passes_of_many(engine) -> dict:
    """Step 6: eight agents write 16 tokens each, one after the other, or in batches of two, four and eight."""
    result, replies = {"agents": 8, "passes": {}, "seconds": {}}, []
    for size in (1, 2, 4, 8):
        model = Witness(real_model())
        pool = engine.Pool(model, 160)
        tree = engine.PrefixTree(pool)
        sessions = [engine.SharingSession(model, tree, set()) for _ in range(8)]
        sessions[0].send(question("Hello."), 1)  # so that the system message is in the tree
        before = len(model.passes)

        def turns(sessions=sessions, size=size, model=model) -> None:
            for first in range(0, 8, size):
                for number in range(first, first + size):
                    sessions[number].begin(question(f"What does shelf {number} hold?", number > 0), 16)
                engine.run(model, sessions[first : first + size])

        _, spent = _timed(turns)
        result["passes"][str(size)], result["seconds"][str(size)] = len(model.passes) - before, spent
        replies.append([session.log[session.start :] for session in sessions])
    return result | {"same": all(each == replies[0] for each in replies)}


EXPERIMENTS = (
    tokens_per_pass,
    pages_in_turns,
    tokens_per_turn,
    prompts_of_agents,
    tokens_per_pass_with_drafts,
    passes_of_many,
    beside_minstate,
)


def counted(result: dict) -> dict:
    """The result without what a clock has measured."""
    plain = {key: counted(each) if isinstance(each, dict) else each for key, each in result.items()}
    return {key: each for key, each in plain.items() if key != "seconds"}


def record(names: list[str]) -> None:
    """Run the experiments of these names, or all, with the solution, and write the results, rounded to two digits."""
    engine = load_file(SOLUTION, "my_engine")
    results = json.loads(RECORDED.read_text()) if names else {}
    for experiment in EXPERIMENTS:
        if names and experiment.__name__ not in names:
            continue
        results[experiment.__name__] = experiment(engine)
        print(experiment.__name__, json.dumps(results[experiment.__name__])[:300], file=sys.stderr, flush=True)
    text = json.dumps(results, default=float)
    rounded = json.loads(text, parse_float=lambda number: round(float(number), 2))
    RECORDED.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(rounded[name])}' for name in rounded) + "\n}\n")


if __name__ == "__main__":
    record(sys.argv[1:])
