"""An engine to try things with: a small random model and a byte tokenizer, one millisecond per step.

Its output makes no sense, but it is as reproducible as any other model's. The model computes in float64, so rounding
does not decide whether two outputs are equal.
"""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minstate.engine import Engine
from minstate.lab.engines.template_styles import CHATML, CHATML_TOKENS
from minstate.model import Model
from minstate.model_config import ModelConfig

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": len(CHATML_TOKENS) + 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
)


def byte_tokenizer(template: str | None = CHATML, special: list[str] = CHATML_TOKENS) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens first, then one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template)


@cache
def small_model(seed: int = 0) -> Model:
    """A model of `CONFIG`'s shape whose float64 weights are drawn from the seed."""
    draw = torch.Generator().manual_seed(seed)
    shapes = CONFIG.tensor_shapes().items()
    return Model(CONFIG, {name: 0.3 * torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shapes})


def small_engine(kind: type[Engine] = Engine, *, seed: int = 0, **settings) -> Engine:
    """An engine on `small_model`; pages of 4 tokens unless `settings` say otherwise."""
    settings = {"page_size": 4, "num_pages": 256, "eos_ids": [CHATML_TOKENS.index("<|im_end|>")], **settings}
    return kind(small_model(seed), byte_tokenizer(), **settings)


def poison(engine: Engine) -> None:
    """Fill every free page with NaN, now and whenever one is freed: a stale read then shows in the output."""
    allocator, release = engine.pool.allocator, engine.pool.allocator.release
    pages = engine.pool.kv.unflatten(3, (-1, engine.pool.page_size))
    nan = torch.nan if pages.is_floating_point() else -1  # a scale whose bytes are −1 is NaN
    pages[:, :, :, [page for page, owners in enumerate(allocator.owners) if not owners]] = nan

    def release_and_poison(released) -> None:
        released = list(released)
        release(released)
        pages[:, :, :, [page for page in released if not allocator.owners[page]]] = nan

    allocator.release = release_and_poison
