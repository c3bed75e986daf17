"""Where a model lives on disk, and how its tensors are read.

A model is an ordinary Hugging Face folder: `config.json`, one or more `*.safetensors`, a tokenizer.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast

from minstate.errors import BadValue, DamagedWeights, ModelNotFound, UnsupportedModel
from minstate.model import Model
from minstate.model_config import ModelConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
DEFAULT_MODEL = "SmolLM2-135M-Instruct"

WHERE_TO_GET_ONE = (
    "`python -m minstate.lab.fetch` fetches the default model; or name a local Hugging Face folder or a Hub id, as the "
    "argument of `Engine.from_pretrained(...)` or in the environment variable MINSTATE_MODEL"
)


def clone_folder() -> Path | None:
    """The clone of the repository that contains this package, or None if the package is an installed copy."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir() else None


def weights_folder() -> Path:
    """The folder for fetched models: `data/weights` in a clone, else a folder in the user's cache."""
    clone = clone_folder()
    return clone / "data" / "weights" if clone else Path.home() / ".cache" / "minstate" / "weights"


def find_model(name: str | Path | None = None) -> Path:
    """The folder of a model by the name of a folder or a Hub id. None: `MINSTATE_MODEL`, else the default model.

    A model that is on the Hub only is downloaded. Raises `ModelNotFound`, which says how to get a model.
    """
    name = name or os.environ.get("MINSTATE_MODEL") or weights_folder() / DEFAULT_MODEL
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    looks_like_hub_id = isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~" and not folder.exists()
    if not looks_like_hub_id:
        raise ModelNotFound(f"no model in {folder} (a folder with a config.json): {WHERE_TO_GET_ONE}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except Exception as error:  # the Hub's client raises errors of many kinds, some of them of its network library
        raise ModelNotFound(f"no folder {folder}, and the Hub gave no model {name!r}: {WHERE_TO_GET_ONE}.") from error


def read_config(folder: Path) -> dict:
    """The model's `config.json`, with the end-of-sequence ids of `generation_config.json` if it has any.

    Raises `DamagedWeights` if a file cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        generation = folder / "generation_config.json"
        eos = json.loads(generation.read_text()).get("eos_token_id") if generation.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedWeights(f"{folder}: its configuration cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DamagedWeights(f"{folder / 'config.json'} is not a JSON object")
    return config | ({"eos_token_id": eos} if eos is not None else {})


def read_tensors(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of the folder's safetensors files by name, cast to `dtype`. Raises `DamagedWeights`."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DamagedWeights(f"{folder} has a config.json but no *.safetensors: {WHERE_TO_GET_ONE}.")
    tensors: dict[str, torch.Tensor] = {}
    try:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name).to(dtype) for name in opened.keys()})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedWeights(f"{folder}: the weights cannot be read ({error}); fetch or copy them again") from error
    for name, tensor in tensors.items():
        if not tensor.sum(dtype=torch.float32).isfinite():  # a single NaN or infinity makes the sum one
            raise DamagedWeights(f"{folder}: {name} holds values that are not finite; fetch or copy the weights again")
    return tensors


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer, with its chat template.

    Raises `UnsupportedModel` if there is no `tokenizer.json`, and `DamagedWeights` if it cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UnsupportedModel(f"{folder} has no tokenizer.json, as the `tokenizers` library writes it")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exceptions, among others
        raise DamagedWeights(f"{folder}: its tokenizer cannot be loaded ({error})") from error


def load_model(
    name: str | Path | None, dtype: str | torch.dtype | None, device: str
) -> tuple[Model, PreTrainedTokenizerFast, list[int]]:
    """A model, its tokenizer, and its end-of-sequence ids: the configuration's, or else the tokenizer's.

    name   as `find_model` takes it
    dtype  "float32", "bfloat16" or "float64", or torch's own; None or "auto": float32 on a CPU, bfloat16 on a GPU

    Raises `ModelNotFound`, `UnsupportedModel`, `DamagedWeights`, `BadValue`.
    """
    if device not in ("cpu", "cuda"):
        raise BadValue(f"device must be 'cpu' or 'cuda', not {device!r}")
    dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if device == "cuda" and dtype == "float64":
        raise BadValue("device='cuda' computes in float32 or bfloat16, not in float64: its kernels sum in float32")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadValue("device='cuda' needs an NVIDIA GPU, and a torch built for it; torch finds no GPU here")
    if dtype is None or dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadValue(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    folder = find_model(name)
    raw = read_config(folder)
    tensors = {name: tensor.to(device) for name, tensor in read_tensors(folder, DTYPES[dtype]).items()}
    model = Model(ModelConfig.from_hf(raw), tensors)
    tokenizer = read_tokenizer(folder)
    eos = raw.get("eos_token_id")
    eos = tokenizer.eos_token_id if eos is None else eos
    return model, tokenizer, eos if isinstance(eos, list) else [eos] if eos is not None else []
