"""The two kinds of lines of a trace, header and turn: frozen dataclasses, written as JSON and read with checks.

`minstate.lab.traces.trace` describes the format.
"""

import codecs
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from minstate.errors import MinstateError

FORMAT, VERSION = "minstate-trace", 1
ROLES = ("system", "user", "assistant", "tool")
HEADER_KEYS = ("format", "version", "name", "seed", "about", "sessions")
TURN_KEYS = ("session", "turn", "messages", "output", "delay_s")
TURN_OPTIONS = ("fork_of", "waits_for")


class TraceError(MinstateError, ValueError):
    """A trace, or a log to convert into one, is malformed. The message has the place, what was expected and found."""


class Mismatch(Exception):
    """What was expected and what was found. `located` adds the place and makes it a `TraceError`."""

    def __init__(self, expected: str, found: str):
        super().__init__(f"expected {expected}, found {found}")


def expect(holds: Any, expected: str, found: Any) -> None:
    """Raise `Mismatch` unless `holds` is true. `found` is the wrong value; the message shows its beginning."""
    if not holds:
        shown = repr(found)
        raise Mismatch(expected, shown if len(shown) <= 120 else f"{shown[:119]}…")


@contextmanager
def located(place: str) -> Iterator[None]:
    """Turn a `Mismatch` into a `TraceError` with this place."""
    try:
        yield
    except Mismatch as mismatch:
        raise TraceError(f"{place}: {mismatch}") from mismatch


@dataclass(frozen=True)
class Opening:
    """How a session begins: the messages before its first turn, and its tools' JSON schemas. Both may be empty."""

    messages: tuple[dict, ...] = ()
    tools: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Fork:
    """Which session's log a fork copied, and when."""

    session: str
    after_turn: int  # of that session, counted from 1


@dataclass(frozen=True)
class TraceHeader:
    """A trace's first line. `more` holds all further keys, such as statistics."""

    name: str
    sessions: dict[str, Opening]
    seed: int | None = None
    about: str = ""
    turns: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TraceTurn:
    """One turn; `minstate.lab.traces.trace` describes the fields."""

    session: str
    turn: int
    messages: tuple[dict, ...]
    output: dict
    delay_s: float = 0.0
    fork_of: Fork | None = None
    waits_for: tuple[str, ...] = ()


# From Python to lines


def header_to_json(header: TraceHeader) -> dict:
    """The JSON object of a header. Raises `Mismatch` if `more` holds a key that is a field of its own."""
    sessions = {
        name: {"messages": list(opening.messages), "tools": list(opening.tools)}
        for name, opening in header.sessions.items()
    }
    known = {"format": FORMAT, "version": VERSION, "name": header.name, "seed": header.seed, "about": header.about}
    turns = {} if header.turns is None else {"turns": header.turns}
    fields = sorted({*known, "sessions", "turns"} & set(header.more))
    expect(not fields, "keys in `more` that are not fields of their own", fields)
    return known | turns | header.more | {"sessions": sessions}


def turn_to_json(turn: TraceTurn) -> dict:
    """The JSON object of a turn."""
    value = {"session": turn.session, "turn": turn.turn, "delay_s": turn.delay_s}
    if turn.fork_of is not None:
        value["fork_of"] = {"session": turn.fork_of.session, "after_turn": turn.fork_of.after_turn}
    if turn.waits_for:
        value["waits_for"] = list(turn.waits_for)
    return value | {"messages": list(turn.messages), "output": turn.output}


def dump_line(value: dict) -> bytes:
    """One line of JSON. Raises `Mismatch` for values that JSON cannot hold; all other checks are the reader's."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise Mismatch("values that JSON can hold", str(error)) from error


# From lines to Python


def parse_line(line: bytes) -> Any:
    """The value of a line of JSON, which includes its newline. Raises `Mismatch`."""
    for wrong, expected, found in [
        (not line, "a header", "an empty file"),
        (line.startswith(codecs.BOM_UTF8), "UTF-8 without a byte order mark", "a byte order mark"),
        (not line.endswith(b"\n"), "a newline at the end", f"the end of the file after {len(line)} bytes: truncated"),
        (line.endswith(b"\r\n"), 'a line that ends in "\\n" alone', 'a line that ends in "\\r\\n"'),
        (line.isspace(), "a JSON object", "a blank line"),
    ]:
        if wrong:
            raise Mismatch(expected, found)
    try:
        text = line[:-1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Mismatch("UTF-8", f"byte 0x{line[error.start]:02x} at byte {error.start + 1}") from None
    return parse_json(text)


def parse_json(text: str) -> Any:
    """The value of a JSON text, with all the format's restrictions. Raises `Mismatch`."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite)
        if "\\u" in text:  # only an escape can hold a lone surrogate
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise Mismatch("JSON", f"{error.msg} at column {error.colno}") from None
    except UnicodeEncodeError as error:
        raise Mismatch("strings in Unicode", f"the lone surrogate {error.object[error.start]!a}") from None
    except RecursionError:
        raise Mismatch("JSON that is not nested too deeply", "deeper nesting") from None
    except ValueError as error:  # a number with thousands of digits
        raise Mismatch("JSON", str(error)) from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Mismatch("keys that occur once in an object", f"{next(k for k in keys if keys.count(k) > 1)!r} twice")
    return value


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _not_finite(text)


def _not_finite(text: str) -> NoReturn:
    raise Mismatch("finite numbers", text)


