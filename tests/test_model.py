"""The model computes what transformers computes, however its input is cut into batches."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, VOCABULARY, hf_model, model

from minstate import DamagedWeights, UnsupportedModel, attention
from minstate.attention import Partial, TorchAttention, merge
from minstate.linear import Linear
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence


@pytest.fixture(autouse=True)
def oracle_in_full_precision(monkeypatch):
    """transformers rounds its norms to float32 whatever the dtype, but a float64 oracle must not."""

    def norm(self, x):
        eps, offset = (self.eps, 1) if "Gemma" in type(self).__name__ else (self.variance_epsilon, 0)
        return (offset + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    for name in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "granite", "phi3", "gemma3"):
        module = import_module(f"transformers.models.{name}.modeling_{name}")
        (cls,) = (value for key, value in vars(module).items() if key.lower() == f"{name}rmsnorm")
        monkeypatch.setattr(cls, "forward", norm)


def pool_for(model: Model, num_pages: int = 64, page_size: int = 4) -> KVPool:
    config = model.config
    return KVPool(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        num_pages=num_pages,
        page_size=page_size,
        dtype=model.dtype,
    )


def logits_of_chunks(model: Model, pool: KVPool, ids: list[int], cuts: list[int]) -> torch.Tensor:
    """Logits of every token of `ids`, forwarded in chunks that end at `cuts`."""
    sequence, rows = Sequence(pool), []
    for end in [*cuts, len(ids)]:
        sequence.log = ids[:end]
        batch = RaggedBatch.build([sequence.chunk(end - sequence.kv_len)])
        batch = RaggedBatch(**{**vars(batch), "logit_rows": torch.arange(len(batch.token_ids))})
        rows.append(
            model.forward(batch, TorchAttention(pool, batch, model.config.windows, model.config.attention_scale))
        )
        sequence.table.commit()
    sequence.table.truncate(0)
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_logits_equal_transformers_for_any_chunking(family, data):
    shortest = 10 if "longrope" in family else 1  # transformers rotates shorter prompts by other factors
    ids = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=shortest, max_size=100))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(ids) - 1)), max_size=8)) - {len(ids)})
    ours = logits_of_chunks(model(family), pool_for(model(family)), ids, cuts)
    with torch.no_grad():
        theirs = hf_model(family)(torch.tensor([ids])).logits[0]
    assert (ours - theirs).abs().max() < 1e-9


def test_sequences_of_a_batch_do_not_see_each_other():
    m, generator = model("qwen3"), torch.Generator().manual_seed(1)
    pool = pool_for(m)
    logs = [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in (1, 5, 17, 30)]
    alone = torch.stack([logits_of_chunks(m, pool, log, [])[-1] for log in logs])
    sequences = [Sequence(pool) for _ in logs]
    for sequence, log in zip(sequences, logs, strict=True):
        sequence.log = log
    first = RaggedBatch.build([s.chunk(max(1, len(s.log) // 2)) for s in sequences])  # prefill and decode, mixed
    m.forward(first, TorchAttention(pool, first))
    for s in sequences:
        s.table.commit()
    rest = RaggedBatch.build([s.chunk(len(s.log) - s.kv_len) for s in sequences[1:]])
    together = m.forward(rest, TorchAttention(pool, rest))
    assert (together - alone[1:]).abs().max() < 1e-12


@pytest.mark.parametrize("fragments", ["one run", "few runs", "many runs"])
@pytest.mark.parametrize("queries", [1, 2, 3, 40])
@pytest.mark.parametrize("short_run", [0, 37, 1000])
def test_the_layout_of_pages_changes_nothing(fragments, queries, short_run, monkeypatch):
    """The logits are the same, whether runs of pages are read in place, in halves, or gathered first."""
    monkeypatch.setattr(attention, "SHORT_RUN", short_run)
    monkeypatch.setattr(attention, "LONG_RUN", 30)
    m = model("llama")
    ids = torch.randint(0, VOCABULARY, (160,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = logits_of_chunks(m, pool_for(m), ids, [len(ids) - queries])[-queries:]
    pool = pool_for(m, num_pages=128)
    pool.kv.fill_(float("nan"))  # so a slot that is read, but was never written, shows in the logits
    blocked = {"one run": 0, "few runs": 10, "many runs": 1}[fragments]
    order = list(range(128))
    if blocked:  # another sequence holds every other group of `blocked` pages
        pool.allocator.allocate(128)
        pool.allocator.release([page for page in order if page // blocked % 2])
    ours = logits_of_chunks(m, pool, ids, [len(ids) - queries])[-queries:]
    assert (ours - expected).abs().max() < 1e-12


def test_bfloat16_is_as_close_to_the_exact_logits_as_transformers_bfloat16():
    ids = list(range(3, 63))
    exact = logits_of_chunks(model(), pool_for(model()), ids, [])
    m = model("llama", torch.bfloat16)
    ours = logits_of_chunks(m, pool_for(m), ids, [20, 40])
    with torch.no_grad():
        theirs = hf_model("llama", torch.bfloat16)(torch.tensor([ids])).logits[0]
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


def test_flops_of_a_prompt_do_not_depend_on_how_it_is_cut():
    config = model().config
    whole = config.flops(tokens=50, context=50, logit_rows=1)
    cut = config.flops(30, 30, 0) + config.flops(19, 49, 0) + config.flops(1, 50, 1)
    assert whole == cut


def test_the_costs_of_smollm2_are_those_computed_by_hand():
    smollm2 = ModelConfig(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5, True, ropes=(), windows=(None,) * 30)
    assert smollm2.kv_bytes_per_token(torch.float32) == 46_080
    parameters = 30 * (576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536) + 49152 * 576
    assert smollm2.bytes_read(0, torch.bfloat16) == 2 * parameters
    assert smollm2.bytes_read(100, torch.float32) == 4 * parameters + 100 * 46_080
    assert smollm2.flops(1, 1, 1) == 2 * parameters + 4 * 30 * 576


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rope_scaling": {"type": "dynamic"}}, "dynamic"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"quantization_config": {}}, "quantised"),
    ],
)
def test_a_feature_that_is_not_implemented_is_named(change, named):
    config = hf_model("llama").config.to_dict() | {"rope_parameters": None} | change
    with pytest.raises(UnsupportedModel, match=named):
        ModelConfig.from_hf(config)


def test_weights_that_do_not_fit_the_configuration_are_refused():
    weights = {name: tensor.detach() for name, tensor in hf_model("llama").state_dict().items()}
    missing = weights.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(DamagedWeights, match=r"lack model\.layers\.1\.mlp\.up_proj"):
        Model(model().config, weights)
    with pytest.raises(DamagedWeights, match="up_proj"):
        Model(model().config, weights | {"model.layers.1.mlp.up_proj.weight": missing[:, :5]})


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0, 40), st.integers(0, 2**32))
def test_parts_of_the_keys_merge_into_attention_over_all_of_them(lengths, spread, seed):
    """The log-sum-exp weighs each part correctly, wherever the keys are cut and however far apart the scores are."""
    generator = torch.Generator().manual_seed(seed)
    rows = spread * torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 2, sum(lengths), 8, dtype=torch.float64, generator=generator)
    parts = []
    for some_k, some_v in zip(k.split(lengths, dim=1), v.split(lengths, dim=1), strict=True):
        scores = rows @ some_k.mT / 8**0.5
        parts.append(Partial((scores.softmax(-1) @ some_v)[:, None], scores.logsumexp(-1)[:, None]))
    whole = (rows @ k.mT / 8**0.5).softmax(-1) @ v
    assert (merge(parts) - whole).abs().max() < 1e-12


@pytest.mark.parametrize("rows", [1, 2, 9, 40])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_stacked_and_packed_weights_compute_the_same_product(dtype, error, bias, rows):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(out, 48, generator=generator).to(dtype) for out in (32, 7)]
    biases = [torch.randn(len(weight), generator=generator).to(dtype) if bias else None for weight in weights]
    x = torch.randn(rows, 48, generator=generator).to(dtype)
    ours = Linear(weights, biases)(x)
    exact = torch.cat(
        [x.double() @ w.double().T + (0 if b is None else b.double()) for w, b in zip(weights, biases, strict=True)], 1
    )
    assert ours.dtype == dtype and ours.shape == (rows, 39)
    assert (ours - exact).norm() < error * exact.norm()
