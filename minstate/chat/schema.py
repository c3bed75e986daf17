"""Which JSON schemas can be enforced, and how a schema is handed to llguidance.

[llguidance](https://github.com/guidance-ai/llguidance) compiles a schema into a grammar. It refuses most of what it
cannot enforce, but ignores some of it. This file reads a schema first, as
[JSON Schema 2020-12](https://json-schema.org/draft/2020-12) whatever its `$schema` says. It refuses both kinds, and
names the keyword, its place as a JSON path, and a way out.

Every keyword is in one of four classes:

SUBSCHEMAS  enforced, with schemas inside
VALUES      enforced, with no schema inside. Some values are refused: see `_check_values`
REFUSED     would restrict the value, but llguidance refuses or ignores it, at least in some schemas
annotation  restricts nothing: `title`, `description`, `default`, `examples`, `deprecated`, `readOnly`, `$comment`,
            `x-…`, and any other name. A name that is spelt almost as a keyword is refused

Names of types from elsewhere (Python, Java, the Berkeley Function-Calling Leaderboard) are translated where a schema
says `type`, and nowhere else: `dict` becomes `object`, `float` becomes `number`, and so on (see `TYPES`).

Some things differ from an exact reading:

- Properties come in the order of the schema. An integer is written as `1`, never as `1.0`.
- A `format` is enforced, but as a regular expression, which lets some through: the 29th of February of any year, a leap
  second at any minute, a host name longer than 255 letters or in bad Punycode.
- A `multipleOf` that is no integer holds in decimal arithmetic, where `jsonschema` computes with floats.
- In a pattern, `\\d` and `\\w` mean ASCII, and `\\W` all the rest, as in ECMA-262 and not as in Python's `re`.
"""

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from llguidance import LLMatcher

from minstate.chat.finite import check_that_values_end, target_of, types_of
from minstate.errors import BadValue, UnsupportedSchema

SEPARATORS = (", ", ": ")  # between items, and behind a key, as `json.dumps` writes them
PLAIN = {"json_allowed_escapes": 'nrbtf\\"'}  # no `\u001b`, so such control characters can't be generated
SUBSCHEMAS = {  # and whether the keyword holds one schema, a list of them, or schemas by name
    "items": "one", "additionalProperties": "one",
    "allOf": "list", "anyOf": "list", "oneOf": "list", "prefixItems": "list",
    "properties": "named", "patternProperties": "named",
}  # fmt: skip
NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
VALUES = {
    "$ref", "type", "enum", "const", *NUMBERS, "minLength", "maxLength", "pattern", "format", "minItems", "maxItems",
    "required", "minProperties", "maxProperties",
}  # fmt: skip
REFUSED = {  # and what to write instead
    "not": "list what is allowed, with enum or anyOf",
    **dict.fromkeys(("if", "then", "else"), "write the cases as anyOf"),
    **dict.fromkeys(("dependencies", "dependentRequired", "dependentSchemas"), "write the cases as anyOf"),
    "unevaluatedProperties": "write additionalProperties beside properties",
    **dict.fromkeys(("unevaluatedItems", "additionalItems"), "write items beside prefixItems"),
    **dict.fromkeys(("contains", "minContains", "maxContains"), "name what must be there in prefixItems"),
    **dict.fromkeys(("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"), "write $ref"),
    "uniqueItems": "leave it out, and check the items where they are used",
    "propertyNames": "write patternProperties, with additionalProperties: false",
    "disallow": "list what is allowed, with enum or anyOf",
    "divisibleBy": "write multipleOf",
    "extends": "write allOf",
}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
TYPES = {  # in lower case; `None` allows any type
    **dict.fromkeys(("dict", "map", "hashmap", "hashtable"), "object"),
    **dict.fromkeys(("list", "tuple", "set", "arraylist", "queue", "stack", "array"), "array"),
    **dict.fromkeys(("float", "double"), "number"),
    **dict.fromkeys(("int", "long", "short", "byte", "bigint"), "integer"),
    **dict.fromkeys(("str", "char", "string"), "string"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("none", "nonetype"), "null"),
    "any": None,
}
CANONICAL = {keyword.lower(): keyword for keyword in (*SUBSCHEMAS, *VALUES, *REFUSED)}
DEEPEST = 100  # from some hundreds on, llguidance overflows its stack, which ends the process
LARGEST = 2**53  # llguidance computes with 64-bit floats, which round larger integers


def value_grammar(schema: Mapping) -> str:
    """A JSON value that fits `schema`, in llguidance's dialect of Lark.

    Raises `BadValue` if the schema is not JSON, `UnsupportedSchema` if it cannot be enforced.
    """
    return _grammar(schema, False, "a schema cannot be enforced", SEPARATORS)


