"""The requests of a log, in the order of the log, whatever its format.

A record that cannot be read is named, counted and skipped, and the rest is read; `strict` raises at the first one.
A whole conversation, of which the log has no requests, gives one request for each of its replies.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minstate.lab.logs.coding_agents import CODEX, ClaudeSession, CodexSession, session_format
from minstate.lab.logs.files import Broken, files_in, values_in
from minstate.lab.logs.formats import Parts, parse
from minstate.lab.logs.messages import read_messages, read_tools
from minstate.lab.traces.records import Mismatch, TraceError, located

SHOWN = 20  # skipped records that are named; further ones are counted


@dataclass(frozen=True)
class LoggedRequest:
    """One request: what was sent, and what came back.

    place     of its record, for messages to people
    messages  in the form of `minstate.lab.logs.messages`
    reply     the assistant's message in answer; None if the log does not have it
    session   the conversation it belongs to, if the log says so: a record that is a whole conversation does
    reported  tokens of the prompt, and how many of these were cached, by the provider's account
    """

    place: str
    format: str
    messages: tuple[dict, ...]
    tools: tuple[dict, ...] = ()
    reply: dict | None = None
    session: str | None = None
    at_s: float | None = None
    model: str = ""
    reported: tuple[int, int] | None = None
    reply_ids: tuple[int, ...] | None = None


@dataclass
class Reading:
    """What became of the records of a log.

    records  in all
    skipped  records that could not be read
    named    the first of these: place, what was expected and found
    formats  requests by format
    notes    what was repaired, or left out, and how often
    """

    records: int = 0
    skipped: int = 0
    named: list[str] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def skip(self, problem: str) -> None:
        """Count a record that cannot be read."""
        self.skipped += 1
        if len(self.named) < SHOWN:
            self.named.append(problem)


Source = str | Path | Iterable[Any]


def read_requests(source: Source, *, strict: bool = False, reading: Reading | None = None) -> Iterator[LoggedRequest]:
    """Yield the requests of a file, a folder, several paths, or the records. `reading` is told what became of records.

    Raises `TraceError` with place, what was expected and found: for a missing or a packed file, and, if `strict`, for
    the first record that cannot be read.
    """
    reading, known = Reading() if reading is None else reading, set[bytes]()

    def requests(place: str, parts: Iterator[Parts]) -> Iterator[LoggedRequest]:
        return _read_record(place, parts, known, strict, reading)

    yield from _each_record(source, strict, reading, requests)


def read_conversations(source: Source, *, strict: bool = False, reading: Reading | None = None) -> Iterator[tuple]:
    """Yield place, messages (with the reply at their end if there is one) and tools of each record."""
    reading = Reading() if reading is None else reading

    def conversations(place: str, parts: Iterator[Parts]) -> Iterator[tuple]:
        for each in parts:
            messages = read_messages([*each.items, *each.reply], strict=strict, notes=reading.notes)
            yield place, messages, read_tools(each.tools)

    yield from _each_record(source, strict, reading, conversations)


def _each_record(source: Source, strict: bool, reading: Reading, read: Callable[..., Iterator]) -> Iterator:
    """What `read` yields of each record, given its place and its parts; one that cannot be read is counted."""
    for values in _files(source, strict):
        sessions: dict[str, ClaudeSession | CodexSession] = {}
        for place, value in values:
            reading.records += 1
            try:
                with located(place):
                    yield from read(place, _parts(value, sessions))
            except TraceError as error:
                if strict:
                    raise
                reading.skip(str(error))


def _files(source: Source, strict: bool) -> Iterator[Iterator[tuple[str, Any]]]:
    if isinstance(source, str | Path):
        for path in files_in(Path(source)):
            yield values_in(path, strict=strict)
    elif isinstance(source, list | tuple) and source and all(isinstance(each, Path) for each in source):
        for path in source:
            yield from _files(path, strict)
    elif isinstance(source, Mapping):
        yield iter([("record 1", source)])
    else:
        yield ((f"record {number}", value) for number, value in enumerate(source, 1))


def _parts(value: Any, sessions: dict) -> Iterator[Parts]:
    if isinstance(value, Broken):
        raise Mismatch(*value.problem.removeprefix("expected ").split(", found ", 1))
    kind = session_format(value)
    if kind is None:
        yield from parse(value)
        return
    if kind not in sessions:
        sessions[kind] = CodexSession() if kind == CODEX else ClaudeSession()
    yield from sessions[kind].read(value)


def _read_record(place, all_parts, known: set[bytes], strict: bool, reading: Reading) -> Iterator[LoggedRequest]:
    for number, parts in enumerate(all_parts):
        messages = read_messages(parts.items, strict=strict, notes=reading.notes)
        tools = tuple(read_tools(parts.tools))
        if not messages:
            raise Mismatch("at least one message", "none")
        if parts.whole:
            session = place if number == 0 else f"{place}.{number + 1}"
            requests = list(_replies(place, session, parts, messages, tools, known))
        else:
            reply = read_messages(list(parts.reply), strict=strict, notes=reading.notes)
            requests = [
                LoggedRequest(
                    place, parts.format, tuple(messages), tools, reply[-1] if reply else None, None, parts.at_s,
                    parts.model, parts.reported, parts.reply_ids,
                )
            ]  # fmt: skip
        reading.formats[parts.format] += len(requests)
        yield from requests


def _replies(place, session, parts: Parts, messages: list[dict], tools, known: set[bytes]) -> Iterator[LoggedRequest]:
    """A request for each reply of a conversation, unless an earlier record had the same conversation up to there."""
    chain = hashlib.blake2b(json.dumps(tools, sort_keys=True, default=str).encode(), digest_size=16)
    replied = any(message["role"] == "assistant" for message in messages)
    for at, message in enumerate(messages):
        chain.update(json.dumps(message, sort_keys=True, default=str).encode())
        here = f"{place}, message {at + 1}"
        if message["role"] == "assistant" and at and messages[at - 1]["role"] != "assistant":
            if chain.digest() in known:
                session = None  # the record goes on with an earlier one's conversation
                continue
            known.add(chain.digest())
            given = tuple(messages[:at])
            yield LoggedRequest(here, parts.format, given, tools, message, session, parts.at_s, parts.model)
        elif not replied and at == len(messages) - 1:
            yield LoggedRequest(here, parts.format, tuple(messages), tools, None, session, parts.at_s, parts.model)
