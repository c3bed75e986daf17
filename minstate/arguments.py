"""What callers say is checked here, before anything is done with it."""

import operator
from collections.abc import Iterable

from minstate.errors import BadMessage, BadValue


def require_positive(name: str, value) -> None:
    """Raises `BadValue` unless it is a whole number from 1 up."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise BadValue(f"{name} must be a whole number from 1 up, not {value!r}")


def valid_ids(ids: Iterable[int], vocabulary: int, what: str) -> list[int]:
    """The token ids as a list. Raises `BadMessage` if one of them is none; `what` names them there."""
    try:
        ids = [operator.index(i) for i in ids]
    except TypeError as error:
        raise BadMessage(f"{what} must be whole numbers: {error}") from error
    for i in ids:
        if not 0 <= i < vocabulary:
            raise BadMessage(f"{what} contains {i}; the vocabulary has the ids 0 to {vocabulary - 1}")
    return ids