# From JSON to records


def header_from_json(value: Any) -> TraceHeader:
    """The header in a line's value. Raises `Mismatch`."""
    expect_object(value, "the header", required=HEADER_KEYS, others=True)
    expect(value["format"] == FORMAT, f'"format": "{FORMAT}"', value["format"])
    expect(is_count(value["version"]) and value["version"] == VERSION, f'"version": {VERSION}', value["version"])
    seed, turns, share = value["seed"], value.get("turns"), value.get("repeated_4grams", 0)
    expect(is_text(value["name"]), 'a string that is not empty in "name"', value["name"])
    expect(isinstance(value["about"], str), 'a string in "about"', value["about"])
    expect(seed is None or type(seed) is int, 'a whole number or null in "seed"', seed)
    expect("turns" not in value or is_count(turns), 'a whole number from 1 up in "turns"', turns)
    expect(is_number(share) and 0 <= share <= 1, 'a share from 0 to 1 in "repeated_4grams"', share)
    sessions = value["sessions"]
    expect(isinstance(sessions, dict) and sessions, 'an object of sessions by name in "sessions"', sessions)
    more = {key: of for key, of in value.items() if key not in (*HEADER_KEYS, "turns")}
    openings = {name: _opening_from_json(name, opening) for name, opening in sessions.items()}
    return TraceHeader(value["name"], openings, seed, value["about"], turns, more)


def _opening_from_json(name: str, value: Any) -> Opening:
    what = f"session {name!r}"
    expect(name, "names of sessions", name)
    expect_object(value, what, required=("messages", "tools"))
    messages, tools = value["messages"], value["tools"]
    expect(isinstance(messages, list), f'a list in "messages" of {what}', messages)
    for at, message in enumerate(messages, 1):
        expect_message(message, f"message {at} of {what}")
    schemas = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    expect(schemas, f'a list of JSON schemas in "tools" of {what}', tools)
    return Opening(tuple(messages), tuple(tools))


def turn_from_json(value: Any) -> TraceTurn:
    """The turn in a line's value. Raises `Mismatch`."""
    expect_object(value, "a turn", required=TURN_KEYS, optional=TURN_OPTIONS)
    session, messages, output, delay_s = value["session"], value["messages"], value["output"], value["delay_s"]
    expect(is_text(session), 'a name in "session"', session)
    expect(is_count(value["turn"]), 'a whole number from 1 up in "turn"', value["turn"])
    expect(isinstance(messages, list) and messages, 'a list of at least one message in "messages"', messages)
    for at, message in enumerate(messages, 1):
        expect_message(message, f"message {at}")
    expect_message(output, "the output")
    expect(output["role"] == "assistant", "an output of the role assistant", output["role"])
    expect(is_number(delay_s) and 0 <= delay_s <= sys.float_info.max, 'seconds from 0 up in "delay_s"', delay_s)
    fork = None
    if "fork_of" in value:
        expect_object(value["fork_of"], '"fork_of"', required=("session", "after_turn"))
        fork = Fork(**value["fork_of"])
        expect(is_text(fork.session), 'a name in "session" of "fork_of"', fork.session)
        expect(is_count(fork.after_turn), 'a whole number from 1 up in "after_turn"', fork.after_turn)
    waits = value.get("waits_for", [])
    names = isinstance(waits, list) and all(is_text(name) for name in waits) and len(set(waits)) == len(waits)
    expect(names, 'a list of names, each once, in "waits_for"', waits)
    return TraceTurn(session, value["turn"], tuple(messages), output, delay_s, fork, tuple(waits))


def expect_message(message: Any, what: str) -> None:
    """Raise `Mismatch` unless the value is a message of the format."""
    expect_object(message, what, required=("role",), others=True)
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls", [])
    expect(role in ROLES, f"one of the roles {', '.join(ROLES)} in {what}", role)
    expect(isinstance(calls, list), f'a list in "tool_calls" of {what}', calls)
    expect(not calls or role == "assistant", f'"tool_calls" in messages of the assistant only, in {what}', role)
    for call in calls:
        whole = isinstance(call, dict) and is_text(call.get("name")) and isinstance(call.get("arguments"), dict)
        expect(whole, f'tool calls {{"name": string, "arguments": object}} in {what}', call)
    if content is not None or not calls:
        fine = isinstance(content, str) and (content or calls or role == "tool")
        either = " or tool calls" if role == "assistant" else ""
        expect(fine, f'a "content" that is a string and not empty{either} in {what}', content)


def expect_object(value: Any, what: str, *, required: tuple, optional: tuple = (), others: bool = False) -> None:
    """Raise `Mismatch` unless the value is an object that has the required keys, and others only if `others` is set."""
    expect(isinstance(value, dict), f"an object as {what}", value)
    for key in required:
        expect(key in value, f"the key {key!r} in {what}", list(value))
    unknown = [key for key in value if key not in (*required, *optional)]
    expect(others or not unknown, f"only the keys {', '.join((*required, *optional))} in {what}", unknown)


def is_text(value: Any) -> bool:
    """Whether the value is a string that is not empty."""
    return isinstance(value, str) and bool(value)


def is_count(value: Any) -> bool:
    """Whether the value is a whole number from 1 up."""
    return type(value) is int and value >= 1


def is_number(value: Any) -> bool:
    """Whether the value is a number; JSON's `true` and `false` are not."""
    return type(value) in (int, float)