def arguments_grammar(tool: str, parameters: Mapping, separators: tuple[str, str] | None = SEPARATORS) -> str:
    """The arguments of a call of `tool`, an object that fits `parameters`. Raises as `value_grammar` does.

    A call names the parameters that its tool lists, and invents none, unless the schema says that it may. Without
    `separators`, white space may be anywhere.
    """
    return _grammar(parameters, True, f"the parameters of tool {tool!r} cannot be enforced", separators)


def _grammar(schema: Mapping, arguments: bool, what: str, separators: tuple[str, str] | None) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        text.encode()  # raises on a lone surrogate, which is not valid text
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"a schema must be JSON: {error}") from error
    grammar, problem = _prepared(text, arguments, separators)
    if problem:
        raise UnsupportedSchema(f"{what}: {problem}")
    return grammar


@lru_cache(maxsize=512)
def _prepared(text: str, arguments: bool, separators: tuple[str, str] | None) -> tuple[str, str]:
    """The grammar of a schema, and what is wrong with the schema; one of them is ""."""
    try:
        root = json.loads(text)
        nodes = _read(root)
        if arguments:
            _make_arguments(root)
        check_that_values_end(nodes, root)
        grammar = _lark(root, any(_has_open_names(node) for _, node in nodes.values()), separators)
    except UnsupportedSchema as error:
        return "", str(error)
    except RecursionError:
        return "", "it is nested too deeply: define the inner parts in $defs"
    problem = LLMatcher.validate_grammar(f"start: {grammar}").partition("\n")[0]
    return ("", _explained(problem, nodes)) if problem else (grammar, "")


def _explained(problem: str, nodes: dict[int, tuple[str, dict]]) -> str:
    """What llguidance says is wrong, which names no place, with the places of the keywords that it names."""
    problem = problem.rpartition("failed to compile JSON schema: ")[2]
    keywords = [
        f"{path}.{key}" for path, node in nodes.values() for key in node if re.search(rf"\b{re.escape(key)}\b", problem)
    ]
    way_out = "write anyOf, or cases that cannot overlap" if "oneOf" in problem else "write it more simply"
    return f"{', '.join(keywords[:3]) or '$'}: {problem.partition('. Enable')[0]}: {way_out}"


def _lark(schema: Any, plain: bool = False, separators: tuple[str, str] | None = SEPARATORS) -> str:
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    spelling: dict[str, Any] = {"whitespace_flexible": separators is None} | (PLAIN if plain else {})
    if separators:
        spelling |= dict(zip(("item_separator", "key_separator"), separators, strict=True))
    return f"%json {json.dumps({**schema, 'x-guidance': spelling}, ensure_ascii=False)}"


def _has_open_names(node: Mapping) -> bool:
    """Whether an object has names that are listed, and others: llguidance would let the same name come as `\\u0061`."""
    listed = node.get("properties") or node.get("required")
    return bool(node.get("patternProperties") or (listed and node.get("additionalProperties", True)))


def any_object(separators: tuple[str, str] | None = SEPARATORS) -> str:
    """Any JSON object, in llguidance's dialect of Lark."""
    return _lark({"type": "object"}, separators=separators)


def _make_arguments(root: Any) -> None:
    """Make a schema one of arguments, in place: an object, without parameters that the schema does not list."""
    types = root.get("type", "object") if isinstance(root, dict) else None
    if types is None or "object" not in ([types] if isinstance(types, str) else types):
        raise UnsupportedSchema('$.type: the arguments of a call are an object: write "type": "object"')
    root["type"] = "object"
    listed = root.get("properties", {}).keys() >= set(root.get("required", ()))
    if "properties" in root and listed and not root.keys() & {"patternProperties", "allOf", "anyOf", "oneOf", "$ref"}:
        root.setdefault("additionalProperties", False)


# ---- Reading every schema inside a schema


def _read(root: Any) -> dict[int, tuple[str, dict]]:
    """Check and normalise, in place, each schema that can be reached from `root`: by id, its JSON path and itself."""
    nodes: dict[int, tuple[str, dict]] = {}
    followed = set()
    waiting = [("$", root, 0, False)]
    while waiting:  # depth first, as llguidance does it, to know how deep it gets
        path, node, depth, referred = waiting.pop()
        if isinstance(node, bool) or (referred and path in followed):
            continue
        if not isinstance(node, dict):
            raise UnsupportedSchema(f"{path}: a schema is an object or a boolean, not {node!r:.80}")
        if depth > DEEPEST:
            raise UnsupportedSchema(f"{path}: more than {DEEPEST} schemas deep, $ref included: make it flatter")
        if referred:
            followed.add(path)
        if id(node) not in nodes:
            nodes[id(node)] = path, node
            _normalise(path, node)
            _check_values(path, node)
        inside = [(*part, depth + 1, key == "$ref") for key in node for part in _inside(path, key, node[key], root)]
        waiting += reversed(inside)
    return nodes


