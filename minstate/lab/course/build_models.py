"""The given transformer, with the real weights or with small random ones, and a witness of what goes through it."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from minstate.lab.engines.small_engine import CONFIG
from minstate.lab.paths import NOTEBOOKS
from minstate.model_config import ModelConfig
from minstate.weights import find_model, read_config, read_eos, read_tensors, read_tokenizer

FOLDER = NOTEBOOKS / "my_engine"  # the given transformer, and the stubs of all steps


def load_file(path: Path, name: str, source: str | None = None) -> ModuleType:
    """Run a Python file as a new module, from its current text or from `source`. Raises what the file raises."""
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    exec(compile(path.read_text() if source is None else source, str(path), "exec"), vars(module))
    return module


@cache
def given() -> ModuleType:
    """The module `notebooks/my_engine/given.py`."""
    module = load_file(FOLDER / "given.py", "given")
    sys.modules.setdefault("given", module)
    return module


@cache
def real_weights() -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Shape and float32 tensors of the default model. Raises `ModelNotFound`, which says how to get it."""
    folder = find_model()
    config = ModelConfig.from_hf(read_config(folder))
    return config, read_tensors(folder, torch.float32, config)


@cache
def real_tokenizer():
    """The default model's tokenizer."""
    return read_tokenizer(find_model())


@cache
def stop_tokens() -> frozenset[int]:
    """The tokens that end a reply of the default model."""
    folder = find_model()
    return frozenset(read_eos(folder, real_tokenizer(), real_weights()[0].vocab_size))


def real_model():
    """The given transformer with the weights of the default model, with its counters at 0."""
    return given().Transformer(*real_weights())


def small_model(seed: int = 0):
    """The given transformer with the float64 weights of `small_engine.small_model(seed)`."""
    draw = torch.Generator().manual_seed(seed)
    shapes = CONFIG.tensor_shapes().items()
    return given().Transformer(
        CONFIG, {name: 0.3 * torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shapes}
    )


class Witness:
    """A model that notes what goes through it, and otherwise does what the model that it wraps does.

    passes  for each forward pass: the token ids that were embedded, and the position of each, as layer 0 was told them
    most    passes; one more raises AssertionError, so that a turn without an end does not run forever
    """

    def __init__(self, model, most: int = 400):
        self._model, self._most, self.passes = model, most, []

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def embed(self, ids):
        """As the model's, and noted."""
        ids = [int(token) for token in ids]
        if not ids:
            raise AssertionError(
                "a forward pass over no token: at least the last token of the log must be left to forward, since its "
                "row says what comes next. So what a session takes from others may cover log[:-1] at most"
            )
        if len(self.passes) >= self._most:
            raise AssertionError(
                f"{self._most} forward passes, and no end: what makes a reply complete, in `done`, and "
                "is a complete session left out of the next pass?"
            )
        self.passes.append((ids, None))
        return self._model.embed(ids)

    def qkv(self, layer, x, positions):
        """As the model's; the positions are noted."""
        if layer == 0 and self.passes:
            self.passes[-1] = (self.passes[-1][0], [int(position) for position in positions])
        return self._model.qkv(layer, x, positions)


def naive_reply(model, ids: list[int], count: int, stop=frozenset()) -> list[int]:
    """What the given transformer generates behind `ids`, forwarding everything again for each token."""
    log = list(ids)
    while len(log) < len(ids) + count and not (len(log) > len(ids) and log[-1] in stop):
        log.append(int(model.logits(given().forward(model, log)[-1:]).argmax()))
    return log[len(ids) :]
