"""What a page table costs: one decode step with K/V in contiguous memory, or in more or fewer runs of pages."""

import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import trange

from minstate.attention import TorchAttention
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.paged_kv import KVPool, page_runs
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence
from minstate.weights import find_model, read_config, read_tensors

PAGE_SIZE = 16


class ContiguousAttention:
    """Attention over one sequence's K/V in contiguous tensors `[layers, 2, H_kv, context, D]`, without a page table."""

    def __init__(self, kv: torch.Tensor):
        self.kv = kv

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `TorchAttention`, for one query token."""
        keys, values = self.kv[layer]
        keys[:, -1], values[:, -1] = k[0], v[0]
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys[None], values[None], enable_gqa=True)
        return out[0].transpose(0, 1)


def sequence_in_runs(model: Model, context: int, runs: int) -> Sequence:
    """A sequence of `context` tokens, all but the last with random K/V, whose pages lie in about `runs` runs."""
    config, pages = model.config, -(-context // PAGE_SIZE)
    length = -(-pages // runs)  # pages in a run; as many pages of other owners lie between two runs
    pool = KVPool(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        num_pages=2 * pages + 2 * length,
        page_size=PAGE_SIZE,
        dtype=model.dtype,
    )
    pool.kv.normal_()
    allocator = pool.allocator
    all_pages = allocator.allocate(allocator.num_pages)
    allocator.release([page for page in all_pages if runs == 1 or page // length % 2 == 0])
    sequence = Sequence(pool)
    sequence.log = [0] * context
    sequence.table.append(context - 1)
    sequence.table.commit()
    return sequence


def paged_decode(context: int = 4000, rounds: int = 15) -> pd.DataFrame:
    """Milliseconds of one decode step of the default model, with contiguous K/V and with 1 to 256 runs of pages.

    All layouts are timed once in every round, in an order that changes, so that a slow moment affects them all.
    """
    folder = find_model()
    model = Model(ModelConfig.from_hf(read_config(folder)), read_tensors(folder, torch.float32))
    sequences = {f"pages in {runs} runs": sequence_in_runs(model, context, runs) for runs in (1, 4, 16, 64, 256)}
    sequences["pages in 1 run"] = sequences.pop("pages in 1 runs")
    config = model.config
    contiguous = torch.randn(config.num_layers, 2, config.num_kv_heads, context, config.head_dim)

    def step(name: str) -> float:
        sequence = sequences.get(name) or sequences["pages in 1 run"]
        start = time.perf_counter()
        batch = RaggedBatch.build([sequence.chunk(1)])
        paged = name in sequences
        model.forward(batch, TorchAttention(sequence.table.pool, batch) if paged else ContiguousAttention(contiguous))
        elapsed = time.perf_counter() - start
        sequence.table.truncate(context - 1)
        return 1000 * elapsed

    names = ["contiguous", *sequences]
    order = np.random.default_rng(0)
    times = [{name: step(name) for name in order.permutation(names)} for _ in trange(rounds + 2, unit="round")]
    table = pd.DataFrame(times)[names].iloc[2:]  # two rounds to warm up
    ratio = table.div(table["contiguous"], axis=0)
    return pd.DataFrame(
        {
            "runs": [1] + [len(page_runs(sequences[name].table.pages)) for name in names[1:]],
            "median ms": table.median(),
            "fastest ms": table.min(),
            "slowest ms": table.max(),
            "median ratio": ratio.median(),
        }
    ).rename_axis("layout")