def _inside(path: str, keyword: str, value: Any, root: Any) -> list[tuple[str, Any]]:
    """Paths and schemas that a keyword's value holds, or refers to."""
    if keyword == "$ref":
        return [("$" + value[1:].replace("/", "."), target_of(path, value, root))]
    place = f"{path}.{keyword}"
    match SUBSCHEMAS.get(keyword):
        case "one":
            return [(place, value)]
        case "list":
            return [(f"{place}[{i}]", schema) for i, schema in enumerate(value)]
        case "named":
            return [(f"{place}.{name}", schema) for name, schema in value.items()]
    return []


def _normalise(path: str, node: dict) -> None:
    """Translate types, drop what restricts nothing but would mislead llguidance, and refuse what is in `REFUSED`."""
    if "$id" in node and path != "$":
        raise UnsupportedSchema(f"{path}.$id: an inner schema with a name of its own: leave $id out")
    for keyword in ("$schema", "$id", "x-guidance"):
        node.pop(keyword, None)
    if node.get("uniqueItems") is False:
        del node["uniqueItems"]
    for keyword in node:
        known = CANONICAL.get(keyword.lower().replace("_", ""), keyword)
        if known in REFUSED:
            raise UnsupportedSchema(f"{path}.{keyword}: {REFUSED[known]}")
        if known != keyword:
            raise UnsupportedSchema(f"{path}.{keyword}: write {known}")
    if "type" in node:
        types = node["type"] if isinstance(node["type"], list) else [node["type"]]
        types = [TYPES.get(one.lower(), one) if isinstance(one, str) else one for one in types]
        node["type"] = list(dict.fromkeys(types)) if isinstance(node["type"], list) else types[0]
        if None in types:
            del node["type"]


def _check_values(path: str, node: dict) -> None:
    """Refuse values that a keyword cannot have, and values that llguidance gets wrong."""
    own = {keyword: _outline(keyword, node[keyword]) for keyword in node.keys() & (VALUES | SUBSCHEMAS.keys())}
    error = best_match(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(own))
    if error:
        raise UnsupportedSchema(f"{path}{error.json_path[1:]}: {error.message}: write it as JSON Schema 2020-12 asks")
    for pattern in (*([node["pattern"]] if "pattern" in node else []), *node.get("patternProperties", ())):
        _check_pattern(path, pattern)
    if "string" in types_of([node]) and node.get("format", "date") not in FORMATS:
        raise UnsupportedSchema(f"{path}.format: {node['format']!r} is not known: leave it out, or write a pattern")
    for keyword in node.keys() & (NUMBERS | {"enum", "const"}):
        if any(abs(number) > LARGEST for number in _numbers(node[keyword])):
            raise UnsupportedSchema(f"{path}.{keyword}: numbers beyond 2**53 would be rounded: use a string")
    if "number" in types_of([node]) and _is_narrow(node):
        raise UnsupportedSchema(f"{path}: an exclusive bound less than 1 from the other one: make it inclusive")
    if node.get("minProperties", 0) > 1 + len(node.get("required", ())):
        raise UnsupportedSchema(f"{path}.minProperties: a key might be repeated to reach it: name keys in required")


def _is_narrow(node: Mapping) -> bool:
    """Whether llguidance would let an excluded bound through, as 0 where `0 < x <= 0.5`."""
    low, high = node.get("exclusiveMinimum", math.inf), node.get("exclusiveMaximum", -math.inf)
    top = min(node.get("maximum", math.inf), node.get("exclusiveMaximum", math.inf))
    bottom = max(node.get("minimum", -math.inf), node.get("exclusiveMinimum", -math.inf))
    return (low % 1 == 0 and low < top < low + 1) or (high % 1 == 0 and high - 1 < bottom < high)


def _outline(keyword: str, value: Any) -> Any:
    """A keyword's value, with `true` for each schema inside."""
    kind = SUBSCHEMAS.get(keyword)
    if kind == "one" and isinstance(value, dict):
        return True
    if kind == "list" and isinstance(value, list):
        return [True for _ in value]
    return dict.fromkeys(value, True) if kind == "named" and isinstance(value, dict) else value


def _check_pattern(path: str, pattern: str) -> None:
    """Refuse a pattern that llguidance can't have, or that Python doesn't know or reads differently, as `[[a]b]`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python warns of what other languages read differently
            re.purge()  # Python warns only where it has not the pattern in its cache
            re.compile(pattern)
    except (re.error, Warning, OverflowError) as error:
        raise UnsupportedSchema(f"{path}: pattern {pattern!r} is not portable: {error}: write it plainly") from error
    if LLMatcher.validate_grammar(f"start: {_lark({'type': 'string', 'pattern': pattern})}"):
        raise UnsupportedSchema(
            f"{path}: pattern {pattern!r}: write it without (?=…), (?!…), \\b and \\1, or leave it out"
        )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield value
