"""Reads the files of a model's folder. A stranger made it: only plain files in it are read, and no pickle is opened."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minstate.errors import DamagedWeights

INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
MOST_BYTES = 1 << 29  # of any file but weights; the largest published ones, tokenizers, have 40 MB
FLOATS = ("F64", "F32", "F16", "BF16")

Header = tuple[Path, tuple[int, ...]]  # the file that a tensor is in, and its shape


def readable(folder: Path, name: str, most: int = MOST_BYTES) -> Path:
    """The path of a file in the folder that has at most `most` bytes. Raises `DamagedWeights` if it is none.

    The Hub's cache keeps files beside its folders, as `snapshots/x/config.json -> ../../blobs/hash`; they may be read.
    """
    path, home = folder / name, folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    try:
        target = path.resolve()
        if not target.is_file() or not (target.is_relative_to(home) or target.is_relative_to(blobs)):
            raise DamagedWeights(f"{path} is no file, or a link that leads out of the folder")
        size = target.stat().st_size
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise DamagedWeights(f"{path} cannot be read: {error}") from error
    if size > most:
        raise DamagedWeights(f"{path} has {size:,} bytes; at most {most:,} are read")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the folder. Raises `DamagedWeights` if it is too large, too deep or no object."""
    path = readable(folder, name, MOST_BYTES >> 3)
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedWeights(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DamagedWeights(f"{path} is not a JSON object")
    return value


def read_headers(folder: Path) -> dict[str, Header]:
    """File and shape of each tensor by its name. Nothing is allocated for a tensor. Raises `DamagedWeights`.

    The index says which file a tensor is read from. Without an index it is `model.safetensors`, or else the only file
    that has the tensor.
    """
    index: Any = read_json(folder, INDEX).get("weight_map") if (folder / INDEX).exists() else {}
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise DamagedWeights(f"{folder / INDEX} has no weight_map of file names")
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    files = set(index.values()) or ({"model.safetensors"} & set(there)) or there
    if strange := sorted(set(files) - set(there)):
        raise DamagedWeights(f"{folder / INDEX} names {strange[0]!r}, which is no *.safetensors file in the folder")
    if not files:
        raise DamagedWeights(f"{folder} has no *.safetensors (a pickle, such as *.bin, could run any code)")
    headers: dict[str, Header] = {}
    for path in [readable(folder, file, 1 << 50) for file in sorted(files)]:
        for name, shape in _shapes(path).items():
            if index.get(name, path.name) == path.name:
                if name in headers:
                    raise DamagedWeights(f"{name} is in {headers[name][0].name} and in {path.name}")
                headers[name] = path, shape
    for name in index.keys() - headers.keys():
        raise DamagedWeights(f"{INDEX} says that {name} is in {index[name]}, where it is not")
    return headers


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            for name, tensor in slices.items():
                if tensor.get_dtype() not in FLOATS:
                    raise DamagedWeights(f"{path}: {name} is of {tensor.get_dtype()}, not of {', '.join(FLOATS)}")
            return {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
    except (SafetensorError, OSError) as error:
        raise DamagedWeights(f"{path} cannot be read ({error}); fetch or copy it again") from error
