"""Messages and tool calls: checked, brought into one form, and read back from the assistant's text."""

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from minstate.errors import BadMessage

Message = Mapping[str, Any]
Messages = SequenceOf[Message]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ToolCall:
    """A function call found in the assistant's text. `error` says what is wrong with it, `""` if it is well-formed."""

    name: str
    arguments: dict[str, Any]
    raw: str  # what stood between <tool_call> and </tool_call>
    error: str = ""


def parse_tool_calls(text: str, tools: Messages = ()) -> tuple[ToolCall, ...]:
    """The tool calls in an assistant's text, in order, malformed and unfinished ones included.

    If `tools` are given, a call is checked against the schema of its tool.
    """
    calls = []
    while "<tool_call>" in text:
        text = text.partition("<tool_call>")[2]
        try:  # a string in it may hold anything, the marks of calls included
            _, end = json.JSONDecoder().raw_decode(text.lstrip())
            end += len(text) - len(text.lstrip())
        except (ValueError, RecursionError):
            end = 0
        raw, closed, rest = text[end:].partition("</tool_call>")
        if not end:  # no JSON: what is cut off goes up to the next call
            raw, begun, behind = raw.partition("<tool_call>")
            closed, rest = ("", begun + behind + closed + rest) if begun else (closed, rest)
        call = _parse_call((text[:end] + raw).strip(), bool(closed))
        calls.append(replace(call, error=_misfit(call, tools)) if tools and not call.error else call)
        text = rest
    return tuple(calls)


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


def normalise_tools(tools: Any) -> tuple[Message, ...]:
    """Tools as a tuple of JSON schemas. Raises `BadMessage`."""
    if not tools:
        return ()
    well_formed = isinstance(tools, list | tuple) and all(
        isinstance(tool, Mapping) and isinstance(tool.get("function", tool), Mapping) for tool in tools
    )
    if not well_formed:
        raise BadMessage(f"tools must be a list of JSON schemas: got {tools!r:.200}")
    signatures(tools)
    return tuple(tools)


def signatures(tools: Messages) -> str:
    """Tools as JSON, one a line. Raises `BadMessage`."""
    try:
        return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"tools must be a list of JSON schemas: {error}") from error


def with_calls_as_text(message: Message) -> Message:
    """The same message, its tool calls written into the text in Hermes style."""
    if not message.get("tool_calls"):
        return message
    blocks = [message["content"]] if message["content"] else []
    for call in message["tool_calls"]:
        blocks.append(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>")
    return {"role": message["role"], "content": "\n".join(blocks)}


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
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        require(all(isinstance(part, str) for part in parts), f"({role}) has content parts that are no text")
        content = "".join(parts)
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
    """`{"name", "arguments"}` from that, from OpenAI's `{"function": {...}}`, or from a `ToolCall`."""
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


def _parse_call(raw: str, closed: bool) -> ToolCall:
    if not closed:
        return ToolCall("", {}, raw, "cut off before </tool_call>")
    try:
        call = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return ToolCall("", {}, raw, f"not JSON: {error}")
    name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall("", {}, raw, 'not of the form {"name": string, "arguments": object}')
    return ToolCall(name, arguments, raw)


def _misfit(call: ToolCall, tools: Messages) -> str:
    """What is wrong with a call of one of `tools`, if anything."""
    functions = [tool.get("function", tool) for tool in tools]
    schemas = {function.get("name"): function.get("parameters") or {} for function in functions}
    if call.name not in schemas:
        return f"no tool of the name {call.name!r}"
    try:
        error = best_match(Draft202012Validator(schemas[call.name]).iter_errors(call.arguments))
    except Exception as broken:  # a schema may be wrong in any way
        return f"the tool's schema cannot be applied: {broken}"
    return f"arguments do not fit the schema: {error.message} at {error.json_path}" if error else ""
