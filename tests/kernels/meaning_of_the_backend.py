"""Models compute the same logits and K/V on the Triton backend as on the torch backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import DEVICE
from tiny import FAMILIES, VOCABULARY, model

from minstate.attention import TorchAttention
from minstate.lab.engines.triton_attention import TritonAttention
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence

KINDS = st.lists(
    st.tuples(
        st.integers(0, 40),  # tokens that have K/V
        st.integers(1, 20),  # tokens to forward: a prefill chunk, or a decode
        st.sampled_from([0, 0, 3, 7]),  # drafted tokens
    ),
    min_size=1,
    max_size=4,
)


# Families whose queries read all keys, at the usual scale.
PLAIN = [
    name for name in FAMILIES if not any(model(name).config.windows) and model(name).config.attention_scale is None
]


@pytest.mark.skipif(DEVICE == "cuda", reason="models are on the CPU")
@pytest.mark.parametrize("family", PLAIN)
@settings(max_examples=3)
@given(kinds=KINDS, page_size=st.sampled_from([3, 8, 16]), seed=st.integers(0, 2**32))
def test_logits_and_pages_equal_those_of_the_torch_backend(family, kinds, page_size, seed):
    kinds = [(0, 20, 0), (33, 1, 0), (15, 1, 7), *kinds]  # a prefill chunk, a decode, a verification, and others
    network, generator = model(family, torch.float32), torch.Generator().manual_seed(seed)
    config = network.config
    pool, other = (
        KVPool(
            num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            num_pages=300, page_size=page_size,
        )
        for _ in range(2)
    )  # fmt: skip
    pool.kv.fill_(torch.nan)
    ids = iter(torch.randint(3, VOCABULARY, (1000,), generator=generator).tolist())
    sequences = [Sequence(pool) for _ in kinds]
    for sequence, (history, _, _) in zip(sequences, kinds, strict=True):
        sequence.log = [next(ids) for _ in range(history)]
    batch = RaggedBatch.build([sequence.chunk(len(sequence.log)) for sequence in sequences if sequence.log])
    network.forward(batch, TorchAttention(pool, batch))
    for sequence in sequences:
        sequence.table.commit()
    for sequence, (_, count, drafted) in zip(sequences, kinds, strict=True):
        sequence.log += [next(ids) for _ in range(count if drafted else count + 1)]  # a draft follows the log's end
    batch = RaggedBatch.build(
        [
            sequence.chunk(count, [next(ids) for _ in range(drafted)])
            for sequence, (_, count, drafted) in zip(sequences, kinds, strict=True)
        ]
    )
    other.kv.copy_(pool.kv)
    expected = network.forward(batch, TorchAttention(pool, batch))
    logits = network.forward(batch, TritonAttention(other, batch))
    assert len(logits) == sum(1 + drafted for _, _, drafted in kinds if drafted)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.kv, pool.kv, atol=1e-5, rtol=1e-5, equal_nan=True)
