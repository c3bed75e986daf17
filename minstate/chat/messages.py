"""Messages and tools as a user passes them, checked and brought into one form."""

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from typing import Any

from minstate.chat.tool_calls import Tool, ToolCall, signatures
from minstate.errors import BadMessage

Message = Mapping[str, Any]
Messages = SequenceOf[Message]
ROLES = ("system", "user", "assistant", "tool")


def normalise(messages: str | Message | Messages) -> tuple[Message, ...]:
    """Messages as dicts with "role", text as "content", and "tool_calls" as `{"name", "arguments"}` if there are any.

    Takes OpenAI's forms too: arguments as a JSON string, content as a list of text parts, no content beside calls.
    Other keys are passed on to the template. Raises `BadMessage`.
    """
    if isinstance(messages, str):
        messages = {"role": "user", "content": messages}
    if isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, list | tuple):
        raise BadMessage(f"messages are a string, a dict or a list of dicts, not {type(messages).__name__}")
    if not messages:
        raise BadMessage("the list of messages is empty")
    return tuple(_normalise_one(message, where) for where, message in enumerate(messages))


def normalise_tools(tools: Any) -> tuple[Tool, ...]:
    """Tools as a tuple of JSON schemas. Raises `BadMessage`."""
    if not tools:
        return ()
    well_formed = isinstance(tools, list | tuple) and all(
        isinstance(tool, Mapping) and isinstance(tool.get("function", tool), Mapping) for tool in tools
    )
    if not well_formed:
        raise BadMessage(f"tools must be a list of JSON schemas: got {tools!r:.200}")
    signatures(tools)  # raises where JSON cannot hold them
    return tuple(tools)


def _normalise_one(message: Message, where: int) -> Message:
    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise BadMessage(f"message {where} {problem}")

    require(isinstance(message, Mapping), f"is a {type(message).__name__}, not a dict")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls") or []
    require(role in ROLES, f"has role {role!r}, not one of {', '.join(ROLES)}")
    require(isinstance(calls, list | tuple), f"has tool_calls of type {type(calls).__name__}, not a list")
    require(not calls or role == "assistant", f"has tool_calls but role {role!r}: only the assistant calls tools")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        require(len(texts) == len(content), f"({role}) has content parts that are not text")
        content = "".join(texts)
    content = "" if content is None and calls else content
    require(isinstance(content, str), f"({role}) has content of type {type(content).__name__}, not text")
    require(bool(content or calls) or role in ("assistant", "tool"), f"({role}) is empty")
    normal = {**message, "content": content}
    normal.pop("tool_calls", None)
    try:
        json.dumps({key: value for key, value in normal.items() if key not in ("role", "content")})
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"message {where} ({role}) holds what JSON cannot: {error}") from error
    if calls:
        normal["tool_calls"] = [_normalise_call(call, where) for call in calls]
    return normal


def _normalise_call(call: Any, where: int) -> dict[str, Any]:
    """A call as `{"name", "arguments"}`. Takes this form, OpenAI's `{"function": {...}}`, and a `ToolCall`."""
    if isinstance(call, ToolCall):
        call = {"name": call.name, "arguments": call.arguments}
    call = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = call.get("name"), call.get("arguments", {})
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError("a name and an object of arguments are needed")
        normal = {"name": name, "arguments": dict(arguments)}
        json.dumps(normal)
        return normal
    except (ValueError, TypeError, RecursionError) as error:
        raise BadMessage(f"message {where} has a malformed tool call {call!r:.200}: {error}") from error
