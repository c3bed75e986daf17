"""Whether the values of a schema come to an end.

A schema may refer to itself with `$ref`. As long as some case does without the reference, a value can end: where the
property is optional, the array may be empty, or `anyOf` has another case. If every value needs another one inside,
no reply can end: `{"$ref": "#"}`, or an object that requires an object of its own kind.
"""

import json
from collections.abc import Iterator
from itertools import islice, product
from typing import Any
from urllib.parse import unquote

from llguidance import LLMatcher

from minstate.errors import UnsupportedSchema

ALL_TYPES = {"null", "boolean", "number", "integer", "string", "array", "object"}
MOST_CASES = 1000


def check_that_values_end(nodes: dict[int, tuple[str, dict]], root: Any) -> None:
    """Refuse a schema inside `root` that only endless values fit. `nodes` holds all schemas: by id, path and itself.

    A least fixpoint: a schema has a finite value if one can be built from schemas that are known to have one.
    """
    known: set[int] = set()
    for path, node in nodes.values():
        _check_no_circle(path, node, root, (), known)
    known, found = set(), set(nodes)
    while found:
        found = {i for i in nodes.keys() - known if _ends(nodes[i][1], known, root)}
        known |= found
    for i, (path, _) in nodes.items():
        if i not in known:
            raise UnsupportedSchema(f"{path}: no finite value fits: make a property optional, or add a case with anyOf")


def _check_no_circle(path: str, node: Any, root: Any, above: tuple[int, ...], checked: set[int]) -> None:
    """Refuse a `$ref` that leads back to where it is, with no property and no item in between."""
    if id(node) in above:
        raise UnsupportedSchema(f"{path}: $ref leads back to where it is: leave it out, or refer from a property")
    if id(node) not in checked:
        for inner in [case for cases in _together(node, root) for case in cases]:
            _check_no_circle(path, inner, root, (*above, id(node)), checked)
        checked.add(id(node))


def _together(node: Any, root: Any) -> list[list[Any]]:
    """The schemas that describe the same value as `node`: one of each list."""
    if isinstance(node, bool):
        return []
    target = [[target_of("$", node["$ref"], root)]] if "$ref" in node else []
    cases = [node[keyword] for keyword in ("anyOf", "oneOf") if keyword in node]
    return [*target, *([part] for part in node.get("allOf", ())), *cases]


def _ends(node: dict, known: set[int], root: Any) -> bool:
    """Whether a finite value fits, given the ids of schemas for which that is known. Gives up after many cases."""
    return any(_parts_end(parts, known) for parts in islice(_alternatives([node], root), MOST_CASES))


def _alternatives(nodes: list[Any], root: Any) -> Iterator[list[dict]]:
    """All parts of the schemas that describe one value, `$ref` and `allOf` resolved, for each choice of `anyOf`."""
    if not nodes:
        yield []
    elif nodes[0] is not False:
        for choice in product(*_together(nodes[0], root)):
            for parts in _alternatives([*choice, *nodes[1:]], root):
                yield parts if nodes[0] is True else [nodes[0], *parts]


def types_of(parts: list[dict]) -> set[str]:
    """The types that a value may have which fits all of `parts`."""
    types = ALL_TYPES
    for part in parts:
        own = part.get("type", ALL_TYPES)
        own = {own} if isinstance(own, str) else set(own)
        types = types & (own | {"integer"} if "number" in own else own)
    return types


def _parts_end(parts: list[dict], known: set[int]) -> bool:
    types = types_of(parts)
    if types - {"array", "object"} or any({"enum", "const"} & part.keys() for part in parts):
        return bool(types)
    return ("array" in types and _array_ends(parts, known)) or ("object" in types and _object_ends(parts, known))


def _array_ends(parts: list[dict], known: set[int]) -> bool:
    shortest = max(part.get("minItems", 0) for part in parts)
    for part in parts:
        first = part.get("prefixItems", [])
        needed = first[:shortest] + ([part["items"]] if shortest > len(first) and "items" in part else [])
        if not all(_is_known(schema, known) for schema in needed):
            return False
    return True


def _object_ends(parts: list[dict], known: set[int]) -> bool:
    required = {name for part in parts for name in part.get("required", ())}
    return all(_is_known(schema, known) for part in parts for name in required for schema in _of_property(part, name))


def _of_property(part: dict, name: str) -> list[Any]:
    """The schemas that a part of an object's schema has for the property of a name."""
    found = [schema for pattern, schema in part.get("patternProperties", {}).items() if finds(pattern, name)]
    found += [part["properties"][name]] if name in part.get("properties", {}) else []
    return found or [part.get("additionalProperties", True)]


def finds(pattern: str, text: str) -> bool:
    """Whether a pattern occurs in a text, in linear time. If llguidance cannot say, it is taken to."""
    schema = {"type": "string", "pattern": pattern, "const": text}
    return "Unsatisfiable" not in LLMatcher.validate_grammar(f"start: %json {json.dumps(schema)}")


def _is_known(schema: Any, known: set[int]) -> bool:
    return schema is True or id(schema) in known


def target_of(path: str, reference: str, root: Any) -> Any:
    """What a `$ref` names inside `root`, by a JSON pointer."""
    place = root
    if reference != "#" and not reference.startswith("#/"):
        raise UnsupportedSchema(f"{path}.$ref: {reference!r} is not of the form #/$defs/NAME: copy it there")
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        try:
            place = place[int(name) if isinstance(place, list) else name]
        except (LookupError, ValueError, TypeError) as error:
            raise UnsupportedSchema(f"{path}.$ref: nothing is at {reference!r}: define it in $defs") from error
    return place
