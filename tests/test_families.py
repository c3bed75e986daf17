"""Models of every family through the engine: sharing, forks, eviction and drafts, whatever their layers have."""

import re
from pathlib import Path

import pytest
import torch
from test_model import logits_of_chunks, oracle_in_full_precision, pool_for  # noqa: F401
from tiny import FAMILIES, VOCABULARY, drafting, engine, hf_model, model

from minstate import DamagedWeights, Sampling, UnsupportedModel
from minstate.attention import TorchAttention, plain_attention
from minstate.lab.engines.baselines import NaiveEngine
from minstate.model_config import ModelConfig
from minstate.model_families import FAMILIES as FAMILY_TABLE
from minstate.ragged_batch import RaggedBatch
from minstate.rotary import rotary_table
from minstate.sequence import Sequence

GREEDY = Sampling(ignore_eos=True)
WINDOWED = [family for family in FAMILIES if any(model(family).config.windows)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_with_forks_rollbacks_drafts_and_lost_pages_is_the_naive_one(family):
    e = drafting(family=family, num_pages=24, token_budget=16)
    parent = e.open()
    parent.send(token_ids=[3, 4, 5, 6] * 6, max_new_tokens=5, sampling=GREEDY)
    mark = parent.mark()
    parent.send(token_ids=[7, 8], max_new_tokens=6, sampling=GREEDY)
    parent.rollback(mark)
    sessions = [parent, parent.fork(), e.open()]
    for turn in range(3):
        for number, session in enumerate(sessions):
            new = [3, 4, 5, 6] * 6 if not session.token_ids else [9 + number, 10 + turn]
            log = [*session.token_ids, *new]
            got = session.send(token_ids=new, max_new_tokens=7, sampling=GREEDY)
            naive = engine(NaiveEngine, family=family).open().send(token_ids=log, max_new_tokens=7, sampling=GREEDY)
            assert got.token_ids == naive.token_ids
            e.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_by_its_definition_gives_the_same_logits(family, monkeypatch):
    ids = torch.randint(0, VOCABULARY, (70,), generator=torch.Generator().manual_seed(4)).tolist()
    expected = logits_of_chunks(model(family), pool_for(model(family)), ids, [20, 21, 50])
    monkeypatch.setattr("minstate.attention.flash_attention", plain_attention)
    assert (logits_of_chunks(model(family), pool_for(model(family)), ids, [20, 21, 50]) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("family", ["olmo2", "granite", "phi3", "gemma3_text"])
def test_bfloat16_is_about_as_close_to_the_exact_logits_as_transformers_bfloat16(family):
    ids = torch.randint(0, VOCABULARY, (60,), generator=torch.Generator().manual_seed(5)).tolist()
    exact = logits_of_chunks(model(family), pool_for(model(family)), ids, [])
    half = model(family, torch.bfloat16)
    ours = logits_of_chunks(half, pool_for(half), ids, [20, 40])
    with torch.no_grad():
        theirs = hf_model(family, torch.bfloat16)(torch.tensor([ids])).logits[0]
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("queries, context", [(1, 3), (1, 60), (5, 5), (5, 8), (30, 30), (8, 61)])
def test_keys_outside_a_window_are_neither_read_nor_counted(family, queries, context):
    m = model(family)
    config, pool = m.config, pool_for(m)
    keys = [[min(context - queries + i + 1, window or context) for i in range(queries)] for window in config.windows]
    products = sum(map(sum, keys)) * 4 * config.num_heads * config.head_dim
    assert config.flops(queries, context, 0) == 2 * queries * config.num_layers * config.layer_parameters + products
    read = [min(context, (window or context) + queries - 1) for window in config.windows]
    assert (
        config.kv_bytes_read(queries, context, torch.float32) == sum(read) * 8 * config.num_kv_heads * config.head_dim
    )

    ids = [3 + i % 200 for i in range(context)]
    expected = logits_of_chunks(m, pool, ids, [context - queries] if queries < context else [])[-queries:]
    oldest = [max(0, context - queries - window + 1) if window else 0 for window in config.windows]
    pool = pool_for(m)
    sequence = Sequence(pool)
    if queries < context:
        sequence.log = ids[: context - queries]
        first = RaggedBatch.build([sequence.chunk(context - queries)])
        m.forward(first, TorchAttention(pool, first, config.windows, config.attention_scale))
        sequence.table.commit()
    for layer, first in enumerate(oldest):  # whoever reads a key outside the window says nonsense
        pool.kv[layer][:, :, sequence.table.slots[:first]] = torch.nan
    sequence.log = ids
    rest = RaggedBatch.build([sequence.chunk(queries)])
    rest = RaggedBatch(**{**vars(rest), "logit_rows": torch.arange(queries)})
    ours = m.forward(rest, TorchAttention(pool, rest, config.windows, config.attention_scale))
    assert (ours - expected).abs().max() < 1e-9


def test_statistics_of_a_turn_count_what_the_windows_leave():
    config = model("mistral, with a window").config
    e = engine(family="mistral, with a window", token_budget=40)
    stats = e.open().send(token_ids=[7] * 40, max_new_tokens=3, sampling=GREEDY).stats
    passes = [(40, 40, 1), (1, 41, 1), (1, 42, 1)]  # query tokens, context, logit rows
    assert stats.flops == sum(config.flops(*each) for each in passes)
    assert stats.kv_bytes_read == (40 + 11 + 11) * config.kv_bytes_per_token(e.model.dtype)


@pytest.mark.parametrize(
    "family, change, error, named",
    [
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, UnsupportedModel, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, UnsupportedModel, "use_bidirectional_attention"),
        ("mistral, with a window", {"sliding_window": 0}, DamagedWeights, "sliding_window"),
        ("mistral, with a window", {"sliding_window": "7"}, DamagedWeights, "sliding_window"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, DamagedWeights, "layer_types"),
        ("gemma3_text", {"layer_types": ["chunked_attention"] * 3}, UnsupportedModel, "chunked_attention"),
        ("smollm3", {"no_rope_layers": [1]}, DamagedWeights, "no_rope_layers"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, DamagedWeights, "short_factor"),
        ("yarn rope", {"rope_parameters": {"rope_type": "yarn", "factor": -1.0}}, DamagedWeights, "factor"),
        ("granite", {"residual_multiplier": "0.2"}, DamagedWeights, "residual_multiplier"),
        ("granite", {"logits_scaling": 0}, DamagedWeights, "logits_scaling"),
    ],
)
def test_a_setting_of_a_family_that_makes_no_sense_is_named(family, change, error, named):
    with pytest.raises(error, match=named):
        ModelConfig.from_hf(hf_model(family).config.to_dict() | change)


@pytest.mark.parametrize(
    "family, old",
    [
        (
            "gemma3_text",
            {
                "rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
                "rope_scaling": {"type": "linear", "factor": 8.0},
            },
        ),
        (
            "phi3",
            {"rope_parameters": None, "rope_theta": 1e4, "partial_rotary_factor": 0.75, "rope_scaling": None},
        ),
        (
            "phi3, with a window and longrope",
            {
                "rope_parameters": None, "rope_theta": 1e4,
                "rope_scaling": {
                    "type": "su", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.0, 1.5, 4.0, 20.0],
                },
            },
        ),
        ("olmo3", {"layer_types": None}),
        ("smollm3, with a window", {"no_rope_layers": None, "layer_types": None}),
        ("qwen3, windows in the upper layers", {"layer_types": None}),
    ],
)  # fmt: skip
def test_older_forms_of_a_configuration_say_the_same(family, old):
    """What files on the Hub say, beside the form in which today's transformers writes it."""
    config = hf_model(family).config.to_dict()
    assert ModelConfig.from_hf(config | old).windows == ModelConfig.from_hf(config).windows
    for ours, theirs in zip(ModelConfig.from_hf(config | old).ropes, ModelConfig.from_hf(config).ropes, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rotary_table(ours, 50), rotary_table(theirs, 50), strict=True))


def test_the_families_that_load_are_listed():
    page = (Path(__file__).resolve().parents[1] / "docs" / "models.md").read_text()
    assert set(re.findall(r"^\| [^|]+ \| `(\w+)` \|", page, flags=re.MULTILINE)) - {"model_type"} == FAMILY_TABLE.keys()
