"""The end of the build thread: the student's engine beside minstate, on a trace and on random turns."""

import time
from dataclasses import dataclass
from random import Random
from types import ModuleType

import pandas as pd

from minstate import Engine
from minstate.lab.course.build_evidence import recount, require, tree_nodes
from minstate.lab.course.build_models import Witness, given, real_model, small_model, stop_tokens
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.paths import TRACES
from minstate.lab.traces.trace import read_trace

TRACE = "data_analysis-0.jsonl"


@dataclass(frozen=True)
class Played:
    """A turn of the trace as an engine ran it: its input and reply as token ids, tokens forwarded, passes, seconds."""

    input_ids: list[int]
    reply: list[int]
    forwarded: int
    passes: int
    seconds: float


def play_with_minstate(turns: int = 4, count: int = 24) -> list[Played]:
    """The first turns of the trace in a session of minstate. The model answers freely, with `count` tokens at most."""
    trace, played = read_trace(TRACES / TRACE), []
    engine, opening = Engine.from_pretrained(speculation=True), trace.header.sessions["main"]
    with engine.open(opening.messages, opening.tools) as session:
        for record, _ in zip(trace.turns, range(turns), strict=False):
            length, start = len(session.token_ids), time.perf_counter()
            turn = session.send(list(record.messages), max_new_tokens=count)
            seconds, log = time.perf_counter() - start, session.token_ids
            ids, reply = log[length : len(log) - turn.stats.generated], log[len(log) - turn.stats.generated :]
            played.append(Played(ids, reply, turn.stats.forwarded, turn.stats.steps, seconds))
    return played


def play_with(engine: ModuleType, inputs: list[list[int]], count: int = 24) -> list[Played]:
    """The same inputs in one drafting session of the student's engine."""
    model, played = Witness(real_model()), []
    tree = engine.PrefixTree(engine.Pool(model, 160))
    session = engine.DraftingSession(model, tree, stop_tokens())
    for ids in inputs:
        before, start = len(model.passes), time.perf_counter()
        session.begin(list(ids), count)
        length = len(session.log)
        engine.run(model, [session])
        passes = model.passes[before:]
        forwarded = sum(len(new) for new, _ in passes)
        played.append(Played(list(ids), session.log[length:], forwarded, len(passes), time.perf_counter() - start))
    return played


def play_without_cache(inputs: list[list[int]], replies: list[list[int]]) -> list[Played]:
    """What the given transformer forwards for the same replies; the seconds follow from one pass, which is timed."""
    start = time.perf_counter()
    given().forward(real_model(), inputs[0])
    seconds_per_token = (time.perf_counter() - start) / len(inputs[0])
    length, played = 0, []
    for ids, reply in zip(inputs, replies, strict=True):
        length += len(ids)
        forwarded = sum(length + said for said in range(len(reply)))  # each pass forwards the whole log again
        played.append(Played(ids, reply, forwarded, len(reply), forwarded * seconds_per_token))
        length += len(reply)
    return played


def random_turns(engine: ModuleType, seed: int = 0, rounds: int = 8) -> int:
    """Random turns of up to four sessions, in batches, on a small model in float64. Returns how many there were.

    The replies must be minstate's, token by token, and no page may be lost. Raises AssertionError.
    """
    draw, theirs = Random(f"random turns {seed}"), small_engine()
    model = Witness(small_model())
    pool = engine.Pool(model, 512, 4)
    tree, stop, pairs, count = engine.PrefixTree(pool), set(theirs.eos_ids), [], 0
    for number in range(rounds):
        if len(pairs) < 4:
            pairs.append((engine.DraftingSession(model, tree, stop), theirs.open()))
        chosen, inputs = draw.sample(pairs, draw.randint(1, len(pairs))), []
        for mine, _ in chosen:
            alike = draw.random() < 0.5 and not mine.log  # some begin with the same text
            inputs.append([60 + i % 9 for i in range(21)] if alike else [draw.randrange(20, 200) for _ in range(9)])
            mine.begin(list(inputs[-1]), 12)
        engine.run(model, [mine for mine, _ in chosen])
        for (mine, their), ids in zip(chosen, inputs, strict=True):
            their.send(token_ids=ids, max_new_tokens=12)
            require(
                mine.log == their.token_ids,
                f"round {number}: {mine.log[-12:]}, but minstate has {their.token_ids[-12:]}",
            )
            count += 1
    recount(pool, [mine.cache.pages for mine, _ in pairs], [page for node in tree_nodes(tree) for page in node.pages])
    return count


def beside_minstate(engine: ModuleType) -> dict:
    """The first turns of the trace with minstate, with the student's engine, and as the given transformer runs them."""
    theirs = play_with_minstate()
    inputs, replies = [turn.input_ids for turn in theirs], [turn.reply for turn in theirs]
    mine = play_with(engine, inputs)
    rows = {"without a cache": play_without_cache(inputs, replies), "your engine": mine, "minstate": theirs}
    return {
        "same": replies == [turn.reply for turn in mine],
        "tokens": {name: sum(turn.forwarded for turn in played) for name, played in rows.items()},
        "passes": {name: sum(turn.passes for turn in played) for name, played in rows.items()},
        "seconds": {name: sum(turn.seconds for turn in played) for name, played in rows.items()},
    }


def comparison(run: dict) -> pd.DataFrame:
    """What `beside_minstate` gives, as a table with a row for each engine."""
    table = pd.DataFrame({"tokens forwarded": run["tokens"], "passes": run["passes"], "seconds": run["seconds"]})
    return table.round({"seconds": 1})
