"""The C++ kernels one by one, beside torch's operations and a roofline measured on the same CPU.

The shapes are SmolLM2-135M's, in which a layer's weights do not fit into the caches. The products of a whole pass run
one after the other, as in a pass, so that each reads its weights from memory.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from minstate.kernels.cpu.functions import append_kv, paged_attention, rms_norm, silu_mul
from minstate.lab.machines.roofline import measure_roofline
from minstate.linear import Linear
from minstate.rotary import Rope, rotary_table, rotate

LAYERS, HIDDEN, MLP, VOCABULARY = 30, 576, 1536, 49152
HEADS, KV_HEADS, DIM, PAGE = 9, 3, 64, 16
SHAPES = [(960, HIDDEN), (HIDDEN, HIDDEN), (2 * MLP, HIDDEN), (HIDDEN, MLP)]  # of a layer's products, [out, in]
ROWS = (1, 2, 4, 8, 16, 32, 150)
ATTENTION = ((1, 1024), (1, 6144), (8, 4096), (32, 4096), (150, 4096), (512, 4096))  # query tokens, context


class Case(NamedTuple):
    """What a kernel and torch compute, with the FLOPs and the bytes that both need."""

    name: str
    ours: Callable[[], object]
    torchs: Callable[[], object]
    flops: float
    bytes_moved: float


def cpu_kernels(dtype: torch.dtype, rounds: int = 15) -> pd.DataFrame:
    """Median milliseconds of each case, ours and torch's in turns, and the share of the roofline that ours reaches."""
    machine, rows = measure_roofline(dtype), []
    cases = [*products(dtype), *(attention(dtype, *shape) for shape in ATTENTION), *small(dtype)]
    for case in tqdm(cases, unit="case"):
        ms = np.median([[1000 * seconds(work) for work in (case.ours, case.torchs)] for _ in range(rounds)], axis=0)
        floor = 1000 * machine.floor_s(case.flops, case.bytes_moved)
        row = {"case": case.name, "ms": ms[0], "torch ms": ms[1], "floor ms": floor, "times the floor": ms[0] / floor}
        rows.append(row)
    table = pd.DataFrame(rows).set_index("case")
    table.attrs = {
        "gflops": round(machine.flops_per_s / 1e9, 1),
        "read_gb_per_s": round(machine.bytes_per_s / 1e9, 1),
    }
    return table


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def products(dtype: torch.dtype) -> list[Case]:
    """All products of a pass, for several numbers of rows."""
    weights = [torch.randn(shape).to(dtype) for _ in range(LAYERS) for shape in SHAPES]
    weights.append(torch.randn(VOCABULARY, HIDDEN).to(dtype))
    ours, torchs = ([Linear([weight], kernels=kernels) for weight in weights] for kernels in ("cpu", "torch"))
    numbers = sum(weight.numel() for weight in weights)

    def run(linears: list[Linear], rows: int) -> Callable[[], None]:
        inputs = {width: torch.randn(rows, width).to(dtype) for width in (HIDDEN, MLP)}

        def work() -> None:
            for linear, weight in zip(linears, weights, strict=True):
                linear(inputs[weight.shape[1]])

        return work

    return [
        Case(f"all products, {n} rows", run(ours, n), run(torchs, n), 2 * n * numbers, numbers * dtype.itemsize)
        for n in ROWS
    ]


def attention(dtype: torch.dtype, queries: int, context: int) -> Case:
    """Causal attention of one sequence whose pages lie anywhere; torch reads K and V that are contiguous."""
    pages = context // PAGE
    kv, q = torch.randn(2, KV_HEADS, context, DIM).to(dtype), torch.randn(queries, HEADS, DIM).to(dtype)
    table = torch.randperm(pages).int()[None]
    starts, contexts = torch.tensor([0, queries]).int(), torch.tensor([context]).int()
    keys, values = kv.unflatten(2, (-1, PAGE))[:, :, table[0]].flatten(2, 3)[:, None]
    mask = torch.ones(queries, context, dtype=torch.bool).tril(context - queries) if queries > 1 else None
    rows = q.transpose(0, 1)[None]

    def torchs() -> torch.Tensor:
        return F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, enable_gqa=True)

    def ours() -> torch.Tensor:
        return paged_attention(q, kv, starts, contexts, table, page_size=PAGE)

    torch.testing.assert_close(ours(), torchs()[0].transpose(0, 1), atol=2e-2, rtol=2e-2)
    keys_read = queries * context - queries * (queries - 1) // 2
    return Case(
        f"attention, {queries} over {context}", ours, torchs, 4 * keys_read * HEADS * DIM, kv.nbytes + 2 * q.nbytes
    )


def small(dtype: torch.dtype) -> list[Case]:
    """What else a layer does, for one token and for 150; torch's as `Model.forward` has it."""
    return [case(dtype, tokens) for tokens in (1, 150) for case in (norm, append, gate)]


def norm(dtype: torch.dtype, tokens: int) -> Case:
    """Adding to the residual, and the norm of the sum."""
    x, residual, weight = (torch.randn(shape).to(dtype) for shape in [(tokens, HIDDEN), (tokens, HIDDEN), (HIDDEN,)])

    def torchs() -> torch.Tensor:
        return F.rms_norm(residual + x, (HIDDEN,), weight, 1e-5)

    return Case(
        f"rms_norm, {tokens} tokens", lambda: rms_norm(x, weight, 1e-5, residual.clone()), torchs, 0, 4 * x.nbytes
    )


def append(dtype: torch.dtype, tokens: int) -> Case:
    """Rotations, and storing keys and values."""
    cos, sin = (table.to(dtype) for table in rotary_table(Rope(DIM), 1024))
    qkv, kv = torch.randn(tokens, HEADS + 2 * KV_HEADS, DIM).to(dtype), torch.zeros(2, KV_HEADS, 1024, DIM, dtype=dtype)
    at = torch.arange(tokens)
    places = at.int()

    def torchs() -> torch.Tensor:
        q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)
        kv[0].index_copy_(1, at, rotate(k, cos[at, None], sin[at, None]).transpose(0, 1))
        kv[1].index_copy_(1, at, v.transpose(0, 1))
        return rotate(q, cos[at, None], sin[at, None])

    def ours() -> torch.Tensor:
        return append_kv(qkv, cos, sin, places, places, kv)

    torch.testing.assert_close(ours(), torchs(), atol=2e-2, rtol=2e-2)
    return Case(f"append_kv, {tokens} tokens", ours, torchs, 0, 2 * qkv.nbytes)


def gate(dtype: torch.dtype, tokens: int) -> Case:
    """The gate of the MLP."""
    gate_up = torch.randn(tokens, 2 * MLP).to(dtype)

    def torchs() -> torch.Tensor:
        opening, up = gate_up.chunk(2, dim=-1)
        return F.silu(opening) * up

    return Case(f"silu_mul, {tokens} tokens", lambda: silu_mul(gate_up), torchs, 0, 1.5 * gate_up.nbytes)
