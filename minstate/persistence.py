"""A session in a file, K/V included: it outlives the process, and goes on without computing anything again.

The file is one safetensors file. Its tensors are the log and the K/V of the log's beginning. Its header holds the
transcript, the model's fingerprint, and a checksum of everything. The file is written under a temporary name, and then
moved into place: so it is complete, or it is not there.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from minstate.chat.transcript import Options, Transcript
from minstate.errors import UnreadableSession
from minstate.model import Model
from minstate.paged_kv import KVPool

FORMAT = "minstate-session-3"
replace = Path.replace  # a name of this module, so that a test can put a function here that fails


def write(
    path: Path, model: Model, pool: KVPool, slots: list[int], log: list[int], transcript: Transcript, seeds: dict
) -> None:
    """Write a session whose first `len(slots)` tokens have their K/V in `slots`. Raises OSError.

    seeds  where the session's forks take their seeds from, as JSON values
    """
    tensors = {"log": torch.tensor(log, dtype=torch.int32), "kv": pool.kv[:, :, :, slots].contiguous().cpu()}
    header = {
        "format": FORMAT,
        "model": model.fingerprint,
        "transcript": json.dumps(
            {**vars(transcript), "verbatim": sorted(transcript.verbatim), "options": vars(transcript.options)}
        ),
        "seeds": json.dumps(seeds),
    }
    data = save(tensors, header | {"checksum": _checksum(tensors, header)})
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            replace(Path(file.name), path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def read(path: Path, model: Model, pool: KVPool) -> tuple[list[int], torch.Tensor, Transcript, dict]:
    """The log, its K/V `[layers, 2, H_kv, tokens, D]`, the transcript, and the seeds, as `write` took them.

    Raises OSError, and `UnreadableSession` if the file is damaged, or of another model, precision or format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UnreadableSession(f"{path} is damaged, or holds no session: {error}") from error
    if header.get("format") != FORMAT:
        raise UnreadableSession(f"{path} has the format {header.get('format')!r}, not {FORMAT!r}")
    checksum = header.pop("checksum", None)
    if tensors.keys() != {"log", "kv"} or checksum != _checksum(tensors, header):
        raise UnreadableSession(f"{path} is damaged: its checksum does not match its content")
    if header["model"] != model.fingerprint:
        raise UnreadableSession(f"{path} was written with another model, or in another precision: open a new session")
    layers, two, heads, _, dim = pool.kv.shape
    log, kv = tensors["log"].tolist(), tensors["kv"]
    if kv.dtype != pool.kv.dtype or kv.shape != (layers, two, heads, kv.shape[3], dim) or kv.shape[3] > len(log):
        raise UnreadableSession(f"{path} holds K/V of shape {list(kv.shape)}, which does not fit this model")
    return log, kv, _transcript(json.loads(header["transcript"])), json.loads(header["seeds"])


def _transcript(values: dict[str, Any]) -> Transcript:
    """A transcript from its fields. JSON has lists where a transcript has tuples."""
    messages = values["messages"]
    return Transcript(
        messages=None if messages is None else tuple(messages),
        tools=tuple(values["tools"]),
        in_log=values["in_log"],
        reply_start=values["reply_start"],
        thinking=values["thinking"],
        verbatim=frozenset(values["verbatim"]),
        options=Options(**values["options"]),
    )


def _checksum(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().data
