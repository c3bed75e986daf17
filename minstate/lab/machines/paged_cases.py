"""Inputs for attention kernels, in pools that punish a stray read, and the outputs that they should give.

Slots that no token fills hold NaN. Behind its last page a page table goes on with `WILD`, an id so large that a kernel
which follows it crashes.
"""

from collections.abc import Sequence

import numpy as np
import torch

WILD = 2**30


def paged(
    contexts: Sequence[int], page_size: int, kv_heads: int = 1, head_dim: int = 16
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A pool `[2, H_kv, slots, D]`, its page table `[B, P]`, and K and V `[2, H_kv, context, D]` of each sequence.

    The pages of the sequences lie in random order, the same at every call.
    """
    draw = torch.Generator().manual_seed(7)
    needed = [-(-context // page_size) for context in contexts]
    spare = 3
    free = torch.randperm(sum(needed) + spare, generator=draw)
    kv = torch.full((2, kv_heads, len(free) * page_size, head_dim), torch.nan)
    page_table = torch.full((len(contexts), max(needed) + 1), WILD, dtype=torch.int32)
    keys_values = []
    for row, context, pages in zip(page_table, contexts, free.split([*needed, spare]), strict=False):
        row[: len(pages)] = pages
        token = torch.arange(context)
        keys_values.append(torch.randn(2, kv_heads, context, head_dim, generator=draw))
        kv[:, :, pages[token // page_size] * page_size + token % page_size] = keys_values[-1]
    return kv, page_table, keys_values


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, history: int) -> torch.Tensor:
    """The expected output `[queries, H, D]`, in float64.

    Query i of q `[queries, H, D]` reads the keys up to `history + i` of k and v `[H_kv, context, D]`.
    """
    q, k, v = q.double().transpose(0, 1), k.double(), v.double()
    group = len(q) // len(k)
    scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(history + 1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v.repeat_interleave(group, 0)).transpose(0, 1)


def assert_is(got: torch.Tensor, expected: torch.Tensor, error: float = 2e-6) -> None:
    """Raise AssertionError unless both agree up to `error`. NaN is never right."""
    torch.testing.assert_close(got.double(), expected, atol=error, rtol=error)


def ragged(
    work: Sequence[tuple[int, int]], page_size: int = 16, kv_heads: int = 2, heads: int = 4, head_dim: int = 16
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The arguments of `paged_attention` for sequences of (history, query tokens), and the expected output.

    The arguments are q `[T, H, D]`, the pool, query_start `[B + 1]`, context_len `[B]` and the page table.
    """
    kv, page_table, keys_values = paged([sum(each) for each in work], page_size, kv_heads, head_dim)
    starts = np.cumsum([0, *(queries for _, queries in work)])
    q = torch.randn(int(starts[-1]), heads, head_dim, generator=torch.Generator().manual_seed(1))
    parts = zip(starts, work, keys_values, strict=False)
    expected = torch.cat([attention(q[at : at + queries], k, v, history) for at, (history, queries), (k, v) in parts])
    context_len = torch.tensor([sum(each) for each in work], dtype=torch.int32)
    return (q, kv, torch.from_numpy(starts).int(), context_len, page_table), expected


def in_other_pages(
    kv: torch.Tensor, page_table: torch.Tensor, page_size: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same tokens in a pool whose pages are shuffled, and the page table that finds them there."""
    pages = torch.randperm(kv.shape[2] // page_size, generator=torch.Generator().manual_seed(seed))
    moved = torch.empty_like(kv).unflatten(2, (-1, page_size))
    moved[:, :, pages] = kv.unflatten(2, (-1, page_size))
    table, known = page_table.clone(), page_table != WILD
    table[known] = pages[page_table[known].long()].int()
    return moved.flatten(2, 3), table


def on_cpu(q: torch.Tensor, kv: torch.Tensor, starts: torch.Tensor, contexts: torch.Tensor, table: torch.Tensor):
    """The C++ kernel's output `[T, H, D]` for these arguments, in pages of 16 slots. Compiles the kernels once."""
    from minstate.cpu import KERNELS

    return KERNELS.paged_attention(q, kv, starts, contexts, table, page_size=16)


def int32(*numbers: int) -> torch.Tensor:
    """A vector of 32-bit integers, as kernels take lengths and places."""
    return torch.tensor(numbers, dtype=torch.int32)
