"""What is wrong with a value that should fit a JSON schema, whoever wrote the two.

[jsonschema](https://python-jsonschema.readthedocs.io) says it best, but trusts the schema. A `$ref` makes it fetch a
URL or read a file. A pattern can take exponential time in Python's `re`, and so can many schemas that refer to each
other. Here, nothing is fetched, and the work is bounded: llguidance matches patterns in linear time, and some keywords
are not checked. (Where a reply is held to its schema, it fits them already.)
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import best_match
from referencing import Registry

from minstate.chat.finite import finds

WORK = 10**8  # letters to look at: a step may look at the whole value, and put it into a message
UNCHECKED = ("format", "uniqueItems", "patternProperties", "unevaluatedItems", "unevaluatedProperties")


def misfit(value: Any, schema: Any, size: int) -> str:
    """What is wrong with a value of `size` letters; "" if it fits the schema, or if that takes too long to find out.

    May raise anything if the schema is wrong.
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
