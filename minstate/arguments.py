"""What callers pass is checked here, before anything is done with it.

Where a number is accepted, a scalar of NumPy or torch is accepted too; a bool is not. What is stored is always Python's
own `int` or `float`.
"""

import math
import operator
import sys
from collections.abc import Iterable
from numbers import Real

from minstate.errors import BadMessage, BadValue


def plain(value):
    """A scalar of NumPy or torch as a Python number, an array as a list; any other value as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def whole_number(name: str, value, lowest: int = 0, highest: float = math.inf, error=BadValue) -> int:
    """`value` as an int. Raises `error` unless it is a whole number from `lowest` to `highest`."""
    number = plain(value)
    if isinstance(number, bool) or not hasattr(number, "__index__") or not lowest <= number <= highest:
        raise error(f"{name} must be a whole number from {lowest} to {highest}, not {value!r}")
    return operator.index(number)


def real_number(name: str, value, lowest: float = 0, highest: float = math.inf, above: bool = False) -> float:
    """`value` as a float. Raises `BadValue` unless it is a number from `lowest` to `highest`, infinity included.

    above  whether `lowest` itself is refused
    """
    number = plain(value)
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if is_number and lowest <= number <= highest and not (above and number == lowest):
        return math.inf if number > sys.float_info.max else float(number)
    raise BadValue(f"{name} must be a number {'above' if above else 'from'} {lowest} up to {highest}, not {value!r}")


def token_ids_of(name: str, ids: Iterable[int], vocab_size: float = math.inf, error=BadMessage) -> list[int]:
    """The ids as a list. Raises `error` if one of them is not a token id, or if there is nothing to iterate over."""
    each, last = f"each id in {name}", vocab_size - 1
    try:
        return [i if type(i) is int and 0 <= i <= last else whole_number(each, i, 0, last, error) for i in plain(ids)]
    except TypeError as problem:
        raise error(f"{name} must be whole numbers: {problem}") from problem


def require_embedded(ids: Iterable[int], tokenizer, vocab_size: int) -> None:
    """Raises `BadMessage` at a token for which the model has no embedding: a tokenizer may know more tokens."""
    for i in ids:
        if i >= vocab_size:
            raise BadMessage(f"the input holds {tokenizer.decode([i])!r}, token {i}; the model has {vocab_size} tokens")
