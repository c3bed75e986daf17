"""The kernels in C++ agree with float64 arithmetic, and give a token the same bits whatever is computed beside it."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, VOCABULARY, hf_model

from minstate import Engine, Sampling, UnsupportedModel
from minstate.kernel_layers import missing_in_kernels, odd_sizes
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.model_runner import ModelRunner
from minstate.ragged_batch import RaggedBatch
from minstate.rotary import Rope, rotary_table, rotate
from minstate.sequence import Sequence

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
from pools import ERROR, ragged

try:
    from minstate.kernels.cpu.functions import (
        LANES,
        append_kv,
        linear,
        pack,
        paged_attention,
        rms_norm,
        silu_mul,
        unpack,
    )
except UnsupportedModel as error:
    pytest.skip(str(error), allow_module_level=True)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SEQUENCES = st.lists(
    st.tuples(st.sampled_from([0, 1, 8, 15, 16, 33, 255, 256, 300]), st.sampled_from([0, 1, 1, 2, 9, 40])),
    min_size=1,
    max_size=4,
).filter(lambda sequences: any(queries for _, queries in sequences))


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got, expected, times=1.0):
    error = ERROR[got.dtype] * times
    torch.testing.assert_close(got.double(), expected, atol=error, rtol=error)


def attend(case):
    inputs = (case.q, case.kv, case.query_start, case.context_len, case.page_table)
    return paged_attention(*inputs, page_size=case.page_size)


@settings(deadline=None, max_examples=60)
@given(
    sequences=SEQUENCES,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kv_dtype=st.sampled_from([None, torch.int8]),
    group=st.sampled_from([1, 3, 7, 40]),
    kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([32, 64, 80, 112, 256]),
    page_size=st.sampled_from([1, 3, 8, 16, 300]),
    spread=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 2**32),
)
def test_paged_attention_is_attention(sequences, spread, **shape):
    case = ragged(sequences, spread=spread, device="cpu", **shape)
    close(attend(case), case.expected, times=spread)


@DTYPES
def test_long_contexts_with_many_and_few_tiles(dtype):
    for sequences in ([(3000, 1)], [(1500, 130)], [(700, 1)] * 9):
        case = ragged(sequences, group=3, kv_heads=3, dtype=dtype, device="cpu")
        close(attend(case), case.expected)


@DTYPES
def test_attention_of_a_token_has_the_same_bits_in_every_batch(dtype):
    """As a prefill of all tokens, in parts, one by one, and beside others."""
    case = ragged([(0, 700), (300, 1)], group=3, kv_heads=3, dtype=dtype, device="cpu")
    whole = attend(case)[:700]
    for first, last in [(0, 1), (255, 256), (256, 290), (511, 513), (690, 700), (100, 400)]:
        out = paged_attention(
            case.q[first:last], case.kv, torch.tensor([0, last - first], dtype=torch.int32),
            torch.tensor([last], dtype=torch.int32), case.page_table[:1], page_size=case.page_size,
        )  # fmt: skip
        assert torch.equal(out, whole[first:last])


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_key_that_is_not_finite_is_seen(odd):
    case = ragged([(30, 2)], group=2, device="cpu")
    case.kv[0, :, case.page_table[0, 0] * case.page_size] = odd
    assert not attend(case).isfinite().all()


@DTYPES
@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(0, 40),
    inputs=st.sampled_from([2, 8, 62, 576]),
    outputs=st.sampled_from([1, 7, 16, 31, 32, 33, 100, 300]),
    biased=st.booleans(),
)
def test_linear_is_a_product(dtype, rows, inputs, outputs, biased):
    x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1) / inputs**0.5
    panels = pack(weight)
    bias = random(panels.shape[0] * panels.shape[2], dtype=torch.float32, seed=2) if biased else None
    assert torch.equal(unpack(panels, outputs), weight)
    own = bias[:outputs].double() if biased else None
    close(linear(x, panels, bias, outputs), F.linear(x.double(), weight.double(), own), times=2)


@DTYPES
def test_a_row_of_a_product_has_the_same_bits_in_every_batch(dtype):
    x, panels = random(40, 576, dtype=dtype), pack(random(100, 576, dtype=dtype, seed=1))
    whole = linear(x, panels, None, 100)
    for first, last in [(0, 1), (1, 3), (3, 6), (6, 10), (10, 15), (15, 21), (21, 28), (7, 40)]:
        assert torch.equal(linear(x[first:last].contiguous(), panels, None, 100), whole[first:last])


@DTYPES
@pytest.mark.parametrize("tokens, size", [(1, 16), (3, 576), (40, 2048)])
def test_the_norm_with_and_without_a_residual(dtype, tokens, size):
    x, weight = random(tokens, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    close(rms_norm(x, weight, 1e-5), F.rms_norm(x.double(), (size,), weight.double(), 1e-5), times=2)
    residual = random(tokens, size, dtype=dtype, seed=2)
    total = residual + x
    close(rms_norm(x, weight, 1e-5, residual), F.rms_norm(total.double(), (size,), weight.double(), 1e-5), times=2)
    assert torch.equal(residual, total)


@DTYPES
def test_the_norm_of_heads_that_have_their_own_weights(dtype):
    x, weight = random(7, 5, 64, dtype=dtype)[:, :3], random(3, 64, dtype=dtype, seed=1)
    close(rms_norm(x, weight, 1e-5), F.rms_norm(x.double(), (64,), None, 1e-5) * weight.double(), times=2)


@DTYPES
@pytest.mark.parametrize("spread", [1, 30, 300])
def test_the_gate_of_the_mlp(dtype, spread):
    gate_up = random(20, 2 * 1536, dtype=dtype)
    gate_up[:, :1536] *= spread
    gate, up = gate_up.double().chunk(2, dim=-1)
    close(silu_mul(gate_up), F.silu(gate) * up, times=spread)
    assert torch.equal(silu_mul(gate_up[3:4]), silu_mul(gate_up)[3:4])


@DTYPES
@pytest.mark.parametrize("heads, kv_heads, head_dim", [(9, 3, 64), (1, 1, 80), (4, 2, 16)])
def test_append_kv_rotates_q_and_k_and_stores_k_and_v(dtype, heads, kv_heads, head_dim):
    cos, sin = (table.to(dtype) for table in rotary_table(Rope(head_dim), 300))
    draw = torch.Generator().manual_seed(0)
    positions, slots = torch.randint(0, 300, (12,), generator=draw), torch.randperm(40, generator=draw)[:12]
    slots[-1] = -1  # padding
    qkv, kv = random(12, heads + 2 * kv_heads, head_dim, dtype=dtype), random(2, kv_heads, 40, head_dim, dtype=dtype)
    after = kv.double()
    turned = rotate(qkv.double(), cos[positions, None].double(), sin[positions, None].double())
    after[0][:, slots[:-1]] = turned[:-1, heads : heads + kv_heads].transpose(0, 1)
    after[1][:, slots[:-1]] = qkv[:-1, heads + kv_heads :].double().transpose(0, 1)
    close(append_kv(qkv, cos, sin, positions.int(), slots.int(), kv), turned[:, :heads], times=2)
    close(kv, after, times=2)


def fits(family):
    config = ModelConfig.from_hf(hf_model(family).config.to_dict())
    return not missing_in_kernels(config) and not odd_sizes(config)


@pytest.mark.parametrize("family", [family for family in FAMILIES if fits(family)])
def test_logits_equal_those_of_the_reference(family):
    hf = hf_model(family)
    config = ModelConfig.from_hf(hf.config.to_dict())
    weights = {name: tensor.detach().float() for name, tensor in hf.state_dict().items()}
    reference, ours = Model(config, weights), Model(config, weights, kernels="cpu")
    ids, runners = [3 + 7 * i % (VOCABULARY - 3) for i in range(90)], []
    for model in (reference, ours):
        runner = ModelRunner(model, num_pages=60, page_size=8)
        runner.pool.kv.fill_(torch.nan)
        sequence, logits = Sequence(runner.pool), []
        for count in (40, 1, 9, 0, 40):
            sequence.log = ids[: sequence.kv_len + count]
            if count:
                batch = RaggedBatch.build([sequence.chunk(count)])
                logits.append(runner.logits(batch))
                sequence.table.commit()
        runners.append(torch.cat(logits))
    torch.testing.assert_close(*runners, atol=2e-4, rtol=2e-4)


def test_sizes_that_are_no_whole_vectors_are_left_to_torch():
    config = ModelConfig.from_hf(hf_model("llama").config.to_dict())
    assert bool(odd_sizes(config)) == (config.head_dim < LANES)
    with pytest.raises(UnsupportedModel, match="float64"):
        Engine.from_pretrained(dtype="float64", kernels="cpu")
    assert Engine.from_pretrained(dtype="float64").model.kernels == "torch"


def test_torch_and_the_kernels_choose_the_same_tokens_in_float32():
    said = []
    for kernels in ("cpu", "torch"):
        engine = Engine.from_pretrained(kernels=kernels, num_pages=200)
        assert engine.model.kernels == kernels
        with engine.open([{"role": "system", "content": "You help with code. " * 30}]) as session:
            turns = [
                session.send(text, max_new_tokens=40) for text in ("List three sorts.", "Now the first in Python.")
            ]
            said.append([turn.token_ids for turn in turns])
    assert said[0] == said[1]


def logits_of(engine, ids, chunks, beside=()):
    """The logits of every token, bit for bit, forwarded in chunks; other sequences take part in each batch."""
    one, rows = Sequence(engine.pool), []
    others = [Sequence(engine.pool) for _ in beside]
    for count in chunks:
        one.log = ids[: one.kv_len + count]
        for other, length in zip(others, beside, strict=True):
            other.log += ids[:length]
        batch = RaggedBatch.build([one.chunk(count), *(other.chunk(len(other.log) - other.kv_len) for other in others)])
        batch = RaggedBatch(**{**vars(batch), "logit_rows": torch.arange(count)})
        rows.append(engine.core.runner.logits(batch))
        for sequence in (one, *others):
            sequence.table.commit()
    for sequence in (one, *others):
        sequence.table.truncate(0)
    return torch.cat(rows)


@pytest.mark.parametrize("dtype, kv_dtype", [("float32", None), ("bfloat16", None), ("bfloat16", "int8")])
def test_deterministic_logits_are_the_same_bits_cold_warm_batched_and_as_a_draft(dtype, kv_dtype):
    engine = Engine.from_pretrained(dtype=dtype, kv_dtype=kv_dtype, deterministic=True, num_pages=300)
    ids = engine.tokenizer.encode(Path(__file__).read_text())[:330]
    cold = logits_of(engine, ids, [330])
    assert torch.equal(logits_of(engine, ids, [300, *[1] * 14, 9, 7]), cold), "warm: decoded, verified as drafts"
    assert torch.equal(logits_of(engine, ids, [100, 1, 229], beside=[5, 40]), cold), "in a batch with others"


def test_deterministic_turns_are_equal_with_and_without_memory_and_drafts():
    text = "Repeat: alpha beta gamma delta. " * 8
    outputs = set()
    for settings_ in ({}, {"speculation": False}, {"prefix_cache": False, "token_budget": 16}):
        engine = Engine.from_pretrained(dtype="bfloat16", deterministic=True, num_pages=300, **settings_)
        with engine.open() as session:
            sampling = Sampling(temperature=0.7, seed=5, ignore_eos=True)
            outputs.add(tuple(session.send(text, max_new_tokens=40, sampling=sampling, logprobs=True).logprobs))
    assert len(outputs) == 1
