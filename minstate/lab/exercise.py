"""Exercises in notebooks: a stub to fill in, and a checker that says how far one has come."""

import math
from collections.abc import Callable


def check(answer: Callable | None, *cases: tuple[tuple, object], hint: str = "") -> None:
    """Try `answer` on `cases` of (arguments, expected result), and print what came of it.

    An answer that is `...`, or a function that returns `...`, was not attempted: that is no failure. A wrong one raises
    AssertionError, which shows the first case that it gets wrong, and `hint`.
    """
    for arguments, expected in cases:
        got = answer(*arguments) if callable(answer) else answer
        if got is ...:
            print("not attempted yet: replace the ... and run this cell again")
            return
        shown = ", ".join(map(repr, arguments))
        assert _equal(got, expected), f"for ({shown}) you give {got!r}, but it is {expected!r}. {hint}"
    print(f"correct, in {len(cases)} of {len(cases)} cases")


def _equal(got: object, expected: object) -> bool:
    if isinstance(got, int | float) and isinstance(expected, int | float):
        return math.isclose(got, expected, rel_tol=1e-6)
    return got == expected
