"""Paged attention on a GPU, beside its roofline and torch's attention; with `device=cpu`, the kernels for a CPU.

The roofline is measured on the same GPU: the bandwidth of a copy, and the arithmetic of a large matrix product. Between
two runs `triton.testing.do_bench` overwrites the L2 cache, so every run reads its keys from memory.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from tqdm import tqdm

from minstate.errors import BadValue
from minstate.lab.machines.roofline import Roofline

PAGE_SIZE = 16
MAX_BYTES = 16e9  # of K and V in one case


@dataclass(frozen=True)
class AttentionCase:
    """A batch of sequences of equal lengths. The default shape is that of Llama 3 8B and Qwen3 8B."""

    batch: int
    queries: int
    context: int  # tokens, the query tokens included
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    def flops(self) -> int:
        """FLOPs of the products q kᵀ and weights · v, causal; a multiply-add counts as two."""
        keys_read = self.queries * self.context - self.queries * (self.queries - 1) // 2
        return 4 * self.batch * keys_read * self.heads * self.head_dim

    def bytes_moved(self, dtype: torch.dtype) -> int:
        """K and V read once, q read, o written: any kernel has to move so much."""
        numbers = 2 * self.kv_heads * self.context + 2 * self.heads * self.queries
        return self.batch * numbers * self.head_dim * dtype.itemsize


def cases() -> list[AttentionCase]:
    """Contexts of 1k to 128k: decoding and verification of 8 tokens in batches of 1 to 64, and chunks of a prompt."""
    contexts, batches = (1024, 4096, 16_384, 65_536, 131_072), (1, 4, 16, 64)
    decodes = [
        AttentionCase(batch, queries, context) for context in contexts for batch in batches for queries in (1, 8)
    ]
    chunks = [
        AttentionCase(1, queries, context) for context in contexts for queries in (512, 2048) if queries <= context
    ]
    return [case for case in decodes + chunks if case.bytes_moved(torch.bfloat16) < MAX_BYTES]


def kernels(dtype: str = "bfloat16", seconds: str = "inf", flex: str = "yes", device: str = "cuda") -> pd.DataFrame:
    """For each case the milliseconds of our kernel and of torch's, and the share of the roofline that ours reaches.

    After `seconds` no further case begins. With `flex="no"`, FlexAttention is left out: torch compiles it anew for each
    case, which takes longer than all measurements. Raises `BadValue` if there is no GPU, and AssertionError if two
    kernels disagree. For `device="cpu"` see `cpu_kernels.py`.
    """
    if device == "cpu":
        from minstate.lab.bench.cpu_kernels import cpu_kernels  # compiles them

        return cpu_kernels(getattr(torch, dtype))
    if not torch.cuda.is_available():
        raise BadValue("this benchmark times GPU kernels and needs an NVIDIA GPU that torch can use: none was found")
    precision = getattr(torch, dtype)
    room = torch.cuda.get_device_properties("cuda").total_memory / 5  # K and V lie there up to three times
    fitting = [case for case in cases() if case.bytes_moved(precision) < room]
    bound, end, rows = measure_gpu(precision), time.monotonic() + float(seconds), []
    for case in tqdm(fitting, unit="case"):
        if rows and time.monotonic() > end:
            break
        rows.append(measure(case, precision, bound, flex != "no"))
    table = pd.DataFrame(rows).set_index(["batch", "queries", "context"])
    table.attrs = {
        "cases left out": len(cases()) - len(rows),
        "gpu": torch.cuda.get_device_name(),
        "copy GB/s": round(bound.bytes_per_s / 1e9),
        "TFLOP/s": round(bound.flops_per_s / 1e12),
    }
    return table


def measure_gpu(dtype: torch.dtype) -> Roofline:
    """This GPU's roofline: the bandwidth of a copy, reads and writes counted, and the rate of a matrix product."""
    size = 8192
    a, b = torch.randn(2, size, size, device="cuda", dtype=dtype)
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return Roofline(
        flops_per_s=2 * size**3 / (milliseconds(lambda: a @ b) / 1000),
        bytes_per_s=2 * source.nbytes / (milliseconds(lambda: target.copy_(source)) / 1000),
    )


