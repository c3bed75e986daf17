"""Exercises in notebooks: a stub to fill in, and a checker that says how far one has come."""

from collections.abc import Callable

import numpy as np


def check(answer: Callable | None, *cases: tuple[tuple, object], hint: str = "") -> None:
    """Try `answer` on `cases` of (arguments, expected result), and print what came of it.

    An answer that is `...`, or a function that returns `...`, was not attempted: that is no failure. A wrong one raises
    AssertionError, which shows the first case that it gets wrong, and `hint`.
    """
    for case, (arguments, expected) in enumerate(cases):
        got = answer(*arguments) if callable(answer) else answer
        if got is ... and case == 0:
            print("not attempted yet: replace the ... and run this cell again")
            return
        shown = ", ".join(map(repr, arguments))
        assert _equal(got, expected), f"for ({shown}) you give {got!r}, but it is {expected!r}. {hint}"
    print(f"correct, in {len(cases)} of {len(cases)} cases")


def _equal(got: object, expected: object) -> bool:
    """Equal, numbers and lists of numbers up to rounding."""
    if got is None or expected is None:  # which numpy would take for a number that equals nothing
        return got is expected
    try:
        got_numbers, numbers = np.asarray(got, dtype=float), np.asarray(expected, dtype=float)
    except (TypeError, ValueError):
        return got == expected
    return got_numbers.shape == numbers.shape and np.allclose(got_numbers, numbers, rtol=1e-6, atol=1e-12)
