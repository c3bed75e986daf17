"""A session in a file, K/V included: it outlives the process, and goes on without computing anything again.

One safetensors file: the log, the K/V of its beginning, and in the header what was said, which model it was, and a
checksum of everything. It is written beside its place and then moved there, so a file is whole or absent.
"""

import hashlib
import json
import os
import tempfile
from os import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from minstate.chat.transcript import Transcript
from minstate.errors import UnreadableSession
from minstate.model import Model
from minstate.paged_kv import KVPool

FORMAT = "minstate-session-1"


def write(
    path: Path, model: Model, pool: KVPool, slots: list[int], log: list[int], said: Transcript, seeds: dict
) -> None:
    """Write a session whose first `len(slots)` tokens have K/V in these slots. Raises OSError."""
    tensors = {"log": torch.tensor(log, dtype=torch.int32), "kv": pool.kv[:, :, :, slots].contiguous().cpu()}
    header = {
        "format": FORMAT,
        "model": model.fingerprint,
        "said": json.dumps(vars(said)),
        "seeds": json.dumps(seeds),
    }
    data = save(tensors, header | {"checksum": _checksum(tensors, header)})
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def read(path: Path, model: Model, pool: KVPool) -> tuple[list[int], torch.Tensor, Transcript, dict]:
    """The log, its K/V `[layers, 2, H_kv, tokens, D]`, what was said, and what forks draw their noise from.

    Raises OSError, and `UnreadableSession` if the file is damaged, or of another model, precision or format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UnreadableSession(f"{path} is damaged or no session: {error}") from error
    if header.get("format") != FORMAT:
        raise UnreadableSession(f"{path} has the format {header.get('format')!r}, not {FORMAT!r}")
    checksum = header.pop("checksum", None)
    if tensors.keys() != {"log", "kv"} or checksum != _checksum(tensors, header):
        raise UnreadableSession(f"{path} is damaged: its checksum is not that of its content")
    if header["model"] != model.fingerprint:
        raise UnreadableSession(f"{path} was written with another model, or in another precision: open a new session")
    layers, two, heads, _, dim = pool.kv.shape
    log, kv = tensors["log"].tolist(), tensors["kv"]
    if kv.dtype != pool.kv.dtype or kv.shape != (layers, two, heads, kv.shape[3], dim) or kv.shape[3] > len(log):
        raise UnreadableSession(f"{path} holds K/V {list(kv.shape)}, which this model cannot have")
    said = json.loads(header["said"])
    said["messages"] = None if said["messages"] is None else tuple(said["messages"])
    return log, kv, Transcript(**{**said, "tools": tuple(said["tools"])}), json.loads(header["seeds"])


def _checksum(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().data
