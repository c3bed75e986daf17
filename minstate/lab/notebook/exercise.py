"""Exercises in notebooks: a stub that the reader fills in, and a checker of the answer."""

import inspect
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

import numpy as np

from minstate.lab.notebook.hidden import find_cases, is_right, read_arguments

UNTOUCHED = "not attempted yet: replace the ... and run this cell again"
SHOWN = 300  # characters of the arguments or of a result that a message shows


def check(answer: Callable | object, *cases: tuple[tuple, object] | str, hint: str = "") -> None:
    """Try `answer` on the cases of an exercise, and print whether it is correct.

        check(twice, "exercise-id", hint="…")             hidden cases, found by the exercise's id
        check(twice, ((1,), 2), ((4,), 8), hint="…")      cases of (arguments, expected result)

    An answer that is `...`, or a function that returns `...`, counts as not attempted, and does not fail. A wrong one
    raises AssertionError, which names the first arguments that it gets wrong, its result, and `hint`. An expected
    result is shown only if it stands in the call. Raises LookupError if there is no exercise of that id.
    """
    trials = _hidden(cases[0]) if cases and isinstance(cases[0], str) else list(map(_open, cases))
    for number, (arguments, accepts, expected) in enumerate(trials):
        call = _call(answer, arguments)  # as text, before the function can change its arguments
        try:
            got = answer(*arguments) if callable(answer) else answer
        except Exception as error:
            message = f"{call} raises {type(error).__name__}: {error}. {hint}"
            raise AssertionError(message.strip()) from error
        if got is ... and number == 0:
            print(UNTOUCHED)
            return
        if not accepts(got):
            raise AssertionError(f"{call} is {_short(repr(got))}, {expected}. {hint}".strip())
    print(f"correct, in {len(trials)} of {len(trials)} cases")


def outcome_of(call: Callable[[], None]) -> tuple[str, str]:
    """What a call of `check` says: `correct`, `wrong` or `not attempted`, and its message."""
    with redirect_stdout(StringIO()) as printed:
        try:
            call()
        except AssertionError as error:
            return "wrong", str(error)
    message = printed.getvalue().strip()
    for outcome, beginning in {"correct": "correct, in ", "not attempted": UNTOUCHED.partition(":")[0]}.items():
        if message.startswith(beginning):
            return outcome, message
    return "wrong", message


def _open(case: tuple[tuple, object]) -> tuple[tuple, Callable[[object], bool], str]:
    """Arguments, the test of a result, and what to say of a wrong one."""
    arguments, expected = case
    return arguments, lambda got: _equal(got, expected), f"not {_short(repr(expected))}"


def _hidden(exercise: str) -> list[tuple[tuple, Callable[[object], bool], str]]:
    """As `_open`, for all hidden cases of an exercise."""

    def trial(text: str, digest: str) -> tuple[tuple, Callable[[object], bool], str]:
        return read_arguments(text), lambda got: is_right(exercise, text, got, digest), "which is wrong"

    return [trial(text, digest) for text, digest in find_cases(exercise)]


def _call(answer: object, arguments: tuple) -> str:
    """The call as the reader would write it, with the names of the parameters."""
    if not callable(answer):
        return "your answer"
    try:
        bound = inspect.signature(answer).bind(*arguments).arguments
    except (TypeError, ValueError):  # a function with other parameters, or one that has no signature
        bound = {}
    named = len(bound) == len(arguments)
    shown = [f"{name}={value!r}" for name, value in bound.items()] if named else list(map(repr, arguments))
    name = getattr(answer, "__name__", "answer")
    return f"{'answer' if name == '<lambda>' else name}({_short(', '.join(shown))})"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 60]} … {text[-55:]}"


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
