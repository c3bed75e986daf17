"""Which keywords of JSON Schema can be enforced, and with which values.

[llguidance](https://github.com/guidance-ai/llguidance) refuses most of what it cannot enforce, but ignores some
of it, or gets it wrong. Here, both are refused. Every keyword of
[JSON Schema 2020-12](https://json-schema.org/draft/2020-12) is in one of four classes:

SUBSCHEMAS  enforced, with schemas inside
VALUES      enforced, with no schema inside. Some values are refused: see `check_values`
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
- A number without bounds may have any exponent. A call with a number that is not finite is reported as malformed.
- In a pattern, `\\d` and `\\w` mean ASCII, and `\\W` all the rest, as in ECMA-262 and not as in Python's `re`.
"""

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from llguidance import LLMatcher

from minstate.chat.finite import types_of
from minstate.errors import UnsupportedSchema

SUBSCHEMAS = {  # and whether the keyword holds one schema, a list of them, or schemas by name
    "items": "one", "additionalProperties": "one",
    "allOf": "list", "anyOf": "list", "oneOf": "list", "prefixItems": "list",
    "properties": "named", "patternProperties": "named",
}  # fmt: skip
NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
COUNT = {"type": "integer", "minimum": 0}
TYPE = {"enum": ["null", "boolean", "number", "integer", "string", "array", "object"]}
VALUES: dict[str, Any] = {  # and the schemas that these fit themselves
    "type": {"anyOf": [TYPE, {"type": "array", "items": TYPE, "minItems": 1, "uniqueItems": True}]},
    "enum": {"type": "array"}, "const": True, **{key: {"type": "string"} for key in ("$ref", "pattern", "format")},
    "required": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    **{end + of: COUNT for of in ("Length", "Items", "Properties") for end in ("min", "max")},
    **{key: {"type": "number"} for key in NUMBERS}, "multipleOf": {"type": "number", "exclusiveMinimum": 0},
}  # fmt: skip
KINDS = {"one": {"type": ["object", "boolean"]}, "list": {"type": "array", "minItems": 1}, "named": {"type": "object"}}
ENFORCED = SUBSCHEMAS.keys() | VALUES.keys()
WELL_FORMED = Draft202012Validator({"properties": VALUES | {key: KINDS[kind] for key, kind in SUBSCHEMAS.items()}})
DEPENDENT = ("dependencies", "dependentRequired", "dependentSchemas")
REFUSED = {  # and what to write instead
    **dict.fromkeys(("not", "disallow"), "list what is allowed, with enum or anyOf"),
    **dict.fromkeys(("if", "then", "else", *DEPENDENT), "write the cases as anyOf"),
    "unevaluatedProperties": "write additionalProperties beside properties",
    **dict.fromkeys(("unevaluatedItems", "additionalItems"), "write items beside prefixItems"),
    **dict.fromkeys(("contains", "minContains", "maxContains"), "name what must be there in prefixItems"),
    **dict.fromkeys(("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"), "write $ref"),
    "uniqueItems": "leave it out, and check the items where they are used",
    "propertyNames": "write patternProperties, with additionalProperties: false",
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
LARGEST = 2**53  # llguidance computes with 64-bit floats, which round larger integers,
DIGITS = 12  # and it gets the last digits of longer fractions wrong


def normalise(path: str, node: dict) -> None:
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
    names = node["type"] if isinstance(node.get("type"), list) else [node.get("type")]
    if all(isinstance(name, str) for name in names):
        types = [*dict.fromkeys(TYPES.get(str(name).lower(), name) for name in names)]
        node["type"] = types if isinstance(node["type"], list) else types[0]
        if None in types:
            del node["type"]


def check_values(path: str, node: dict) -> None:
    """Refuse values that a keyword cannot have, and values that llguidance gets wrong."""
    if error := best_match(WELL_FORMED.iter_errors(node)):
        raise UnsupportedSchema(f"{path}{error.json_path[1:]}: {error.message}: write it as JSON Schema 2020-12 asks")
    for pattern in (*([node["pattern"]] if "pattern" in node else []), *node.get("patternProperties", ())):
        _check_pattern(path, pattern)
    if "string" in types_of([node]) and node.get("format", "date") not in FORMATS:
        raise UnsupportedSchema(f"{path}.format: {node['format']!r} is not known: leave it out, or write a pattern")
    for keyword in node.keys() & (NUMBERS | {"enum", "const"}):
        if any(abs(n) > LARGEST or float(f"{n:.{DIGITS}g}") != n != int(n) for n in _numbers(node[keyword])):
            raise UnsupportedSchema(f"{path}.{keyword}: a number has too many digits: write a shorter one, or a string")
    if node.get("minProperties", 0) > 1 + len(node.get("required", ())):
        raise UnsupportedSchema(f"{path}.minProperties: a key might be repeated to reach it: name keys in required")


def check_bounds(nodes: list[tuple[str, dict]]) -> None:
    """Refuse bounds of which llguidance would let one through though it is excluded, as 0 where `0 < x <= 0.5`.

    Where schemas describe the same value together, any two of their bounds may meet. So may two `multipleOf`, whose
    least common multiple llguidance computes with 32 bits.
    """
    numeric = [(path, [node]) for path, node in nodes if "number" in types_of([node])]
    beside = [len(node.keys() & ENFORCED) > 1 for _, node in nodes]
    alike = [node.keys() & {"anyOf", "oneOf", "$ref"} for _, node in nodes]
    if any("allOf" in node for _, node in nodes) or any(map(all, zip(beside, alike, strict=True))):
        if len({node["multipleOf"] for _, node in nodes if "multipleOf" in node}) > 1:
            raise UnsupportedSchema("$: several multipleOf might meet: write their least common multiple once")
        numeric.append(("$", [node for _, (node,) in numeric]))
    for path, group in numeric:
        if _is_narrow(group):
            raise UnsupportedSchema(f"{path}: an exclusive bound less than 1 from the other one: make it inclusive")


def _is_narrow(group: list[dict]) -> bool:
    def bounds(*keywords: str) -> set[float]:
        return {node[keyword] for node in group for keyword in keywords if keyword in node}

    low, high = bounds("exclusiveMinimum"), bounds("exclusiveMaximum")
    below = any(n >= 0 == n % 1 and n < top < n + 1 for n in low for top in {*bounds("maximum"), *high})
    return below or any(n <= 0 == n % 1 and n - 1 < bottom < n for n in high for bottom in {*bounds("minimum"), *low})


def _check_pattern(path: str, pattern: str) -> None:
    """Refuse a pattern that llguidance can't have, or that Python doesn't know or reads differently, as `[[a]b]`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python warns of what other languages read differently
            re.compile(pattern + "(?#)")  # a comment, since `re` remembers patterns, and warns only the first time
    except (re.error, Warning, OverflowError) as error:
        raise UnsupportedSchema(f"{path}: pattern {pattern!r} is not portable: {error}: write it plainly") from error
    if LLMatcher.validate_grammar(f"start: %json {json.dumps({'type': 'string', 'pattern': pattern})}"):
        raise UnsupportedSchema(
            f"{path}: pattern {pattern!r}: write it without (?=…), (?!…), \\b and \\1, or leave it out"
        )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield value
