"""The end of the build thread: the student's engine beside minstate, on a trace and on random turns; what differs."""

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

import pandas as pd

from minstate import Engine
from minstate.lab.course.build_evidence import recount, require, tree_nodes
from minstate.lab.course.build_models import Witness, real_model, small_model, stop_tokens
from minstate.lab.course.build_steps import SOLUTION, TOP
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.paths import PACKAGE, TRACES
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
    """The first turns of the trace, in one session of minstate; the model answers freely, with `count` tokens at most."""
    trace, played = read_trace(TRACES / TRACE), []
    engine, opening = Engine.from_pretrained(), trace.header.sessions["main"]
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
    """What the given transformer would forward for the same replies; it runs one pass a turn, and that is timed."""
    model, log, played = real_model(), [], []
    from minstate.lab.course.build_models import given

    for ids, reply in zip(inputs, replies, strict=True):
        log += ids
        start = time.perf_counter()
        given().forward(model, log)
        seconds = (time.perf_counter() - start) * len(reply)  # each pass forwards the whole log again
        forwarded = sum(len(log) + said for said in range(len(reply)))
        played.append(Played(list(ids), list(reply), forwarded, len(reply), seconds))
        log += reply
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


# What minstate does beyond the student's engine: where (files of the core, by their names), and which notebook tells.
BUYS = {
    "attention reads pages where they lie, in parts that are merged; your `extend` copies all K and V in each pass": (
        "attention ragged_batch model_runner linear", "02_paged_kv"),
    "forks and rollbacks: a page that two sessions hold is copied before one of them writes into it": (
        "paged_kv sequence", "02_paged_kv"),
    "a session has messages, streams, marks and limits; a turn that fails leaves it as it was": (
        "session turn turn_input token_stream engine overflow arguments errors", "03_the_delta_turn"),
    "reuse that is exact to the token, also inside a page; when the pool is full, eviction instead of `MemoryError`": (
        "radix_tree radix_node ranked_queue prefix_cache invariants", "04_the_radix_tree"),
    "templates of many families; what users and tools write can never act as a control token": (
        "chat/template chat/conversation chat/content chat/transcript chat/messages chat/drift chat/sandbox chat/shortening "
        "chat/probing chat/families chat/dialect chat/spelling chat/json_calls chat/tool_calls", "05_templates_and_drift"),
    "drafts only while they pay, found in constant time, and from other sessions too": (
        "speculation prompt_lookup draft_budget", "06_speculation"),
    "tool calls that always fit their schema; tokens without an alternative cost no pass": (
        "chat/grammar chat/call_grammar chat/schema chat/keywords chat/finite", "06_speculation"),
    "sampling with noise that no batch and no draft changes": ("sampling output parallel_sampling", "06_speculation"),
    "turns that arrive at any time: admission, long prompts in chunks, preemption": (
        "scheduler request engine_core", "07_many_agents"),
    "host memory and a disk below the pool; keys and values in 8 bits": (
        "tiers disk_store kv_int8", "08_pressure_and_tiers"),
    "speed: kernels in C++ and Triton": ("kernel_layers cpu gpu kernels/", "09_one_kernel_two_machines"),
    "many families of models, read from files that a stranger made": (
        "model model_config model_families rotary weights model_files config_values memory",
        "01_prefill_decode_and_the_kv_cache"),
    "sessions in signed files; Ctrl-C and faults in the middle of a turn": ("persistence signing guard", "13_trust"),
}  # fmt: skip


def lines_of(name: str) -> int:
    """Lines of a file of the core, or of all kernels."""
    paths = [PACKAGE / f"{name}.py"]
    if name.endswith("/"):
        paths = [path for path in (PACKAGE / name).rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    return sum(len(path.read_text().splitlines()) for path in paths)


def what_the_lines_buy() -> str:
    """A table in Markdown: what the package does beyond the student's file, in which files, with how many lines."""
    rows = ["| what | lines | files | notebook |", "| --- | --: | --- | --- |"]
    for what, (names, notebook) in BUYS.items():
        each = names.split()
        links = [f"[`{name}`](../minstate/{name if name.endswith('/') else f'{name}.py'})" for name in each]
        shown = ", ".join(links[:4]) + (f" and {len(links) - 4} more" if len(links) > 4 else "")
        rows.append(f"| {what} | {sum(map(lines_of, each)):,} | {shown} | [{notebook[:2]}]({notebook}.ipynb) |")
    total = sum(lines_of(name) for names, _ in BUYS.values() for name in names.split())
    return "\n".join([*rows, f"| **all** | **{total:,}** | | |"])


def comparison(rows: dict[str, list[Played]]) -> pd.DataFrame:
    """A row for each engine: tokens forwarded, passes, seconds."""
    table = {
        name: {
            "tokens forwarded": sum(turn.forwarded for turn in played),
            "passes": sum(turn.passes for turn in played),
            "seconds": round(sum(turn.seconds for turn in played), 1),
        }
        for name, played in rows.items()
    }
    return pd.DataFrame(table).T.astype({"tokens forwarded": int, "passes": int})


def lines_written(path: Path = SOLUTION) -> int:
    """Lines of a student's file, without its top."""
    return len(path.read_text().splitlines()) - len(TOP.splitlines())
