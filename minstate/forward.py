"""A forward pass for several turns at once, of which none should suffer from another; and where it is computed."""

from collections.abc import Callable
from traceback import clear_frames
from typing import NamedTuple

import torch

from minstate.errors import UnsupportedModel
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch


class Scores(NamedTuple):
    """What a pass says to one sequence."""

    logits: torch.Tensor  # [rows, vocab], where they were computed: whoever samples from them fetches them
    best: list[int]  # the arg-max of each row


def forward(
    logits_of: Callable[[RaggedBatch], torch.Tensor], batch: RaggedBatch, rows: list[int]
) -> list[Scores | Exception]:
    """For each sequence of the batch: the scores of its `rows[b]` rows, or the exception that it meets.

    The one moment of a step in which the host waits for a GPU is that in which it reads the arg-maxes.

    If the pass fails, each sequence is tried alone: nobody else can tell whose fault it was. Slots are written twice
    then, with the same keys and values.
    """
    try:
        logits = logits_of(batch)
        best = logits.argmax(-1).cpu()
        return [Scores(mine, ids.tolist()) for mine, ids in zip(logits.split(rows), best.split(rows), strict=True)]
    except Exception as error:
        clear_frames(error.__traceback__)  # what the pass still holds: memory may be what it lacked
        if len(rows) == 1:
            return [error]
        alone = (forward(logits_of, batch.alone(place), rows[place : place + 1]) for place in range(len(rows)))
        return [scores for (scores,) in alone]


def gpu_runner(model: Model, pool: KVPool):
    """What computes on a GPU: a `minstate.gpu.GpuRunner`. Raises `UnsupportedModel` where triton is missing."""
    try:
        from minstate.gpu import GpuRunner
    except ImportError as error:
        raise UnsupportedModel(f"a GPU needs triton: pip install triton ({error})") from error
    return GpuRunner(model, pool)
