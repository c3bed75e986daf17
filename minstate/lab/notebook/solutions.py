"""Copies of the notebooks with their exercises solved, which the tests run in place of the originals.

    python -m minstate.lab.notebook.solutions

A file in `notebooks/solutions/` belongs to the notebook of its name. It has a section for each exercise, under a line
`# %% CELL-ID: title`, which names the cell with the exercise's stub and checker. In a solved copy the section follows
that cell as a cell of its own, with the same call of `check`, and fails unless the answer is correct. All other cells
are those of the original, outputs included, so a test that runs the copy and compares outputs also tests the original.

A section of an exercise with hidden cases, `check(answer, "CELL-ID")`, also has a function `cases(random)`, which
yields tuples of arguments. `minstate.lab.notebook.cases` reads it; a solved copy is without it.
"""

import ast
import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from textwrap import indent

import nbformat
from nbformat import NotebookNode

from minstate.lab.paths import OUT, clone_for

SOLVED = OUT / "solved"
SOLUTION = """{solution}


from minstate.lab.notebook.solutions import must_be_correct

with must_be_correct():
{check}"""


@contextmanager
def must_be_correct() -> Iterator[None]:
    """Around a call of `check`: raises AssertionError unless the answer is correct, or if it was not attempted."""
    with redirect_stdout(StringIO()) as printed:
        yield
    assert printed.getvalue().startswith("correct, in "), printed.getvalue()


def exercises(notebook: NotebookNode) -> dict[str, str]:
    """The source of the calls of `check`, by the id of their cell."""
    found: dict[str, list[str]] = {}
    for cell in notebook.cells:
        for call in calls_of_check(cell):
            found.setdefault(cell.id, []).append(ast.get_source_segment(cell.source, call))
    return {cell_id: "\n".join(calls) for cell_id, calls in found.items()}


def calls_of_check(cell: NotebookNode) -> list[ast.Call]:
    """The calls of `check` that are statements of their own in a cell. Raises SyntaxError if it cannot be read."""
    if cell.cell_type != "code" or "check(" not in cell.source:
        return []
    calls = [each.value for each in ast.parse(cell.source).body if isinstance(each, ast.Expr)]
    calls = [each for each in calls if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)]
    return [each for each in calls if each.func.id == "check"]


def hidden_exercise(call: ast.Call) -> str | None:
    """The exercise's id in a call `check(answer, "ID")`; None if the call has its cases with it."""
    second = call.args[1] if len(call.args) > 1 else None
    return second.value if isinstance(second, ast.Constant) and isinstance(second.value, str) else None


def without_cases(section: str) -> str:
    """A section of a file of solutions without its function `cases`."""
    lines = section.splitlines()
    for node in reversed(ast.parse(section).body):
        if isinstance(node, ast.FunctionDef) and node.name == "cases":
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip()


def read_solutions(path: Path) -> dict[str, str]:
    """The sections of a file of solutions, by the id of the cell that they belong to."""
    _, *sections = re.split(r"^# %% ", path.read_text(), flags=re.MULTILINE)
    titles, bodies = zip(*(section.split("\n", 1) for section in sections), strict=True)
    ids = [title.split(":")[0] for title in titles]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path} has two sections for one cell, among {', '.join(ids)}")
    return {cell_id: body.strip() for cell_id, body in zip(ids, bodies, strict=True)}


def chdir_cell(folder: str) -> NotebookNode:
    """A first cell for a copy of a notebook, so that the copy runs in `folder`, wherever the copy lies."""
    return nbformat.v4.new_code_cell(f"import os\n\nos.chdir({folder!r})", id="where-the-original-runs")


def solve(notebook: NotebookNode, solutions: dict[str, str], folder: str = ".") -> NotebookNode:
    """A copy of `notebook` with its solutions, which runs in `folder`, wherever the copy lies.

    Raises ValueError if an exercise has no solution, or a solution no exercise.
    """
    asked = exercises(notebook)
    if odd := asked.keys() ^ solutions.keys():
        names = ", ".join(sorted(odd))
        raise ValueError(f"an exercise without a solution, or a solution without its exercise: {names}")
    cells = [chdir_cell(folder)]
    for cell in copy.deepcopy(notebook.cells):
        cells.append(cell)
        if cell.id in asked:
            solution = without_cases(solutions[cell.id])
            source = SOLUTION.format(solution=solution, check=indent(asked[cell.id], "    "))
            cells.append(nbformat.v4.new_code_cell(source, id=f"{cell.id}-solution"))
    solved = copy.deepcopy(notebook)
    solved.cells = cells
    return solved


def write_solved(source: Path, out: Path) -> int:
    """Write the solved copy of the notebook `source` into `out`. Returns the number of its exercises."""
    notebook, answers = nbformat.read(source, as_version=4), source.parent / "solutions" / f"{source.stem}.py"
    solutions = read_solutions(answers) if answers.exists() else {}
    try:
        solved = solve(notebook, solutions, os.path.relpath(source.parent, out))
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    nbformat.write(solved, out / source.name)
    return len(solutions)


def main() -> None:
    """Write a solved copy of every notebook of the course into `out/solved/`."""
    clone = clone_for("lab.notebook.solutions")
    SOLVED.mkdir(parents=True, exist_ok=True)
    for stale in SOLVED.glob("*.ipynb"):
        stale.unlink()
    for source in sorted((clone / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        count = write_solved(source, SOLVED)
        print(f"{(SOLVED / source.name).relative_to(clone)}: {count} exercises solved")


if __name__ == "__main__":
    main()
