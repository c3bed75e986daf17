"""A model that computes nothing: enough where only the bookkeeping of turns is wanted, and their words are given."""

import torch

from minstate.engine import Engine
from minstate.model import ModelConfig
from minstate.weights import find_model, read_config, read_tokenizer


class StubModel:
    """In the place of a `Model`: what it says is nothing in particular, so turns must be replayed."""

    def __init__(self, config: ModelConfig):
        self.config, self.dtype, self.device = config, torch.float32, torch.device("cpu")

    def forward(self, batch, attend) -> torch.Tensor:
        """Logits `[R, vocab]`, all zero."""
        return torch.zeros(len(batch.logit_rows), self.config.vocab_size)


def stub_engine(kind: type[Engine] = Engine, **settings) -> Engine:
    """An engine with the default model's tokenizer and shape, and none of its weights."""
    folder = find_model()
    return kind(StubModel(ModelConfig.from_hf(read_config(folder))), read_tokenizer(folder), **settings)
