"""The JSON values in files and folders, one at a time, however they were written down.

A file may hold JSON lines, one JSON list, one value, or several values one after another, pretty-printed or not. It may
begin with a byte order mark, and it may be compressed by gzip. A value that cannot be read becomes a `Broken`, and the
reader goes on behind it.
"""

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from minstate.lab.traces.records import Mismatch, TraceError, parse_json

SUFFIXES = (".json", ".jsonl", ".ndjson", ".traj", ".log")  # of the files that a folder is searched for
PACKED = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed by zstd", b"PAR1": "a Parquet file"}
CHUNK = 2**20  # characters that are read at once
LONGEST = 2**28  # characters of one value at most
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Broken:
    """Stands for a value that could not be read."""

    problem: str


def files_in(path: Path) -> list[Path]:
    """The file itself, or all files of a folder whose names say that they hold JSON. Raises `TraceError`."""
    if not path.exists():
        raise TraceError(f"{path}: there is no such file or folder: check the path")
    if not path.is_dir():
        return [path]
    found = [file for file in path.rglob("*") if file.is_file() and _says_json(file)]
    if not found:
        raise TraceError(
            f"{path}: no file in this folder ends in {', '.join(SUFFIXES)} or .gz: name the files one by one"
        )
    return sorted(found)


def _says_json(file: Path) -> bool:
    return Path(file.name.removesuffix(".gz")).suffix in SUFFIXES


def values_in(path: Path, *, strict: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield each value with its place. Holds one value at a time, unless a list of messages is the only value.

    strict  whether lines must fulfil the restrictions of `minstate.lab.traces.trace`: no key twice, finite numbers

    Raises `TraceError` for a file that holds no text, and OSError.
    """
    with _open_text(path) as file:
        first = _first_line(file)
        if _is_value(first):
            yield from _lines(path, first, file, strict)
        else:
            yield from _stream(path, first, file)


def _open_text(path: Path) -> IO[str]:
    with path.open("rb") as file:
        begins = file.read(4)
    for magic, what in PACKED.items():
        if begins == magic:
            raise TraceError(f"{path}: this is {what}: unpack it, or export it as JSON lines")
    raw = (gzip.open if begins[:2] == b"\x1f\x8b" else open)(path, "rb")
    return io.TextIOWrapper(
        raw, "utf-8-sig", errors="surrogateescape", newline="\n"
    )  # bytes that are no text stay apart


def _first_line(file: IO[str]) -> str:
    for line in file:
        if not line.isspace():
            return line
    return ""


def _is_value(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return not line.lstrip().startswith(("{", "["))  # no JSON at all: then lines are the best guess
    return not isinstance(value, list) or bool(value)


def _lines(path: Path, first: str, file: IO[str], strict: bool) -> Iterator[tuple[str, Any]]:
    number, line = 1, first
    while line:
        if not line.isspace():
            value = _value(line, strict)
            alone = number == 1 and isinstance(value, list)
            following = _first_line(file) if alone else ""
            if alone and not following:
                yield from _elements(path, value)
                return
            yield f"{path}, line {number}", value
            if alone:
                number, line = number + 1, following
                continue
        number, line = number + 1, next(file, "")


def _value(line: str, strict: bool) -> Any:
    try:
        line.encode()
        return parse_json(line) if strict else json.loads(line)
    except Mismatch as mismatch:
        return Broken(str(mismatch))
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        return Broken(f"expected UTF-8, found byte 0x{byte:02x} at character {error.start + 1}: convert the file")
    except RecursionError:
        return Broken("expected JSON that is not nested too deeply, found deeper nesting")
    except ValueError as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        said = error.msg.removesuffix(" at") if isinstance(error, json.JSONDecodeError) else str(error)
        return Broken(f"expected JSON, found {line.strip()[:40]!r} ({said}{at}): was the line cut off?")


def _elements(path: Path, values: list) -> Iterator[tuple[str, Any]]:
    """The elements of a list, or the whole list if it is a conversation."""
    if is_conversation(values):
        yield str(path), values
    else:
        yield from ((f"{path}, record {number}", value) for number, value in enumerate(values, 1))


def is_conversation(values: Any) -> bool:
    """Whether a list holds messages, or items of OpenAI's Responses, rather than records."""
    return isinstance(values, list) and bool(values) and all(map(_is_message, values[:8]))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or "messages" in value or "payload" in value or "message" in value:
        return False
    is_item = isinstance(value.get("type"), str) and ("call_id" in value or value["type"] in ("reasoning", "message"))
    return "role" in value or is_item or {"from", "value"} <= value.keys()


def _stream(path: Path, first: str, file: IO[str]) -> Iterator[tuple[str, Any]]:
    """The values of a text that is no JSON lines: the elements of one list, or values one after another."""
    text, number, in_list, messages = first.lstrip(), 0, False, []
    if text.startswith("["):
        text, in_list = text[1:], True
    while True:
        text = text.lstrip(" \t\r\n,")
        if not text or (in_list and text[0] == "]"):
            more = file.read(CHUNK) if not text else ""
            if not more:
                break
            text += more
            continue
        number += 1
        value, text = _next_value(text, file)
        place = f"{path}, record {number}"
        if in_list and (messages or number == 1) and (_is_message(value) or isinstance(value, Broken)):
            messages.append((place, value))  # perhaps the file is one conversation
            continue
        yield from messages
        messages = []
        if not in_list and isinstance(value, list) and not is_conversation(value):
            yield from ((f"{place}.{n}", each) for n, each in enumerate(value, 1))
        else:
            yield place, value
    broken = [pair for pair in messages if isinstance(pair[1], Broken)]
    whole = [value for _, value in messages if not isinstance(value, Broken)]
    yield from broken
    if whole:
        yield str(path), whole


def _next_value(text: str, file: IO[str]) -> tuple[Any, str]:
    """The value at the beginning of the text, and the text behind it."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text)
            return value, text[end:]
        except (json.JSONDecodeError, RecursionError) as error:
            more = file.read(max(CHUNK, len(text))) if len(text) < LONGEST else ""
            if more:
                text += more
                continue
            place = text.find("\n{")
            said = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
            broken = Broken(f"expected JSON, found {text[:40]!r} ({said}): was the file cut off?")
            return broken, text[place + 1 :] if place >= 0 else ""
