"""Forward passes on this CPU beside what they take at least, and what a turn costs outside of them."""

import time

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from minstate.engine import Engine
from minstate.lab.machines.roofline import Roofline, measure_roofline
from minstate.lab.paths import source_text
from minstate.ragged_batch import RaggedBatch
from minstate.sampling import Sampling
from minstate.sequence import Sequence

QUERIES = {1: "one token", 8: "8 tokens", 512: "512 tokens of a prompt"}
CONTEXTS = (1024, 6144)


def cpu_steps(rounds: str = "9") -> pd.DataFrame:
    """A forward pass of 1, 8 and 512 tokens that ends at 1k and 6k, in both precisions: median, and the least possible.

    The floor comes from bytes and FLOPs at the rates measured just before: a float32 matrix product, and reading. Every
    case is timed once in every round, in an order that changes.
    """
    machine = measure_roofline()
    engines = {dtype: Engine.from_pretrained(dtype=dtype, num_pages=800) for dtype in ("float32", "bfloat16")}
    outside = pd.DataFrame([row for dtype in engines for row in outside_forward(engines[dtype], dtype)])
    sequences = {
        (dtype, n): prefilled(engine, n) for dtype, engine in engines.items() for n in tqdm(CONTEXTS, desc=dtype)
    }
    cases = [(dtype, n, queries) for dtype in engines for n in CONTEXTS for queries in QUERIES]
    order, times = np.random.default_rng(0), []
    for _ in tqdm(range(int(rounds)), unit="round"):
        times.append(
            {case: _forward_s(engines[case[0]], sequences[case[:2]], *case[1:]) for case in _mixed(order, cases)}
        )
    seconds = pd.DataFrame(times)[cases]
    rows = [_row(engines[case[0]], machine, *case, seconds) for case in cases]
    table = pd.DataFrame(rows).set_index(["dtype", "context", "pass"])
    table.attrs = {
        "gflops": round(machine.flops_per_s / 1e9, 1),
        "read_gb_per_s": round(machine.bytes_per_s / 1e9, 1),
        "outside_forward": outside.round(3).to_dict("records"),
    }
    return table


def _mixed(order: np.random.Generator, cases: list) -> list:
    return [cases[i] for i in order.permutation(len(cases))]


def prefilled(engine: Engine, context: int) -> Sequence:
    """A sequence of real text with K/V up to `context`: scores of random keys would be unlike any model's."""
    sequence = Sequence(engine.pool)
    sequence.log = engine.tokenizer.encode(source_text())[:context]
    while sequence.kv_len < context:
        engine.logits(RaggedBatch.build([(sequence, min(512, context - sequence.kv_len))]))
    return sequence


def _forward_s(engine: Engine, sequence: Sequence, context: int, queries: int) -> float:
    """Seconds of a pass over the last `queries` tokens, with everything that prepares it."""
    sequence.table.truncate(context - queries)
    start = time.perf_counter()
    engine.logits(RaggedBatch.build([(sequence, queries)]))
    return time.perf_counter() - start


def _row(engine: Engine, machine: Roofline, dtype: str, context: int, queries: int, seconds: pd.DataFrame) -> dict:
    config, taken = engine.model.config, seconds[dtype, context, queries]
    flops = config.flops(queries, context, logit_rows=1)
    floor_s = machine.floor_s(flops, config.bytes_read(context, getattr(torch, dtype)))
    return {
        "dtype": dtype,
        "context": context,
        "pass": QUERIES[queries],
        "median ms": 1000 * taken.median(),
        "fastest ms": 1000 * taken.min(),
        "floor ms": 1000 * floor_s,
        "times the floor": taken.median() / floor_s,
        "times one token": (taken / seconds[dtype, context, 1]).median(),
        "share of the GEMM rate": flops / taken.median() / machine.flops_per_s,
    }


def outside_forward(engine: Engine, dtype: str, repeats: int = 7) -> list[dict]:
    """Milliseconds of a turn that are not spent in `Model.forward`, for answers of 1 and of 33 tokens."""
    inside, forward = 0.0, engine.model.forward

    def timed(*arguments):
        nonlocal inside
        start = time.perf_counter()
        logits = forward(*arguments)
        inside += time.perf_counter() - start
        return logits

    rows = []
    engine.model.forward = timed
    for context in CONTEXTS:
        with engine.open(tenant=f"outside {context}") as session:
            session.send(token_ids=list(range(100, 100 + context)), max_new_tokens=1)
            for answer in (1, 33):
                spent = []
                for _ in range(repeats):
                    inside, mark = 0.0, session.mark()
                    options = {"max_new_tokens": answer, "sampling": Sampling(ignore_eos=True)}
                    total_s = session.send(token_ids=[5] * 8, **options).stats.total_s
                    spent.append(1000 * (total_s - inside))
                    session.rollback(mark)
                rows.append(
                    {"dtype": dtype, "context": context, "answer": answer, "median ms": float(np.median(spent))}
                )
    del engine.model.forward  # the class has it
    return rows
