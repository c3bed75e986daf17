"""The benchmark of page tables: pages lie in the runs that it names, and both layouts give the same attention."""

import pytest
import tiny
import torch

from minstate.attention import TorchAttention
from minstate.lab.bench.paged_decode import ContiguousAttention, sequence_in_runs
from minstate.paged_kv import page_runs
from minstate.ragged_batch import RaggedBatch


@pytest.mark.parametrize("runs", [1, 2, 4, 16])
def test_pages_lie_in_as_many_runs_as_asked_for(runs):
    sequence = sequence_in_runs(tiny.model(), context=250, runs=runs)
    sequence.table.append(1)
    assert len(page_runs(sequence.table.pages)) == runs


def test_contiguous_and_paged_attention_compute_the_same():
    model = tiny.model()
    sequence = sequence_in_runs(model, context=100, runs=1)
    first = sequence.table.pages[0] * 16
    contiguous = sequence.table.pool.kv[:, :, :, first : first + 100].clone()
    batch = RaggedBatch.build([sequence.chunk(1)])
    paged = model.forward(batch, TorchAttention(sequence.table.pool, batch))
    assert torch.allclose(paged, model.forward(batch, ContiguousAttention(contiguous)), atol=1e-12, rtol=0)
