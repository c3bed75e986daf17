"""A forward pass for several turns at once, of which none should suffer from another; and where it is computed."""

from collections.abc import Callable

import torch

from minstate.batch import RaggedBatch
from minstate.errors import UnsupportedModel
from minstate.model import Model
from minstate.paged_kv import KVPool


def forward(
    logits_of: Callable[[RaggedBatch], torch.Tensor], batch: RaggedBatch, rows: list[int]
) -> list[torch.Tensor | Exception]:
    """For each sequence of the batch: its `rows[b]` rows of logits `[rows, vocab]`, or the exception that it meets.

    If the pass fails, each sequence is tried alone: nobody else can tell whose fault it was. Slots are written twice
    then, with the same keys and values.
    """
    try:
        return list(logits_of(batch).split(rows))
    except Exception as error:
        if len(rows) == 1:
            return [error]
        alone = (forward(logits_of, batch.alone(place), rows[place : place + 1]) for place in range(len(rows)))
        return [logits for (logits,) in alone]


def gpu_runner(model: Model, pool: KVPool):
    """What computes on a GPU: a `minstate.gpu.GpuRunner`. Raises `UnsupportedModel` where triton is missing."""
    try:
        from minstate.gpu import GpuRunner
    except ImportError as error:
        raise UnsupportedModel(f"a GPU needs triton: pip install triton ({error})") from error
    return GpuRunner(model, pool)
