"""What callers pass is checked here, before anything is done with it."""

import operator
from collections.abc import Iterable

from minstate.errors import BadMessage, BadValue


def require_positive(name: str, value) -> None:
    """Raises `BadValue` unless `value` is a whole number from 1 up."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise BadValue(f"{name} must be a whole number from 1 up, not {value!r}")


def whole_numbers(name: str, values: Iterable[int]) -> list[int]:
    """The values as a list. Raises `BadMessage` if one of them is not a whole number."""
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise BadMessage(f"{name} must be whole numbers: {error}") from error


def token_ids_of(name: str, ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list. Raises `BadMessage` if one of them is not a token id."""
    ids = whole_numbers(name, ids)
    for i in ids:
        if not 0 <= i < vocab_size:
            raise BadMessage(f"{name} contains {i}; the vocabulary has the ids 0 to {vocab_size - 1}")
    return ids


def require_embedded(ids: Iterable[int], tokenizer, vocab_size: int) -> None:
    """Raises `BadMessage` at a token for which the model has no embedding: a tokenizer may know more tokens."""
    for i in ids:
        if i >= vocab_size:
            raise BadMessage(f"the input holds {tokenizer.decode([i])!r}, token {i}; the model has {vocab_size} tokens")
