"""Tools and the calls of them: what a call is, what is wrong with it, and how a tool's schema is found."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match
from referencing import Registry

from minstate.chat.finite import finds
from minstate.chat.keywords import TYPES
from minstate.chat.schema import with_own_types
from minstate.errors import BadMessage, UnsupportedSchema

Tool = Mapping[str, Any]  # a JSON schema, bare or inside OpenAI's `{"type": "function", "function": ...}`
Tools = Sequence[Tool]
WORK = 10**8  # letters to look at: a step may look at the whole value, and put it into a message
UNCHECKED = ("format", "uniqueItems", "patternProperties", "unevaluatedItems", "unevaluatedProperties")


@dataclass(frozen=True)
class ToolCall:
    """A function call found in the assistant's text. `error` says what is wrong with it, `""` if it is well-formed."""

    name: str
    arguments: dict[str, Any]
    raw: str  # its text, without the marks around it
    error: str = ""
    id: str = ""  # by which a result names it

    @property
    def malformed(self) -> bool:
        """Whether its text is no call at all, or was cut off; a call that does not fit its schema is well-formed."""
        return bool(self.error) and not self.name


def schema_error(call: ToolCall, tools: Tools) -> str:
    """What is wrong with a call of one of `tools`; "" if the call fits its schema."""
    schemas = schemas_of(tools)
    if call.name not in schemas:
        return f"no tool of the name {call.name!r}"
    try:
        error = misfit(call.arguments, with_own_types(schemas[call.name]), len(call.raw))
    except Exception as broken:  # noqa: BLE001  a schema may be wrong in any way
        return f"the tool's schema cannot be applied: {broken}"
    return f"arguments do not fit the schema: {error}" if error else ""


def misfit(value: Any, schema: Any, size: int) -> str:
    """What is wrong with a value of `size` letters; "" if it fits the schema, or if that takes too long to find out.

    [jsonschema](https://python-jsonschema.readthedocs.io) says it best, but trusts the schema: a `$ref` makes it fetch
    a URL or read a file, a pattern can take exponential time, and so can schemas that refer to each other. Here,
    nothing is fetched, llguidance matches patterns, and the work is bounded. May raise anything for a wrong schema.
    """
    steps_left = [WORK // (2000 + size)]
    # Validators of inner schemas inherit the format checker, which no keyword uses here. So it counts.
    checker: Any = _Validator(schema, registry=Registry(), format_checker=steps_left)
    with suppress(OverflowError, RecursionError):
        if error := best_match(checker.iter_errors(value)):
            return f"{error.message} at {error.json_path}"
    return ""


def _bounded(keyword: str, check: Callable) -> Callable:
    def bounded(validator, wanted, value, schema):
        is_text = keyword == "pattern" and isinstance(value, str)
        size = len(wanted) // 16 if isinstance(wanted, list | dict) else 0
        validator.format_checker[0] -= 100 + len(value) if is_text else 1 + size
        if validator.format_checker[0] < 0:
            raise OverflowError
        if is_text:
            return () if finds(wanted, value) else [ValidationError(f"{value!r} does not match {wanted!r}")]
        unknown = keyword == "additionalProperties" and "patternProperties" in schema
        return () if unknown or keyword in UNCHECKED else check(validator, wanted, value, schema)

    return bounded


_KEYWORDS = Draft202012Validator.VALIDATORS.items()
_Validator = validators.extend(Draft202012Validator, {key: _bounded(key, check) for key, check in _KEYWORDS})


def schemas_of(tools: Tools) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments by the tool's name, whatever they are."""
    functions = [tool.get("function", tool) for tool in tools]
    return {function.get("name"): function.get("parameters") or {} for function in functions}


def signatures(tools: Tools) -> str:
    """Tools as JSON, one a line. Raises `BadMessage`."""
    try:
        return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"tools must be a list of JSON schemas: {error}") from error


def parameters_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of a function's arguments. Raises `UnsupportedSchema` if they are no object."""
    parameters = function.get("parameters")
    parameters = {"type": "object", "properties": {}} if parameters in (None, {}) else parameters
    kind = parameters.get("type") if isinstance(parameters, Mapping) else repr(parameters)
    if isinstance(kind, str) and TYPES.get(kind.lower(), kind) not in ("object", None):
        raise UnsupportedSchema(
            f"the parameters of tool {function.get('name')!r} are not those of an object: {kind:.80}"
        )
    return parameters


def function_of(tool: Tool) -> tuple[str, Mapping[str, Any]]:
    """A tool's name, and the JSON schema of its arguments. Raises `UnsupportedSchema`."""
    function = tool.get("function", tool)
    name, parameters = function.get("name"), parameters_of(function)
    if not name or not isinstance(name, str):
        raise UnsupportedSchema(f"a tool needs a name and a schema of its parameters: {tool!r:.200}")
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        raise UnsupportedSchema(f"in a schema, properties are an object and required is a list: {tool!r:.200}")
    return name, parameters
