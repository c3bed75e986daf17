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

QUERIES = {1: "one token"} | {n: f"{n} tokens" for n in (8, 16, 32, 150, 512)}
CONTEXTS = (1024, 4096, 6144)
KERNELS = ("torch", "cpu")


def cpu_steps(rounds: str = "5") -> pd.DataFrame:
    """Forward passes of 1 to 512 tokens that end at 1k, 4k and 6k, by torch and by the C++ kernels: median and floor.

    The floor follows from FLOPs and bytes, at rates that are measured just before: those of a matrix product in the
    model's precision, or in float32 if that is faster, and of reading memory. Every case is timed once in every round,
    in an order that changes.
    """
    machines = {dtype: measure_roofline(getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}
    engines = {
        (dtype, kernels): Engine.from_pretrained(dtype=dtype, kernels=kernels, num_pages=800)
        for dtype in machines
        for kernels in KERNELS
    }
    outside = pd.DataFrame([row for which, engine in engines.items() for row in outside_forward(engine, *which)])
    sequences = {
        (*which, n): prefilled_sequence(engine, n)
        for which, engine in engines.items()
        for n in tqdm(CONTEXTS, desc=" ".join(which))
    }
    cases = [(*which, n, queries) for which in engines for n in CONTEXTS for queries in QUERIES]
    order, times = np.random.default_rng(0), []
    for _ in tqdm(range(int(rounds)), unit="round"):
        shuffled = [cases[i] for i in order.permutation(len(cases))]
        times.append({case: pass_s(engines[case[:2]], sequences[case[:3]], case[3]) for case in shuffled})
    seconds = pd.DataFrame(times)[cases]
    rows = [_row(engines[case[:2]], machines[case[0]], *case, seconds) for case in cases]
    table = pd.DataFrame(rows).set_index(["dtype", "kernels", "context", "pass"])
    table.attrs = {
        "gflops": {dtype: round(machine.flops_per_s / 1e9, 1) for dtype, machine in machines.items()},
        "read_gb_per_s": round(max(machine.bytes_per_s for machine in machines.values()) / 1e9, 1),
        "outside_forward": outside.round(3).to_dict("records"),
        "weights_gb": {" ".join(which): round(weight_bytes(engine) / 1e9, 3) for which, engine in engines.items()},
    }
    return table


def weight_bytes(engine: Engine) -> int:
    """Bytes of all layouts of all matrices, the embedding included."""
    model = engine.model
    linears = [each for layer in model.layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    return model.embedding.nbytes + sum(linear.nbytes for linear in [*linears, model.lm_head])


def _row(
    engine: Engine,
    machine: Roofline,
    dtype: str,
    kernels: str,
    context: int,
    queries: int,
    seconds: pd.DataFrame,
) -> dict:
    config, taken = engine.model.config, seconds[dtype, kernels, context, queries]
    flops = config.flops(queries, context, logit_rows=1)
    floor_s = machine.floor_s(flops, config.bytes_read(context, getattr(torch, dtype)))
    return {
        "dtype": dtype,
        "kernels": kernels,
        "context": context,
        "pass": QUERIES[queries],
        "median ms": 1000 * taken.median(),
        "fastest ms": 1000 * taken.min(),
        "floor ms": 1000 * floor_s,
        "times the floor": taken.median() / floor_s,
        "times one token": (taken / seconds[dtype, kernels, context, 1]).median(),
        "share of the GEMM rate": flops / taken.median() / machine.flops_per_s,
    }


def outside_forward(engine: Engine, dtype: str, kernels: str, repeats: int = 7) -> list[dict]:
    """Milliseconds of a turn outside its forward passes, for outputs of 1 and of 33 tokens."""
    runner = engine.core.runner
    inside, forward = 0.0, runner.logits

    def timed(batch):
        nonlocal inside
        start = time.perf_counter()
        logits = forward(batch)
        inside += time.perf_counter() - start
        return logits

    rows = []
    runner.logits = timed
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
                known = {"dtype": dtype, "kernels": kernels, "context": context, "answer": answer}
                rows.append(known | {"median ms": float(np.median(outside_ms))})
    del runner.logits  # the class has it
    return rows
