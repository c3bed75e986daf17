"""Logs of OpenAI-style chats, converted into traces.

A log is a sequence of records `{"messages": [...], "tools": [...]}`. A record is a whole conversation, or a request of
a growing conversation, which repeats all earlier messages. A record continues an earlier one if its messages begin with
all the earlier messages, and the tools are equal. A record without new messages is ignored.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minstate.lab.traces.records import Mismatch, expect, expect_message, expect_object, located, parse_json
from minstate.lab.traces.trace import Opening, Trace, TraceHeader, TraceTurn


@dataclass
class Conversation:
    """One conversation, as far as records were read."""

    tools: list[dict]
    messages: list[dict] = field(default_factory=list)
    first_seen: list[int] = field(default_factory=list)  # for each message, the number of the first record that has it
    place: str = ""  # of the latest record, for error messages


def from_openai(log: str | Path | Iterable[Mapping], *, name: str = "", about: str = "") -> Trace:
    """Convert a log into a trace: a file of JSON lines, a file with one JSON list, or the records themselves.

    Each message of the assistant becomes the output of a turn, whose input is the messages before it. The messages
    before the first one of a user or tool open the session. A log of requests lacks each conversation's last reply, so
    messages without a reply are left out. Turns keep the order of the log. A single session is called "main"; several
    are called "chat-1", "chat-2" and so on. Conversations that diverge become separate sessions. A log does not record
    delays, so they are 0.

    Arguments of tool calls become objects, and a content in parts becomes one string. The role "developer" becomes
    "system", keys that are null are dropped, and a tool's result gets the name of its call.

    Raises `TraceError` if a record cannot be read or replayed (because it holds an image, say), and OSError.
    """
    conversations: list[Conversation] = []
    for number, (place, value) in enumerate(read_records(log)):
        with located(place):
            add_record(conversations, value, number, place)
    names = ["main"] if len(conversations) == 1 else [f"chat-{n}" for n in range(1, len(conversations) + 1)]
    sessions, turns = {}, []
    for session, conversation in zip(names, conversations, strict=True):
        with located(conversation.place):
            opening, replied = split_turns(session, conversation)
        if replied:
            sessions[session] = opening
            turns += replied
    turns = [turn for _, turn in sorted(turns, key=lambda pair: pair[0])]  # stable: a session's turns stay in order
    source = str(log) if isinstance(log, str | Path) else "the log"
    with located(source):
        if not turns:
            raise Mismatch("at least one reply of an assistant", f"{len(conversations)} conversations without one")
    title = name or (Path(log).stem if isinstance(log, str | Path) else "log")
    return Trace(TraceHeader(title, sessions, about=about, turns=len(turns)), tuple(turns))


def read_records(log: str | Path | Iterable[Mapping]) -> Iterator[tuple[str, Any]]:
    """Yield each record with its place."""
    if not isinstance(log, str | Path):
        yield from ((f"record {n}", record) for n, record in enumerate(log, 1))
        return
    with Path(log).open("rb") as file:
        is_list = file.read(1) == b"["
        file.seek(0)
        lines = [file.read()] if is_list else file
        for n, line in enumerate(lines, 1):
            if line.isspace():
                continue
            place = f"{log}" if is_list else f"{log}, line {n}"
            with located(place):
                try:
                    value = parse_json(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise Mismatch("UTF-8", f"byte 0x{line[error.start]:02x} at byte {error.start + 1}") from None
            if is_list:
                yield from ((f"{log}, record {i}", record) for i, record in enumerate(value, 1))
            else:
                yield place, value


def add_record(conversations: list[Conversation], value: Any, number: int, place: str) -> None:
    """Add the record to the longest conversation that it continues, or to a new one. Raises `Mismatch`."""
    expect_object(value, "a record", required=("messages",), others=True)
    messages, tools = value["messages"], value.get("tools") or []
    expect(isinstance(messages, list | tuple), 'a list in "messages"', messages)
    schemas = isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)
    expect(schemas, 'a list of JSON schemas in "tools"', tools)
    messages, tools = normal_messages(messages), list(tools)
    if any(c.tools == tools and c.messages[: len(messages)] == messages for c in conversations):
        return  # it was sent before, and has no new messages
    continued = [c for c in conversations if c.tools == tools and messages[: len(c.messages)] == c.messages]
    if continued:
        conversation = max(continued, key=lambda c: len(c.messages))
    else:
        conversation = Conversation(tools)
        conversations.append(conversation)
    conversation.first_seen += [number] * (len(messages) - len(conversation.messages))
    conversation.messages, conversation.place = messages, place


def normal_messages(messages: Iterable) -> list[dict]:
    """Messages in the form of traces, in which a tool's result has the name of its call. Raises `Mismatch`."""
    normal, called = [], {}
    for at, given in enumerate(messages, 1):
        what = f"message {at}"
        expect_object(given, what, required=("role",), others=True)
        message = {key: value for key, value in given.items() if value is not None}
        if message.get("role") == "developer":
            message["role"] = "system"
        if isinstance(message.get("content"), list | tuple):
            message["content"] = "".join(text_of_part(part, what) for part in message["content"])
        if "tool_calls" in message:
            expect(isinstance(message["tool_calls"], list | tuple), f'a list in "tool_calls" of {what}', message)
            message["tool_calls"] = [normal_call(call, what) for call in message["tool_calls"]]
            called |= {call["id"]: call["name"] for call in message["tool_calls"] if "id" in call}
        if "tool_call_id" in message:
            answered = message["tool_call_id"]
            expect(
                isinstance(answered, str) and answered in called,
                f'in "tool_call_id" of {what} one of the calls so far',
                answered,
            )
            message.setdefault("name", called[answered])
        expect_message(message, what)
        normal.append(message)
    return normal


