"""A forward pass for several turns at once, of which none should suffer from another."""

import torch

from minstate.attention import TorchAttention
from minstate.batch import RaggedBatch
from minstate.model import Model
from minstate.paged_kv import KVPool


def forward(model: Model, pool: KVPool, batch: RaggedBatch, rows: list[int]) -> list[torch.Tensor | Exception]:
    """For each sequence of the batch: its `rows[b]` rows of logits `[rows, vocab]`, or the exception that it meets.

    If the pass fails, each sequence is tried alone: nobody else can tell whose fault it was. Slots are written twice
    then, with the same keys and values.
    """
    try:
        return list(model.forward(batch, TorchAttention(pool, batch)).split(rows))
    except Exception as error:
        if len(rows) == 1:
            return [error]
        alone = (forward(model, pool, batch.alone(place), rows[place : place + 1]) for place in range(len(rows)))
        return [logits for (logits,) in alone]
