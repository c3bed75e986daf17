"""Messages, tools, and what a reply must be, in the forms of several APIs: checked, and brought into one form."""

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from itertools import groupby
from typing import Any

from minstate.chat.tool_calls import Tool, ToolCall, parameters_of, signatures
from minstate.errors import BadMessage, BadValue

Message = Mapping[str, Any]
Messages = SequenceOf[Message]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXT_PARTS = (None, "text", "input_text", "output_text")
PARAMETERS = {"input_schema": "parameters", "inputSchema": "parameters"}  # in the tools of Anthropic, and of MCP


def normalise(messages: str | Message | Messages) -> tuple[Message, ...]:
    """Messages as dicts with "role", text as "content", and "tool_calls" if there are any.

    A tool call is `{"name", "arguments"}`, with its "id" if it has one. Takes OpenAI's forms too: arguments as a JSON
    string, content as a list of text parts, no content beside calls, and the older "function_call" and role "function".
    Other keys are passed on to the template, and so is the role "developer". Raises `BadMessage`.
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
    """Tools as `{"type": "function", "function": {"name", "description", "parameters"}}`, which most models know.

    Takes a function without the object around it too, with its schema as "parameters" (OpenAI's Responses API),
    "input_schema" (Anthropic) or "inputSchema" (MCP). Raises `BadMessage`, for two tools of one name as well, and
    `UnsupportedSchema` for a tool whose arguments are no object.
    """
    if not tools:
        return ()
    well_formed = isinstance(tools, list | tuple) and all(
        isinstance(tool, Mapping) and isinstance(tool.get("function", tool), Mapping) for tool in tools
    )
    if not well_formed:
        raise BadMessage(f"tools must be a list of JSON schemas: got {tools!r:.200}")
    tools = tuple(_normalise_tool(tool) for tool in tools)
    signatures(tools)  # raises where JSON cannot hold them
    names = [tool["function"].get("name") for tool in tools]
    for name, tool in zip(names, tools, strict=True):
        parameters_of(tool["function"])  # raises where they are no object
        if name is not None and names.count(name) > 1:
            raise BadMessage(f"two tools have the name {name!r}: a call could not say which one it means")
    return tools


def _normalise_tool(tool: Tool) -> Tool:
    if "function" in tool:
        return {"type": "function", **tool}
    if tool.get("type") not in (None, "function", "custom"):
        raise BadMessage(f"tools must be functions, and one is of type {tool['type']!r}: {tool!r:.200}")
    function = {PARAMETERS.get(key, key): value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": function}


def normalise_choice(choice: str | Mapping[str, Any] | None) -> str | None:
    """A tool choice as None, "auto", "required", "none" or a tool's name. Takes OpenAI's and Anthropic's objects too.

    Raises `BadValue` for an object that is neither.
    """
    if not isinstance(choice, Mapping):
        return choice
    kind, function = choice.get("type"), choice.get("function", choice)
    if kind in ("any", "auto", "none"):
        return "required" if kind == "any" else kind
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise BadValue(f"tool_choice names no tool: {choice!r:.200}")
    return name


def normalise_format(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A response format as a JSON schema; None for text. Takes OpenAI's wrappers of a schema too. Raises `BadValue`."""
    if not isinstance(response_format, Mapping):
        return response_format
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        return response_format
    wrapper = response_format.get("json_schema", response_format)  # the Responses API has one object less
    schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    if not isinstance(schema, Mapping):
        raise BadValue(f"response_format of type 'json_schema' needs a schema: {response_format!r:.200}")
    return schema


def _normalise_one(message: Message, where: int) -> Message:
    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise BadMessage(f"message {where} {problem}")

    require(isinstance(message, Mapping), f"is a {type(message).__name__}, not a dict")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls") or []
    require(role in ROLES, f"has role {role!r}, not one of {', '.join(ROLES)}")
    role = "tool" if role == "function" else role
    calls = calls or ([message["function_call"]] if message.get("function_call") else [])
    require(isinstance(calls, list | tuple), f"has tool_calls of type {type(calls).__name__}, not a list")
    require(not calls or role == "assistant", f"has tool_calls but role {role!r}: only the assistant calls tools")
    if isinstance(content, list):
        for part in content:
            kind = (
                part.get("type", None if "text" in part else list(part))
                if isinstance(part, Mapping)
                else type(part).__name__
            )
            is_text = isinstance(part, Mapping) and kind in TEXT_PARTS and isinstance(part.get("text"), str)
            require(is_text, f"({role}) has a content part of type {kind!r} that is not text")
        content = "".join(part["text"] for part in content)
    for key in ("name", "tool_call_id"):
        require(isinstance(message.get(key) or "", str), f"({role}) has a {key} that is not text")
    content = "" if content is None and calls else content
    require(isinstance(content, str), f"({role}) has content of type {type(content).__name__}, not text")
    require(bool(content or calls) or role in ("assistant", "tool"), f"({role}) is empty")
    others = {key: value for key, value in message.items() if key not in ("tool_calls", "function_call")}
    normal = {**others, "role": role, "content": content}
    try:
        json.dumps({**normal, "content": ""}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"message {where} ({role}) holds what JSON cannot: {error}") from error
    if calls:
        normal["tool_calls"] = [_normalise_call(call, where) for call in calls]
    return normal


def _normalise_call(call: Any, where: int) -> dict[str, Any]:
    """A call as `{"name", "arguments"}`, with "id" if it has one.

    Takes this form, OpenAI's `{"id", "function": {...}}`, and a `ToolCall`.
    """
    if isinstance(call, ToolCall):
        call = {"name": call.name, "arguments": call.arguments}
    outer = call if isinstance(call, Mapping) else {}
    function = outer.get("function", outer)
    if isinstance(function, str) and "arguments" in outer:
        function = {**outer, "name": function}
    try:
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("it has no name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = json.loads(arguments.strip() or "{}")
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, Mapping):
            raise ValueError("its arguments are no object")
        number = {"id": outer["id"]} if outer.get("id") else {}
        if not isinstance(outer.get("id") or "", str):
            raise ValueError("its id is not text")
        normal = {**number, "name": function["name"], "arguments": dict(arguments)}
        json.dumps(normal, allow_nan=False)  # `json.loads` reads NaN, Infinity and 1e999, which JSON cannot hold
        return normal
    except (ValueError, TypeError, RecursionError) as error:
        raise BadMessage(f"message {where} has a malformed tool call {call!r:.200}: {error}") from error


def in_order_of_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results that follow on each other in the order of their calls: many templates do not write ids."""
    order = {call["id"]: place for message in messages for place, call in enumerate(message.get("tool_calls", ()))}
    ordered, at = list(messages), 0
    for is_result, run in groupby(messages, key=lambda message: message["role"] == "tool"):
        results = list(run)
        if is_result:
            ordered[at : at + len(results)] = sorted(results, key=lambda one: order.get(one.get("tool_call_id"), 0))
        at += len(results)
    return ordered
