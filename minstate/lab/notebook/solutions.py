"""Copies of the notebooks with their exercises solved, which the tests run in place of the originals.

    python -m minstate.lab.notebook.solutions

A file in `notebooks/solutions/` belongs to the notebook of its name. It has a section for each exercise, under a line
`# %% CELL-ID: title`, which names the cell with the exercise's stub and checker. In a solved copy the section follows
that cell as a cell of its own, with the same call of `check`, and fails unless the answer is correct. All other cells
are those of the original, outputs included, so a test that runs the copy and compares outputs also tests the original.
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
        if cell.cell_type != "code" or "check(" not in cell.source:
            continue
        for statement in ast.parse(cell.source).body:
            call = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check":
                found.setdefault(cell.id, []).append(ast.get_source_segment(cell.source, call))
    return {cell_id: "\n".join(calls) for cell_id, calls in found.items()}


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
            source = SOLUTION.format(solution=solutions[cell.id], check=indent(asked[cell.id], "    "))
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