def text_of_part(part: Any, what: str) -> str:
    """The text of one part of a content. Raises `Mismatch` for an image, for example."""
    text = part.get("text") if isinstance(part, Mapping) else part
    expect(isinstance(text, str), f"content parts that are text in {what}", part)
    return text


def normal_call(call: Any, what: str) -> dict:
    """A call as `{"name", "arguments", "id"}`, given in this form or as OpenAI's `{"id", "function": {...}}`."""
    expect(isinstance(call, Mapping), f"objects as tool calls in {what}", call)
    function, number = call.get("function", call), call.get("id")
    expect(isinstance(function, Mapping), f'an object in "function" of a tool call in {what}', call)
    expect(number is None or isinstance(number, str), f'strings in "id" of tool calls in {what}', number)
    name, arguments = function.get("name"), function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except Mismatch as mismatch:
            raise Mismatch(f"arguments of {name} that are JSON in {what}", f"{arguments!r:.120} ({mismatch})") from None
    expect(isinstance(arguments, Mapping), f"an object of arguments of {name} in {what}", arguments)
    return {"name": name, "arguments": dict(arguments)} | ({"id": number} if number else {})


def split_turns(session: str, conversation: Conversation) -> tuple[Opening, list[tuple[int, TraceTurn]]]:
    """The opening, and each turn with the number of the first record that has its input. Raises `Mismatch`."""
    messages = conversation.messages
    start = next((at for at, message in enumerate(messages) if message["role"] in ("user", "tool")), len(messages))
    turns, new = [], []
    for at, message in enumerate(messages[start:], start):
        if message["role"] != "assistant":
            new.append(message)
            continue
        if not new:
            raise Mismatch(
                f"a message of a user or tool before message {at + 1}", "two messages of the assistant in a row"
            )
        turn = TraceTurn(session, len(turns) + 1, tuple(new), message)
        turns.append((conversation.first_seen[at - 1], turn))
        new = []
    return Opening(tuple(messages[:start]), tuple(conversation.tools)), turns
