"""Logs of chats, in any format that `minstate.lab.logs` reads, converted into traces.

A record is a whole conversation, or a request of a growing conversation, which repeats all earlier messages. A record
continues an earlier one if its messages begin with all the earlier messages, and the tools are equal. A record without
new messages is ignored.
"""

from dataclasses import dataclass, field
from pathlib import Path

from minstate.lab.logs.requests import Reading, Source, read_conversations
from minstate.lab.traces.records import Mismatch, TraceError, expect_message, located
from minstate.lab.traces.trace import Opening, Trace, TraceHeader, TraceTurn


@dataclass
class Conversation:
    """One conversation, as far as records were read."""

    tools: list[dict]
    messages: list[dict] = field(default_factory=list)
    first_seen: list[int] = field(default_factory=list)  # for each message, the number of the first record that has it
    place: str = ""  # of the latest record, for error messages


def from_openai(log: Source, *, name: str = "", about: str = "", strict: bool = False) -> Trace:
    """Convert a log into a trace: a file, a folder, or the records themselves.

    Each message of the assistant becomes the output of a turn, whose input is the messages before it. The messages
    before the first one of a user or tool open the session. A log of requests lacks each conversation's last reply, so
    messages without a reply are left out. Turns keep the order of the log. A single session is called "main"; several
    are called "chat-1", "chat-2" and so on. Conversations that diverge become separate sessions. A log does not record
    delays, so they are 0.

    Arguments of tool calls become objects, and a content in parts becomes one string. The role "developer" becomes
    "system", and a tool's result gets the name of its call. What has no text, such as an image, is named in brackets.

    strict  whether a record that cannot be read or replayed is an error; else it is skipped, and the trace's header
            has the number of these as "skipped". With `strict`, an image is such an error, too

    Raises `TraceError` if nothing can be replayed, and OSError.
    """
    reading, problems = Reading(), []
    conversations: list[Conversation] = []
    for number, (place, messages, tools) in enumerate(read_conversations(log, strict=strict, reading=reading)):
        try:
            with located(place):
                for at, message in enumerate(messages, 1):
                    expect_message(message, f"message {at}")
                add_record(conversations, messages, tools, number, place)
        except TraceError as error:
            problems.append(error)
    names = ["main"] if len(conversations) == 1 else [f"chat-{n}" for n in range(1, len(conversations) + 1)]
    sessions, turns = {}, []
    for session, conversation in zip(names, conversations, strict=True):
        try:
            with located(conversation.place):
                opening, replied = split_turns(session, conversation)
        except TraceError as error:
            problems.append(error)
            continue
        if replied:
            sessions[session] = opening
            turns += replied
    problems += map(TraceError, reading.named)
    if problems and (strict or not turns):
        raise problems[0]
    turns = [turn for _, turn in sorted(turns, key=lambda pair: pair[0])]  # stable: a session's turns stay in order
    with located(str(log) if isinstance(log, str | Path) else "the log"):
        if not turns:
            raise Mismatch("at least one reply of an assistant", f"{len(conversations)} conversations without one")
    title = name or (Path(log).stem if isinstance(log, str | Path) else "log")
    skipped = {"skipped": len(problems)} if problems else {}
    return Trace(TraceHeader(title, sessions, about=about, turns=len(turns), more=skipped), tuple(turns))


def add_record(
    conversations: list[Conversation], messages: list[dict], tools: list[dict], number: int, place: str
) -> None:
    """Add the record to the longest conversation that it continues, or to a new one."""
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
