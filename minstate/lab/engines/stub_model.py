"""A model that computes nothing: enough to replay turns and count their work, without loading any weights."""

import torch

from minstate.engine import Engine
from minstate.model_config import ModelConfig
from minstate.weights import find_model, read_config, read_tokenizer


class StubModel:
    """Takes the place of a `Model`. Its logits mean nothing, so turns must replay their output."""

    kernels = "torch"  # `forward` is called
    fingerprint = origin = "stub"

    def __init__(self, config: ModelConfig):
        self.config, self.dtype, self.device = config, torch.float32, torch.device("cpu")

    def forward(self, batch, _attend) -> torch.Tensor:
        """Logits `[R, vocab]`, all zero."""
        return torch.zeros(len(batch.logit_rows), self.config.vocab_size)


def stub_engine(kind: type[Engine] = Engine, **settings) -> Engine:
    """An engine with the default model's tokenizer and shape, but without its weights."""
    folder = find_model()
    return kind(StubModel(ModelConfig.from_hf(read_config(folder))), read_tokenizer(folder), **settings)
