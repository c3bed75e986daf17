"""Write the hidden cases of the exercises, from their solutions.

    python -m minstate.lab.notebook.cases                # all files of notebooks/cases
    python -m minstate.lab.notebook.cases 02 _build_     # those whose names contain one of these
    python -m minstate.lab.notebook.cases --check        # compares, and writes nothing

For each exercise with a call `check(answer, "CELL-ID")`, its section in `notebooks/solutions/` has the solution and a
function `cases(random)`, which yields tuples of arguments (numbers, strings, None, and lists, tuples and dicts of
these); `random` is `random.Random(0)`. The solution gives the results, of which only digests are written.

The names that a section may use: those of the notebook's first code cell, of its own exercise's cell, and of the
sections before it. All of this runs in one namespace, in the folder of the notebook.
"""

import ast
import json
import random
import sys
from contextlib import chdir
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minstate.lab.notebook.hidden import canonical, digest, read_arguments
from minstate.lab.notebook.solutions import calls_of_check, hidden_exercise, read_solutions
from minstate.lab.paths import clone_for

FEWEST = 8  # cases of an exercise, unless its function has no parameters
NUDGES = (1 - 1e-11, 1 + 1e-11)  # another order of arithmetic may change a result by less than this


def cases_of(notebook: NotebookNode, solutions: dict[str, str]) -> dict[str, list[list[str]]]:
    """(arguments, digest) pairs by exercise. Raises ValueError, which names the exercise and what is wrong with it."""
    names: dict[str, object] = {"__name__": "__main__"}
    found: dict[str, list[list[str]]] = {}
    for cell in notebook.cells:
        for call in calls_of_check(cell):
            exercise = hidden_exercise(call)
            if exercise is None:
                continue
            if exercise != cell.id:
                raise ValueError(f"{cell.id}: its call of check names the exercise {exercise!r}; name the cell's id")
            if not found:
                _run(_first_code_cell(notebook), names, "the notebook's first cell")
            found[exercise] = _cases(cell, call, solutions.get(exercise, ""), names)
    return found


def _cases(cell: NotebookNode, call: ast.Call, section: str, names: dict) -> list[list[str]]:
    """The pairs of one exercise; `names` is the namespace that all exercises of a notebook share."""
    names.pop("cases", None)
    _run(_without_check(cell.source), names, f"{cell.id}: the exercise's cell")
    _run(section, names, f"{cell.id}: the section of its solution")
    if "cases" not in names:
        raise ValueError(f"{cell.id}: its section has no function cases(random)")
    solution = eval(compile(ast.Expression(call.args[0]), cell.id, "eval"), names)
    tuples = [_as_text(cell.id, arguments) for arguments in names["cases"](random.Random(0))]
    tuples = list(dict.fromkeys(tuples))  # a case that comes twice tells nothing
    if len(tuples) < FEWEST and tuples != ["()"]:
        raise ValueError(f"{cell.id}: {len(tuples)} different cases, and at least {FEWEST} are needed")
    pairs = []
    for text in tuples:
        result = solution(*read_arguments(text)) if callable(solution) else solution
        if result is ...:
            raise ValueError(f"{cell.id}: the solution returns ... for {text}")
        if any(canonical(_nudged(result, by)) != canonical(result) for by in NUDGES):
            raise ValueError(
                f"{cell.id}: for {text} the result {result!r} lies where rounding decides; change the case"
            )
        pairs.append([text, digest(cell.id, text, result)])
    return pairs


def _as_text(exercise: str, arguments: object) -> str:
    """The arguments as a literal that reads back as the same."""
    text = repr(arguments)
    try:
        same = isinstance(arguments, tuple) and read_arguments(text) == arguments
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise ValueError(
            f"{exercise}: cases(random) yields {text}, which is no tuple of plain values, such as (1, [2])"
        )
    return text


def _nudged(result: object, by: float) -> object:
    """The result with each float that is not a whole number multiplied by `by`."""
    result = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(result, float):
        return result if result.is_integer() else result * by
    if isinstance(result, list | tuple):
        return [_nudged(each, by) for each in result]
    if isinstance(result, dict):
        return {key: _nudged(value, by) for key, value in result.items()}
    return result


def _first_code_cell(notebook: NotebookNode) -> str:
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def _without_check(source: str) -> str:
    """A cell's source without its calls of `check`."""
    body = [each for each in ast.parse(source).body if not _is_check(each)]
    return "\n".join(ast.get_source_segment(source, each) for each in body)


def _is_check(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"


def _run(source: str, names: dict, what: str) -> None:
    try:
        exec(compile(source, f"<{what}>", "exec"), names)
    except Exception as error:
        raise ValueError(f"{what} does not run by itself: {type(error).__name__}: {error}") from error


def text_of(path: Path) -> str:
    """What `notebooks/cases/` has to hold for the notebook at `path`; empty if it has no hidden cases."""
    answers = path.parent / "solutions" / f"{path.stem}.py"
    solutions = read_solutions(answers) if answers.exists() else {}
    with chdir(path.parent):
        try:
            found = cases_of(nbformat.read(path.name, as_version=4), solutions)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
    return _as_json(found) if found else ""


def _as_json(found: dict[str, list[list[str]]]) -> str:
    """One case a line, so that a changed case is a changed line."""
    rows = {key: ",\n".join(f"  {json.dumps(each, ensure_ascii=False)}" for each in found[key]) for key in found}
    return "{\n" + ",\n".join(f"{json.dumps(key)}: [\n{lines}\n]" for key, lines in rows.items()) + "\n}\n"


def main(arguments: list[str]) -> int:
    """Write the cases of the course's notebooks, or of those whose names contain one of the words in `arguments`.

    With `--check`, nothing is written, and the exit status is 1 if a file is not as it would be written.
    """
    folder, words = clone_for("lab.notebook.cases") / "notebooks", [each for each in arguments if each != "--check"]
    stale = 0
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        if words and not any(word in path.name for word in words):
            continue
        text, target = text_of(path.resolve()), folder / "cases" / f"{path.stem}.json"
        stored = target.read_text(encoding="utf-8") if target.exists() else ""
        stale += text != stored
        if text and "--check" not in arguments:
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
        elif "--check" not in arguments:
            target.unlink(missing_ok=True)
        same = "" if text == stored else " (changed)"
        print(f"{target.relative_to(folder)}: {len(json.loads(text or '{}'))} exercises with hidden cases{same}")
    return int(stale > 0 and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
