"""Where a model lives on disk, and how its tensors are read.

A model is an ordinary Hugging Face folder: `config.json`, one or more `*.safetensors`, a tokenizer.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast

from minstate.config_values import token_ids
from minstate.errors import BadValue, DamagedWeights, ModelNotFound, UnsupportedModel
from minstate.kernel_layers import choose_kernels
from minstate.memory import require_memory
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.model_files import GENERATION, Header, read_headers, read_json, readable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Tensors that a file may hold though the model does not use them: a table of constants, and the head that is tied.
HARMLESS = ("rotary_emb.inv_freq", HEAD)
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


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`. Raises `DamagedWeights` if it cannot be read."""
    return read_json(folder, "config.json")


def read_eos(folder: Path, tokenizer, vocab_size: int) -> set[int]:
    """The ids that end a turn: of `generation_config.json`, `config.json` and the tokenizer together.

    None of them alone is complete. A chat model's `config.json` often names the end of a text and its tokenizer the end
    of a message; a model that generates either has no more to say. (`Template` adds what ends a reply in its text.) The
    union would be wrong where `config.json` kept another family's default, such as 2, which may be a word of this
    tokenizer. So a token that is not an added one counts only if `generation_config.json` names it, or nothing else is
    named. Raises `DamagedWeights` if the model has no such id.
    """
    files = [name for name in (GENERATION, "config.json") if (folder / name).exists()]
    ids = {name: token_ids(name, read_json(folder, name), vocab_size) for name in files}
    union = ({tokenizer.eos_token_id} - {None}).union(*ids.values())
    return ids.get(GENERATION, set()) | (union & tokenizer.added_tokens_decoder.keys()) or union


def require_fit(shapes: Mapping[str, tuple[int, ...]], headers: Mapping[str, Header]) -> None:
    """Raises `DamagedWeights` or `UnsupportedModel` unless the files hold what the model needs, and nothing else."""
    for name, shape in shapes.items():
        if name not in headers:
            raise DamagedWeights(f"the weights lack {name}")
        if headers[name][1] != shape:
            raise DamagedWeights(f"{name} is {list(headers[name][1])}, but the configuration says {list(shape)}")
    for name in sorted(headers.keys() - shapes.keys()):
        if not name.endswith(HARMLESS):
            raise UnsupportedModel(f"{headers[name][0].name} holds {name}, for which the configuration has no use")


def read_tensors(folder: Path, dtype: torch.dtype, config: ModelConfig | None = None) -> dict[str, torch.Tensor]:
    """The tensors of the folder's safetensors files by name, cast to `dtype`.

    config  refuses a folder with other tensors than the model has, before one is read. Raises `DamagedWeights`, and
            `UnsupportedModel` for a tensor that the model would have to use.
    """
    headers, tensors = read_headers(folder), {}
    if config is not None:
        require_fit(config.tensor_shapes(), headers)
    try:
        for file in sorted({path for path, _ in headers.values()}):
            with safe_open(file, framework="pt") as opened:
                own = (name for name, (path, _) in headers.items() if path == file)
                tensors |= {name: opened.get_tensor(name).to(dtype) for name in own}
    except (SafetensorError, OSError) as error:
        raise DamagedWeights(f"{folder}: the weights cannot be read ({error}); fetch or copy them again") from error
    for name, tensor in tensors.items():
        if not tensor.sum(dtype=torch.float32).isfinite():  # a single NaN or infinity makes the sum one
            raise DamagedWeights(f"{folder}: {name} holds values that are not finite; fetch or copy the weights again")
    if config and config.tied_embeddings and not torch.equal(tensors[EMBEDDING], tensors.get(HEAD, tensors[EMBEDDING])):
        raise DamagedWeights(f"{HEAD} differs from {EMBEDDING}, but config.json says tie_word_embeddings")
    return tensors


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer, with its chat template. No code of the folder runs, and nothing is downloaded.

    Raises `UnsupportedModel` if there is no `tokenizer.json`, and `DamagedWeights` if it cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UnsupportedModel(f"{folder} has no tokenizer.json, as the `tokenizers` library writes it")
    for path in (*folder.glob("*.json"), *folder.glob("**/*.jinja")):
        readable(folder, str(path.relative_to(folder)))
    own = str(folder / "tokenizer.json")  # whatever file tokenizer_config.json names
    try:
        return PreTrainedTokenizerFast.from_pretrained(
            folder, tokenizer_file=own, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises plain Exceptions, among others
        raise DamagedWeights(f"{folder}: its tokenizer cannot be loaded ({error})") from error


def require_known_tokens(tokenizer, vocab_size: int) -> None:
    """Raises `UnsupportedModel` if the chat template writes a token for which the model has no embedding."""
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else "".join(template.values())
    names = {token: name for name, token in tokenizer.special_tokens_map.items()}  # by which a template may write them
    for token, added in tokenizer.added_tokens_decoder.items():
        if token >= vocab_size and (added.content in text or names.get(added.content, added.content) in text):
            raise UnsupportedModel(
                f"the chat template writes {added.content!r}, {token}; the model has {vocab_size} tokens"
            )


def load_model(
    name: str | Path | None,
    dtype: str | torch.dtype | None,
    device: str,
    kernels: str = "auto",
    deterministic: bool = False,
) -> tuple[Model, PreTrainedTokenizerFast, list[int]]:
    """A model, its tokenizer, and the ids that end a turn.

    name     as `find_model` takes it
    dtype    "float32", "bfloat16" or "float64", or torch's own; None or "auto": float32 on a CPU, bfloat16 on a GPU
    kernels  "auto", "torch", "cpu" or "cuda", as `choose_kernels` takes it; `deterministic` as for `Model`

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
    config = ModelConfig.from_hf(read_config(folder))
    tokenizer = read_tokenizer(folder)
    eos = read_eos(folder, tokenizer, config.vocab_size)
    require_known_tokens(tokenizer, config.vocab_size)
    require_memory(config, DTYPES[dtype], device)
    kernels = choose_kernels(kernels, config, DTYPES[dtype], device)
    if deterministic and kernels != "cpu":
        raise BadValue("deterministic=True needs the kernels for a CPU, and this model runs by torch or on a GPU")
    tensors = {name: tensor.to(device) for name, tensor in read_tensors(folder, DTYPES[dtype], config).items()}
    return Model(config, tensors, kernels=kernels, deterministic=deterministic), tokenizer, sorted(eos)
