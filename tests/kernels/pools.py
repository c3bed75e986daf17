"""Random ragged batches over a pool whose unused slots are NaN, and the attention that they should give."""

from dataclasses import dataclass

import torch

from minstate.kv_int8 import dequantise, quantise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ERROR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of numbers around 1
WILD = 2**30  # a page id that crashes a kernel that follows it


@dataclass
class Ragged:
    """The arguments of `paged_attention`, and its output in float64."""

    q: torch.Tensor
    kv: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    page_table: torch.Tensor
    page_size: int
    expected: torch.Tensor  # [T, H, D] float64


def ragged(
    sequences: list[tuple[int, int]],
    *,
    group: int,
    kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    spread: float = 1.0,
    seed: int = 0,
    device: str = DEVICE,
) -> Ragged:
    """A batch of sequences (tokens of history, query tokens), with keys and values in pages of random order.

    Slots without a token, and the memory between the heads of q, hold NaN. Rows of the page table end in wild ids.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = kv_heads * group
    contexts = [history + queries for history, queries in sequences]
    needed = [-(-context // page_size) for context in contexts]
    free = torch.randperm(sum(needed) + 3, generator=generator)
    exact = torch.float32 if kv_dtype else dtype
    kv = torch.full((2, kv_heads, len(free) * page_size, head_dim), torch.nan, dtype=exact)
    page_table = torch.full((len(sequences), max(needed) + 2), WILD, dtype=torch.int32)
    q = torch.full((sum(queries for _, queries in sequences), heads + 1, head_dim), torch.nan, dtype=dtype)
    expected, begin = [], 0
    for i, ((history, queries), context) in enumerate(zip(sequences, contexts, strict=True)):
        pages, free = free[: needed[i]], free[needed[i] :]
        page_table[i, : needed[i]] = pages
        token = torch.arange(context)
        slots = pages[token // page_size] * page_size + token % page_size
        k, v = torch.randn(2, kv_heads, context, head_dim, generator=generator).to(dtype)
        if kv_dtype == torch.int8:
            k, v = dequantise(quantise(k), torch.float32), dequantise(quantise(v), torch.float32)
        own_q = (spread * torch.randn(queries, heads, head_dim, generator=generator)).to(dtype)
        kv[0][:, slots], kv[1][:, slots] = k, v
        q[begin : begin + queries, :heads] = own_q
        begin += queries
        expected.append(attention(own_q, k, v, history))
    starts = [0, *torch.tensor([queries for _, queries in sequences]).cumsum(0).tolist()]
    return Ragged(
        q.to(device)[:, :heads],
        (quantise(kv) if kv_dtype == torch.int8 else kv).to(device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(contexts, dtype=torch.int32, device=device),
        page_table.to(device),
        page_size,
        torch.cat(expected),
    )


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, history: int) -> torch.Tensor:
    """softmax(q kᵀ / √D) v in float64: query i reads the keys up to `history + i`."""
    q, k, v = q.double().transpose(0, 1), k.double(), v.double()
    group = len(q) // len(k)
    scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(history + 1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v.repeat_interleave(group, 0)).transpose(0, 1)
