"""Forward passes on this CPU beside their roofline, and what a turn costs outside its forward passes."""

import time

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from minstate.engine import Engine
from minstate.lab.machines.pass_timing import pass_s, prefilled_sequence
from minstate.lab.machines.roofline import Roofline, measure_roofline
from minstate.sampling import Sampling

QUERIES = {1: "one token", 8: "8 tokens", 512: "512 tokens of a prompt"}
CONTEXTS = (1024, 6144)


def cpu_steps(rounds: str = "9") -> pd.DataFrame:
    """Forward passes of 1, 8 and 512 tokens that end at 1k and 6k, in both precisions: the median, and the floor.

    The floor follows from FLOPs and bytes, at rates that are measured just before: those of a float32 matrix product,
    and of reading memory. Every case is timed once in every round, in an order that changes.
    """
    machine = measure_roofline()
    engines = {dtype: Engine.from_pretrained(dtype=dtype, num_pages=800) for dtype in ("float32", "bfloat16")}
    outside = pd.DataFrame([row for dtype in engines for row in outside_forward(engines[dtype], dtype)])
    sequences = {
        (dtype, n): prefilled_sequence(engine, n)
        for dtype, engine in engines.items()
        for n in tqdm(CONTEXTS, desc=dtype)
    }
    cases = [(dtype, n, queries) for dtype in engines for n in CONTEXTS for queries in QUERIES]
    order, times = np.random.default_rng(0), []
    for _ in tqdm(range(int(rounds)), unit="round"):
        shuffled = [cases[i] for i in order.permutation(len(cases))]
        times.append({case: pass_s(engines[case[0]], sequences[case[:2]], case[2]) for case in shuffled})
    seconds = pd.DataFrame(times)[cases]
    rows = [_row(engines[case[0]], machine, *case, seconds) for case in cases]
    table = pd.DataFrame(rows).set_index(["dtype", "context", "pass"])
    table.attrs = {
        "gflops": round(machine.flops_per_s / 1e9, 1),
        "read_gb_per_s": round(machine.bytes_per_s / 1e9, 1),
        "outside_forward": outside.round(3).to_dict("records"),
    }
    return table


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
    """Milliseconds of a turn outside `Model.forward`, for outputs of 1 and of 33 tokens."""
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
                outside_ms = []
                for _ in range(repeats):
                    inside, mark = 0.0, session.mark()
                    options = {"max_new_tokens": answer, "sampling": Sampling(ignore_eos=True)}
                    total_s = session.send(token_ids=[5] * 8, **options).stats.total_s
                    outside_ms.append(1000 * (total_s - inside))
                    session.rollback(mark)
                rows.append(
                    {"dtype": dtype, "context": context, "answer": answer, "median ms": float(np.median(outside_ms))}
                )
    del engine.model.forward  # the class has it
    return rows
