"""Hidden cases of exercises: arguments, and a digest of the right result in place of the result itself.

`notebooks/cases/NN_….json` belongs to the notebook of its name and has, by the id of each exercise, a list of pairs
(arguments, digest). The arguments are a Python literal, which keeps tuples and `None` as they are. The digest is salted
with the exercise's id and with the arguments, so equal results have different digests. `minstate.lab.notebook.cases`
writes the files.
"""

import ast
import hashlib
import json
import math
from pathlib import Path

from minstate.lab.paths import NOTEBOOKS

CASES = NOTEBOOKS / "cases"
WHOLE = 1e-12  # relative: a number this close to a whole one is that whole number
LARGEST = 1e15  # from here on a float cannot tell whole numbers from others, so only its first digits count


def canonical(result: object) -> str:
    """The result as text. Equal results have equal texts: 3 and 3.0, a list and a tuple, numbers up to rounding.

    Whole numbers count with all their digits, others with six. Raises TypeError for a result of another kind.
    """
    if hasattr(result, "tolist"):  # an array of NumPy or a tensor
        result = result.tolist()
    if result is None or isinstance(result, str):
        return json.dumps(result)
    if isinstance(result, int | float):
        return _number(result)
    if isinstance(result, list | tuple | range):
        return f"[{', '.join(map(canonical, result))}]"
    if isinstance(result, set | frozenset):
        return f"set[{', '.join(sorted(map(canonical, result)))}]"
    if isinstance(result, dict):
        return f"{{{', '.join(sorted(f'{canonical(k)}: {canonical(v)}' for k, v in result.items()))}}}"
    raise TypeError(f"{type(result).__name__} is not a number, a string, None, or a list, set or dict of these")


def _number(number: float) -> str:
    if not math.isfinite(number):
        return str(float(number))
    if isinstance(number, int) or abs(number) < LARGEST:
        whole = round(number)
        if abs(number - whole) <= WHOLE * max(1.0, abs(number)) and abs(whole) < LARGEST:
            return str(whole)
    return f"{number:.5e}"


def digest(exercise: str, arguments: str, result: object) -> str:
    """The salted digest of a result. Raises TypeError as `canonical` does."""
    text = "\n".join((exercise, arguments, canonical(result)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_right(exercise: str, arguments: str, result: object, expected: str) -> bool:
    """Whether `result` has the digest `expected`."""
    try:
        return digest(exercise, arguments, result) == expected
    except (TypeError, OverflowError):  # another kind of result, or an integer beyond all floats
        return False


def find_cases(exercise: str, folder: Path = CASES) -> list[tuple[str, str]]:
    """The (arguments, digest) pairs of an exercise, from whichever notebook's file has it.

    Raises LookupError if no file has it.
    """
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if exercise in found:
            return [(arguments, expected) for arguments, expected in found[exercise]]
    raise LookupError(f"no file in {folder} has cases of the exercise {exercise!r}")


def read_arguments(arguments: str) -> tuple:
    """The tuple of arguments that the text stands for, made anew each time: a function may change its arguments."""
    return ast.literal_eval(arguments)
