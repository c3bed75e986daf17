"""How a JSON schema is handed to llguidance, or refused before a reply begins.

A schema is read as [JSON Schema 2020-12](https://json-schema.org/draft/2020-12), whatever its `$schema` says: every
schema inside it that can be reached is checked (`keywords` says for what), then whether values come to an end
(`finite`), and last whether llguidance can compile it. A refusal names the keyword, its place as a JSON path, and a way
out.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from minstate.chat.finite import check_that_values_end, target_of
from minstate.chat.keywords import SUBSCHEMAS, check_bounds, check_values, normalise
from minstate.errors import BadValue, UnsupportedSchema

SEPARATORS = (", ", ": ")  # between items, and behind a key, as `json.dumps` writes them
PLAIN = {"json_allowed_escapes": 'nrbtf\\"'}  # no `\u001b`, so such control characters can't be generated
LONGEST = 2**18  # letters of a schema, which take about a second to compile
DEEPEST = 100  # from some hundreds on, llguidance overflows its stack, which ends the process


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
    if len(text) > LONGEST:
        raise UnsupportedSchema(f"{what}: it has {len(text):,} letters, more than {LONGEST:,}")
    grammar, problem = _prepared(text, arguments, separators)
    if problem:
        raise UnsupportedSchema(f"{what}: {problem}")
    return grammar


@lru_cache(maxsize=512)
def _prepared(text: str, arguments: bool, separators: tuple[str, str] | None) -> tuple[str, str]:
    """The grammar of a schema, and what is wrong with the schema; one of them is ""."""
    try:
        root = json.loads(text, parse_float=_number)  # a length may be written as 2.0
        nodes = _read(root)
        check_bounds([*nodes.values()])
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


def _number(text: str) -> float:
    return int(float(text)) if float(text).is_integer() else float(text)


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


def with_own_types(schema: Any) -> Any:
    """The schema with its types by their names in JSON Schema. Of one that cannot be read, only its dialect goes."""
    text = json.dumps(schema)
    with suppress(UnsupportedSchema, RecursionError):
        _read(own := json.loads(text))
        return own
    return json.loads(text, object_hook=lambda node: {key: node[key] for key in node if key not in ("$schema", "$id")})


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
            normalise(path, node)
            check_values(path, node)
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
