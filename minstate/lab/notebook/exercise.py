"""Exercises in notebooks: a stub that the reader fills in, and a checker of the answer."""

from collections.abc import Callable

import numpy as np


def check(answer: Callable | None, *cases: tuple[tuple, object], hint: str = "") -> None:
    """Try `answer` on `cases` of (arguments, expected result), and print whether it is correct.

    An answer that is `...`, or a function that returns `...`, counts as not attempted, and does not fail. A wrong one
    raises AssertionError, with the first case that it gets wrong, and `hint`.
    """
    for case, (arguments, expected) in enumerate(cases):
        got = answer(*arguments) if callable(answer) else answer
        if got is ... and case == 0:
            print("not attempted yet: replace the ... and run this cell again")
            return
        shown = ", ".join(map(repr, arguments))
        assert _equal(got, expected), f"for ({shown}) your answer is {got!r}, not {expected!r}. {hint}"
    print(f"correct, in {len(cases)} of {len(cases)} cases")


def _equal(got: object, expected: object) -> bool:
    """Whether both are equal; numbers and lists of numbers, up to rounding."""
    if got is None or expected is None:  # numpy would read None as NaN, which equals nothing
        return got is expected
    if isinstance(got, list | tuple) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(_equal, got, expected))
    try:
        got_numbers, numbers = np.asarray(got, dtype=float), np.asarray(expected, dtype=float)
    except (TypeError, ValueError):
        return got == expected
    return got_numbers.shape == numbers.shape and np.allclose(got_numbers, numbers, rtol=1e-6, atol=1e-12)
