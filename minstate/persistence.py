"""A session as bytes, K/V included: it outlives the process, or moves to another, and goes on without computing again.

The bytes are those of a safetensors file. Its tensors are the log and the K/V of the log's beginning. Its header holds
the transcript, the model's fingerprints, a checksum of everything, and a signature of the checksum. A file is written
under a temporary name, and then moved into place: so it is complete, or it is not there.

**Whom we trust.** Whoever can write a file decides what it says: its log and messages are taken as data, and checked.
But K/V that do not belong to their log would change the answers of all sessions that share them, and no check can tell.
So K/V are used only if this user's key has signed them; those of any other file are computed again from its log. A
private copy for such a session would not do: saved again, it would carry our signature. And the log would no longer
be what the model saw.
"""

import fcntl
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from minstate.arguments import token_ids_of
from minstate.chat.messages import normalise, normalise_tools
from minstate.chat.transcript import Options, Transcript
from minstate.errors import BadValue, UnreadableSession
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence
from minstate.signing import sign, user_key

FORMAT = "minstate-session-5"
FLOATS = {torch.float64, torch.float32, torch.bfloat16}  # between which K/V can be converted
replace = Path.replace  # a name of this module, so that a test can put a function here that fails


def export(engine: Any, what: Any, tenant: str) -> bytes:
    """As `Engine.export`, for the methods of `Engine` and `Session` that have the same names here."""
    if isinstance(what, Iterable):
        sequence = engine.new_sequence(tenant)
        sequence.log += token_ids_of("a prefix", what, engine.model.config.vocab_size, BadValue)
        with engine.new_session(tenant, sequence, Transcript(None)) as prefix:
            return _pack(prefix)
    what.require_idle()
    return _pack(what)


def adopt(engine: Any, data: bytes, tenant: str, *, convert: bool) -> Any:
    """As `Engine.adopt`."""
    log, kv, transcript, seeds = _unpack(data, engine.model, engine.pool, convert)
    sequence = engine.new_sequence(tenant, transcript.tools)
    sequence.log += log
    session = engine.new_session(tenant, sequence, transcript, (tuple(seeds["lineage"]), seeds["forks"]))
    _fill(engine.cache, sequence, kv)
    return session


def _pack(session: Any) -> bytes:
    """An idle `Session` as bytes, with the K/V that the pool and the tiers below it have."""
    engine, sequence, transcript = session.engine, session.sequence, session.transcript
    engine.cache.recall(sequence)
    kv = engine.pool.kv[:, :, :, sequence.table.slots].contiguous().cpu()
    tensors = {"log": torch.tensor(sequence.log, dtype=torch.int32), "kv": kv}
    header = {
        "format": FORMAT,
        "model": engine.model.fingerprint,
        "origin": engine.model.origin,
        "transcript": json.dumps(
            {**vars(transcript), "verbatim": sorted(transcript.verbatim), "options": vars(transcript.options)}
        ),
        "seeds": json.dumps({"lineage": session.lineage, "forks": session.forks}),
        "signer": sign(user_key(), FORMAT),
    }
    checksum = _checksum(tensors, header)
    return save(tensors, header | {"checksum": checksum, "signature": sign(user_key(), checksum)})


def _fill(cache: PrefixCache, sequence: Sequence, kv: torch.Tensor) -> None:
    """Give an idle sequence K/V of its log's first tokens, `[layers, 2, H_kv, tokens, D]`, from outside the pool.

    Pages that other sequences have published already are shared. Raises `OutOfPages`, and then the sequence has no log
    and no K/V.
    """
    kv, tokens = kv.to(cache.pool.kv.device), kv.shape[3]
    cache.begin(sequence)
    try:
        known = sequence.kv_len
        if tokens > known:
            slots = sequence.table.append(tokens - known)
            cache.pool.kv[:, :, :, slots] = kv[:, :, :, known:]
            sequence.table.commit()
            cache.publish(sequence)
    except BaseException:
        cache.end(sequence, 0)
        raise
    cache.end(sequence, len(sequence.log))