def measure(case: AttentionCase, dtype: torch.dtype, bound: Roofline, with_flex: bool = True) -> dict[str, float]:
    """One row of the table."""
    # Imported here, because the predictions above are useful without triton, too.
    from minstate.kernels.paged_attention import paged_attention
    from minstate.kernels.tiles import busy_programs, split_count

    pages = -(-case.context // PAGE_SIZE)
    kv = torch.randn(2, case.kv_heads, case.batch * pages * PAGE_SIZE, case.head_dim, device="cuda", dtype=dtype)
    q = torch.randn(case.batch * case.queries, case.heads, case.head_dim, device="cuda", dtype=dtype)
    table = torch.randperm(case.batch * pages, device="cuda").view(case.batch, pages).int()
    starts = torch.arange(0, len(q) + 1, case.queries, device="cuda").int()
    contexts = torch.full((case.batch,), case.context, device="cuda").int()
    programs = busy_programs(tuple(q.shape), dtype, case.kv_heads, sequences=case.batch, max_queries=case.queries)
    multiprocessors = torch.cuda.get_device_properties("cuda").multi_processor_count
    splits = split_count(programs, case.context, multiprocessors)

    def ours():
        return paged_attention(
            q, kv, starts, contexts, table, page_size=PAGE_SIZE, max_queries=case.queries, splits=splits
        )

    def gathered():
        """K and V `[2, B, H_kv, context, D]`, contiguous."""
        return kv.unflatten(2, (-1, PAGE_SIZE))[:, :, table].movedim(1, 2).flatten(3, 4)[..., : case.context, :]

    keys, values = gathered()
    queries = q.unflatten(0, (case.batch, case.queries)).transpose(1, 2)
    causal = None if case.queries == 1 else causal_lower_right(case.queries, case.context)

    def sdpa(k, v):
        return F.scaled_dot_product_attention(queries, k, v, attn_mask=causal, enable_gqa=True)

    others: dict[str, Callable[[], torch.Tensor]] = {
        "SDPA, pages gathered": lambda: sdpa(*gathered()),
        "SDPA, contiguous": lambda: sdpa(keys, values),
    }
    if with_flex:
        flex = flex_of(case)
        others["FlexAttention, contiguous"] = lambda: flex(queries, keys, values)
    expected = sdpa(keys, values).transpose(1, 2).flatten(0, 1)
    error = 2e-2 * float(expected.abs().max())  # relative to the largest: a mean of many values may be near 0
    torch.testing.assert_close(ours(), expected, atol=error, rtol=2e-2)
    ms = milliseconds(ours)
    floor = 1000 * bound.floor_s(case.flops(), case.bytes_moved(dtype))
    return {
        "batch": case.batch, "queries": case.queries, "context": case.context, "splits": splits,
        "ms": ms, "floor ms": floor, "share of bound": floor / ms, "GB/s": case.bytes_moved(dtype) / ms / 1e6,
        **{name: milliseconds(other) for name, other in others.items()},
    }  # fmt: skip


def flex_of(case: AttentionCase) -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled for one case's shape."""
    history = case.context - case.queries
    mask = create_block_mask(
        lambda _batch, _head, query, key: key <= query + history, None, None, case.queries, case.context, device="cuda"
    )
    torch.compiler.reset()  # torch compiles a function for eight shapes, and then falls back to eager mode
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def milliseconds(work: Callable[[], object]) -> float:
    """The median of repeated runs, each with a cold L2 cache."""
    from triton.testing import do_bench

    ms = do_bench(work, return_mode="median")
    assert math.isfinite(ms)
    return ms
