"""The tool-call syntax: how a model is told of tools, how a call is written, and how a call is read back.

A call in the style of [Hermes](https://github.com/NousResearch/Hermes-Function-Calling), which Qwen's models use too,
is one JSON object between two marks:

    <tool_call>
    {"name": "read_file", "arguments": {"path": "setup.py"}}
    </tool_call>

Whatever depends on this syntax is in this file. `grammar` builds its rules from the pieces of text below. `template`
writes calls, results and tools in this syntax where a model's own chat template cannot.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from minstate.errors import BadMessage, UnsupportedSchema

Tool = Mapping[str, Any]  # a JSON schema, bare or inside OpenAI's `{"type": "function", "function": ...}`
Tools = Sequence[Tool]

# A call is OPEN, BEFORE_NAME, the name as JSON, BEFORE_ARGUMENTS, the arguments as JSON, AFTER_ARGUMENTS, CLOSE.
OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEFORE_NAME, BEFORE_ARGUMENTS, AFTER_ARGUMENTS = '\n{"name": ', ', "arguments": ', "}\n"


@dataclass(frozen=True)
class ToolCall:
    """A function call found in the assistant's text. `error` says what is wrong with it, `""` if it is well-formed."""

    name: str
    arguments: dict[str, Any]
    raw: str  # the text between its marks
    error: str = ""


# ---- Reading


def parse_tool_calls(text: str, tools: Tools = ()) -> tuple[ToolCall, ...]:
    """The tool calls in an assistant's text, in order, malformed and unfinished ones included.

    If `tools` are given, a call is checked against the schema of its tool.
    """
    calls = []
    while OPEN in text:
        text = text.partition(OPEN)[2]
        end = _json_end(text)  # a string in the JSON may hold anything, the marks of calls included
        raw, closed, rest = text[end:].partition(CLOSE)
        if not end and OPEN in raw:  # no JSON, and not closed: the call ends where the next one begins
            raw, closed = raw.partition(OPEN)[0], ""
            rest = text[len(raw) :]
        call = _parse_call((text[:end] + raw).strip(), bool(closed))
        calls.append(replace(call, error=_schema_error(call, tools)) if tools and not call.error else call)
        text = rest
    return tuple(calls)


def text_before_calls(text: str) -> str:
    """An assistant's text up to its first tool call."""
    return text.partition(OPEN)[0]


def _json_end(text: str) -> int:
    """Where the JSON value ends with which a text begins; 0 if the text begins with none."""
    stripped = text.lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(stripped)
    except (ValueError, RecursionError):
        return 0
    return len(text) - len(stripped) + end


def _parse_call(raw: str, closed: bool) -> ToolCall:
    if not closed:
        return ToolCall("", {}, raw, f"cut off before {CLOSE}")
    try:
        call = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return ToolCall("", {}, raw, f"not JSON: {error}")
    name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall("", {}, raw, 'not of the form {"name": string, "arguments": object}')
    return ToolCall(name, arguments, raw)


def _schema_error(call: ToolCall, tools: Tools) -> str:
    """What is wrong with a call of one of `tools`; "" if the call fits its schema."""
    functions = [tool.get("function", tool) for tool in tools]
    schemas = {function.get("name"): function.get("parameters") or {} for function in functions}
    if call.name not in schemas:
        return f"no tool of the name {call.name!r}"
    try:
        error = best_match(Draft202012Validator(schemas[call.name]).iter_errors(call.arguments))
    except Exception as broken:  # noqa: BLE001  a schema may be wrong in any way
        return f"the tool's schema cannot be applied: {broken}"
    return f"arguments do not fit the schema: {error.message} at {error.json_path}" if error else ""


# ---- Writing


def text_with_calls(message: Mapping[str, Any]) -> str:
    """The text of a normalised message, followed by its tool calls."""
    blocks = [message["content"]] if message["content"] else []
    calls = message.get("tool_calls", ())
    blocks += [_before_arguments(call["name"]) + _json(call["arguments"]) + AFTER_ARGUMENTS + CLOSE for call in calls]
    return "\n".join(blocks)


def call_opening(tool: Tool) -> str:
    """How a call of the tool begins: up to its first value if its first argument is required, else up to the arguments.

    Raises `UnsupportedSchema`.
    """
    name, parameters = function_of(tool)
    first = next(iter(parameters.get("properties", {})), None)
    opening = _before_arguments(name) + "{"
    return f"{opening}{_json(first)}: " if first in parameters.get("required", ()) else opening


def tool_response(content: str) -> str:
    """A tool's result inside a user's message, for a template that has no role for tools."""
    return f"<tool_response>\n{content}\n</tool_response>"


def tools_prompt(tools: Tools) -> str:
    """The part of a system message that describes tools, for a template that cannot do it. Raises `BadMessage`."""
    return f"""\
You may call functions. Their signatures, one JSON object a line, are between <tools> and </tools>:
<tools>
{signatures(tools)}
</tools>
To call one, write its name and arguments as a JSON object between {OPEN} and {CLOSE}:
{OPEN}
{{"name": "the function", "arguments": {{"parameter": "value"}}}}
{CLOSE}"""


def _before_arguments(name: str) -> str:
    return OPEN + BEFORE_NAME + _json(name) + BEFORE_ARGUMENTS


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- Tools


def signatures(tools: Tools) -> str:
    """Tools as JSON, one a line. Raises `BadMessage`."""
    try:
        return "\n".join(_json(tool) for tool in tools)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"tools must be a list of JSON schemas: {error}") from error


def function_of(tool: Tool) -> tuple[str, Mapping[str, Any]]:
    """A tool's name, and the JSON schema of its arguments. Raises `UnsupportedSchema`."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    parameters = function.get("parameters") or {"type": "object", "properties": {}} if name else None
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise UnsupportedSchema(f"a tool needs a name and a schema of its parameters: {tool!r:.200}")
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        raise UnsupportedSchema(f"in a schema, properties are an object and required is a list: {tool!r:.200}")
    return name, parameters