def put(path: Path, data: bytes) -> None:
    """Write a file as other tools do: through a link, with the mode of the file before it, into a device as it is."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # raises IsADirectoryError
        return
    prefix = f".minstate-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"  # short, however long the name
    for left in path.parent.glob(f"{prefix}*"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails unless the process that wrote it was killed
            if left.stat().st_size:  # an empty one may have been made just now, and not be locked yet
                left.unlink()
    temporary = path.parent / f"{prefix}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # where there are no locks, nothing is removed either
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o7777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _unpack(data: bytes, model: Model, pool: KVPool, convert: bool) -> tuple[list[int], torch.Tensor, Transcript, dict]:
    """The log, its K/V `[layers, 2, H_kv, tokens, D]`, the transcript, and the seeds of a session that `_pack` packed.

    There are no K/V if another user has packed it. Raises `UnreadableSession` if the bytes are damaged, or of another
    model or format, and unless `convert` if they are of another precision.
    """
    try:
        return _parse(data, model, pool, convert)
    except (SafetensorError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UnreadableSession(f"this holds no session, or is damaged: {error}") from error


def _parse(data: bytes, model: Model, pool: KVPool, convert: bool) -> tuple[list[int], torch.Tensor, Transcript, dict]:
    """As `_unpack`. Raises any of many errors if the bytes are not as `_pack` packed them."""
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    if header.get("format") != FORMAT:
        raise ValueError(f"it has the format {header.get('format')!r}, not {FORMAT!r}")
    signature, checksum = header.pop("signature"), header.pop("checksum")
    ours = header["signer"] == sign(user_key(), FORMAT)
    intact = checksum == _checksum(tensors, header) and (not ours or signature == sign(user_key(), checksum))
    if tensors.keys() != {"log", "kv"} or not intact:
        raise ValueError("its checksum does not match its content")
    log, kv = token_ids_of("its log", tensors["log"].tolist(), model.config.vocab_size), tensors["kv"]
    if header["origin"] != model.origin:
        raise ValueError("it was written with another model: open a new session")
    if convert and {kv.dtype, pool.kv.dtype} <= FLOATS and kv.dtype != pool.kv.dtype:
        warnings.warn(f"K/V were converted from {kv.dtype} to {pool.kv.dtype}: outputs may differ", stacklevel=6)
        kv = kv.to(pool.kv.dtype)
    elif header["model"] != model.fingerprint:
        raise ValueError(f"it was written in another precision, {kv.dtype}: convert=True rounds to {pool.kv.dtype}")
    layers, two, heads, _, dim = pool.kv.shape
    tokens = min(kv.shape[3], max(0, len(log) - 1))
    if kv.dtype != pool.kv.dtype or kv.shape != (layers, two, heads, tokens, dim):
        raise ValueError(f"it holds K/V of shape {list(kv.shape)}, which does not fit this model and {len(log)} tokens")
    if not kv.isfinite().all():
        raise ValueError("its K/V are not finite")
    seeds = json.loads(header["seeds"])
    _counts([*seeds["lineage"], seeds["forks"]])
    return log, kv if ours else kv[:, :, :, :0], _transcript(json.loads(header["transcript"]), len(log)), seeds


def _transcript(values: dict[str, Any], log_length: int) -> Transcript:
    """A transcript from its fields. JSON has lists where a transcript has tuples."""
    messages, options = values["messages"], Options(**values["options"])
    messages = normalise(messages) if messages else None if messages is None else ()
    in_log, reply_start = _counts([values["in_log"], values["reply_start"]])
    flags = {type(options.content_may_control), type(values["thinking"])}
    too_many = reply_start > log_length or (messages is not None and in_log > len(messages))
    if too_many or flags != {bool} or not isinstance(options.variables, dict):
        raise ValueError("its transcript does not fit its log, or is none")
    return Transcript(
        messages=messages,
        tools=normalise_tools(values["tools"]),
        in_log=in_log,
        reply_start=reply_start,
        thinking=values["thinking"],
        verbatim=frozenset(_counts(values["verbatim"])),
        options=options,
    )


def _counts(values: list[int]) -> list[int]:
    """The values. Raises ValueError unless they are whole numbers from 0 up."""
    return token_ids_of("its header", values, 2**63)


def _checksum(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
