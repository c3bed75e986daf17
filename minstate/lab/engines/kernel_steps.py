"""A decode step of a small random model by the hand-written kernels, with its calls counted.

The model computes in float32 and has heads of 16 numbers, as the C++ kernels want. The Triton kernels run in Triton's
interpreter: set `TRITON_INTERPRET=1` before triton is imported.
"""

from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from minstate.attention import TorchAttention
from minstate.gpu import Shape, input_views, pack_inputs
from minstate.kernel_layers import Kernels, hidden_states
from minstate.lab.engines.small_engine import CONFIG
from minstate.linear import Linear
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.rotary import Rope
from minstate.sequence import Sequence

HEAD_DIM = 16
PAGES = 8  # columns of a page table


def layered_model(num_layers: int, kernels: str = "torch") -> Model:
    """A random model of so many layers. With `kernels="cpu"` its weights have the layout of the C++ products."""
    config = replace(
        CONFIG, num_layers=num_layers, head_dim=HEAD_DIM, ropes=(Rope(HEAD_DIM),) * num_layers,
        windows=(None,) * num_layers,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    shapes = config.tensor_shapes().items()
    weights = {name: 0.3 * torch.randn(size, generator=draw) for name, size in shapes}
    return Model(config, weights, kernels=kernels)


def three_decodes(num_layers: int) -> tuple[KVPool, RaggedBatch]:
    """A pool of NaN but for three histories of 8, 16 and 24 tokens, and a batch with the next token of each."""
    model = layered_model(num_layers)
    pool = KVPool(
        num_layers=num_layers, num_kv_heads=model.config.num_kv_heads, head_dim=HEAD_DIM, num_pages=24, page_size=8
    )  # fmt: skip
    pool.kv.fill_(torch.nan)
    sequences = [Sequence(pool) for _ in range(3)]
    for number, sequence in enumerate(sequences):
        sequence.log += [(7 * i + 31 * number) % 200 for i in range(9 + 8 * number)]
    prompt = RaggedBatch.build([sequence.chunk(len(sequence.log) - 1) for sequence in sequences])
    model.forward(prompt, TorchAttention(pool, prompt))
    for sequence in sequences:
        sequence.table.commit()
    return pool, RaggedBatch.build([sequence.chunk(1) for sequence in sequences])


def reference(num_layers: int) -> torch.Tensor:
    """The logits of the three decodes by `Model.forward`, in plain torch."""
    pool, batch = three_decodes(num_layers)
    return layered_model(num_layers).forward(batch, TorchAttention(pool, batch))


def decode_step(
    model: Model, pool: KVPool, batch: RaggedBatch, shape: Shape, kernels: Kernels
) -> tuple[torch.Tensor, Counter]:
    """The batch's logits by `kernels`, padded to `shape`, and how often each kernel and a product was called."""
    counts: Counter = Counter()

    def counting(name, kernel):
        def call(*arguments, **settings):
            counts[name] += 1
            return kernel(*arguments, **settings)

        return call

    counted = Kernels(*(counting(*each) for each in zip(Kernels._fields, kernels, strict=True)))
    inputs = input_views(pack_inputs(batch, shape, PAGES), shape, PAGES)
    with (
        patch.object(Linear, "__call__", autospec=True, side_effect=Linear.__call__) as product,
        np.errstate(all="ignore"),  # rows of padding begin with whatever memory holds, and nothing reads them
    ):
        x = hidden_states(model, pool, inputs, counted)
    counts["products"] = product.call_count
    return model.lm_head(x[batch.logit_rows]), counts
