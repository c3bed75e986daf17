"""Small real objects for tests: random models of each family, a byte tokenizer with a ChatML template, engines."""

from dataclasses import replace
from functools import cache

import torch
from hypothesis import strategies as st
from templates import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from minstate import CostTable, Engine, Sampling, Speculation
from minstate.lab.engines.small_engine import poison
from minstate.lab.engines.template_styles import CHATML
from minstate.lab.engines.template_styles import CHATML_TOKENS as SPECIAL
from minstate.model import Model
from minstate.model_config import ModelConfig

VOCABULARY = len(SPECIAL) + 256
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, untied, with biases": {
        "model_type": "llama", "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 16,
    },
    "llama 3 rope": {
        "model_type": "llama", "head_dim": 32,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 1},
    "qwen3, windows in the upper layers": {
        "model_type": "qwen3", "head_dim": 8, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
    },
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
    "mistral, with a window": {"model_type": "mistral", "sliding_window": 11},
    "linear rope": {
        "model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    },
    "yarn rope": {
        "model_type": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "smollm3": {"model_type": "smollm3", "pad_token_id": 0, "no_rope_layers": [1, 0], "tie_word_embeddings": True},
    "smollm3, with a window": {
        "model_type": "smollm3", "pad_token_id": 0, "no_rope_layer_interval": 2,
        "use_sliding_window": True, "sliding_window": 5,
    },
    "olmo2": {"model_type": "olmo2", "pad_token_id": 0, "head_dim": 8},
    "olmo3": {
        "model_type": "olmo3", "pad_token_id": 0, "num_hidden_layers": 4, "sliding_window": 6,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32,
                "attention_factor": 1.2, "beta_fast": 4.0, "beta_slow": 1.0,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    },
    "granite": {
        "model_type": "granite", "embedding_multiplier": 12.0, "attention_multiplier": 0.3,
        "residual_multiplier": 0.22, "logits_scaling": 8.0, "attention_bias": True, "mlp_bias": True,
    },
    "phi3": {
        "model_type": "phi3", "sliding_window": None, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        "hidden_size": 64,
    },
    "phi3, with a window and longrope": {
        "model_type": "phi3", "sliding_window": 20, "pad_token_id": 0, "original_max_position_embeddings": 9,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3, 1.6],
            "long_factor": [1.0, 1.5, 4.0, 20.0],
        },
    },
    "phi3, within its first context": {
        "model_type": "phi3", "sliding_window": None, "pad_token_id": 0, "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3, 1.6],
            "long_factor": [1.0, 1.5, 4.0, 20.0],
        },
    },
    "gemma3_text": {
        "model_type": "gemma3_text", "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 9,
        "query_pre_attn_scalar": 20, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}  # fmt: skip


LOOK = {
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string", "maxLength": 4}, "deep": {"type": "boolean"}},
        "required": ["path"],
        "additionalProperties": False,
    },
}
IDS = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=20)
SAMPLINGS = st.sampled_from(
    [
        Sampling(ignore_eos=True),
        Sampling(temperature=1.0, seed=3, ignore_eos=True),
        Sampling(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01, seed=2**40, ignore_eos=True),
        Sampling(repetition_penalty=0.7, frequency_penalty=0.4, logit_bias={9: 1.5, 70: -100}, ignore_eos=True),
        Sampling(0.8, repetition_penalty=1.3, presence_penalty=0.9, frequency_penalty=-0.3, ignore_eos=True),
    ]
)

FLAT = CostTable((1, 64), (0, 10000), ((1.0, 1.01), (1.0, 1.01)))  # a draft costs next to nothing: all are tried
STEEP = CostTable((1, 64), (0, 10000), ((1.0, 64.0), (1.0, 64.0)))  # a draft of n tokens costs as much as n passes


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, after the special ones."""
    one = byte_tokenizer(CHATML, SPECIAL)
    one.eos_token = "<|im_end|>"
    return one


@cache
def hf_model(family: str, dtype: torch.dtype = torch.float64):
    """A random model of transformers: our oracle, and the source of our weights."""
    torch.manual_seed(0)
    shape = SHAPE | {"initializer_range": 0.3} | FAMILIES[family]
    config = AutoConfig.for_model(**shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # initialised to ones and zeros, which would hide mistakes
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.to(dtype)


@cache
def model(family: str = "llama", dtype: torch.dtype = torch.float64, positions: int = 256) -> Model:
    hf = hf_model(family, dtype)
    config = replace(ModelConfig.from_hf(hf.config.to_dict()), max_positions=positions)
    return Model(config, {k: v.detach() for k, v in hf.state_dict().items()})


def engine(
    cls: type[Engine] = Engine,
    *,
    family: str = "llama",
    page_size: int = 4,
    num_pages: int = 64,
    positions: int = 256,
    **settings,
):
    """An engine whose unwritten and freed pages hold NaN: whoever reads one says nonsense."""
    network = model(family, positions=positions)
    e = cls(network, tokenizer(), eos_ids=[2], page_size=page_size, num_pages=num_pages, **settings)
    poison(e)
    return e


def drafting(cls: type[Engine] = Engine, *, costs: CostTable = FLAT, **settings):
    """The same with speculation; takes the settings of `Speculation` too."""
    own = {name: settings.pop(name) for name in ("max_draft", "max_sequences", "sources") if name in settings}
    return engine(cls, speculation=Speculation(costs, **own), **settings)
