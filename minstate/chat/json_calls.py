"""Calls that are JSON values: an object with a name and arguments, or a list of such objects.

Families differ in the keys, and models in what they make of them. So a name may stand under "name", "tool_name" or
"function", and arguments under "arguments" or "parameters", as an object or as its JSON. A call with two names, or with
arguments twice, is malformed: nothing says which of them is meant.
"""

import json
import math
from typing import Any

from minstate.chat.tool_calls import ToolCall


def read_json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a position, and where it ends. Raises ValueError; numbers that are not finite are none."""
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value, end


def whole_json(text: str) -> Any:
    """The JSON value that a text is. Raises ValueError."""
    value, end = read_json(text, 0)
    return value if not text[end:].strip() else _not_json(text)


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _not_json(text)


def _not_json(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_not_json, parse_float=_finite, object_pairs_hook=_object)


def json_end(text: str, at: int) -> int | None:
    """Where the JSON value ends that begins at a position; None if none does."""
    try:
        return read_json(text, at)[1]
    except ValueError:
        return None


def calls_in(raw: str, closed: bool, closes: str) -> list[ToolCall]:
    """The calls of one JSON value or several: objects, or lists of them."""
    if not closed:
        return [ToolCall("", {}, raw, f"cut off before {closes}")]
    calls, at = [], 0
    try:
        while at < len(raw) or not calls:
            value, at = read_json(raw, at)
            calls += (
                [_call_in(call, raw) for call in value] if isinstance(value, list) and value else [_call_in(value, raw)]
            )
    except ValueError as error:
        return [ToolCall("", {}, raw, f"not JSON: {error}")]
    return calls


def _call_in(call: Any, raw: str) -> ToolCall:
    """A call from an object, which has a name under one of some keys, and arguments as an object or as its JSON."""
    wrong = ToolCall("", {}, raw, 'not of the form {"name": string, "arguments": object}')
    if not isinstance(call, dict):
        return wrong
    if isinstance(call.get("function"), dict):
        call = {key: value for key, value in call.items() if key != "function"} | call["function"]
    elif len(call) == 1 and isinstance(next(iter(call.values())), dict):
        ((name, arguments),) = call.items()
        return ToolCall(name, arguments, raw)
    names = [call[key] for key in ("name", "tool_name", "function") if key in call]
    several = [call[key] for key in ("arguments", "parameters") if key in call]
    if len(names) != 1 or len(several) > 1:
        return wrong
    (name,), arguments = names, several[0] if several else {}
    if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
        try:
            arguments = read_json(arguments, 0)[0]
        except ValueError as error:
            return ToolCall("", {}, raw, f"its arguments are not JSON: {error}")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return wrong
    call_id = call.get("id", call.get("tool_call_id", ""))
    return ToolCall(name, arguments, raw, id=call_id if isinstance(call_id, str) else "")
