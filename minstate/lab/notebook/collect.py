"""Check the exercises in notebooks that students have handed in, and write a table of the results.

    python -m minstate.lab.notebook.collect handed_in                  # into handed_in/results.csv
    python -m minstate.lab.notebook.collect handed_in --seconds 120    # how long a student's cell may run (60)

`handed_in` has a folder for each student, with notebooks of the course in it, at any depth. A row of the table is one
exercise of one student: `correct`, `wrong`, `not attempted` or `error`, and a remark, such as the arguments for which
the answer is wrong, or the exception that the cell raised.

Each notebook runs in a kernel of its own, in the folder of the original; one that builds `my_engine.py`, in a copy of
the folder that it lies in, with the student's file. Of its cells these run: the first one, as the original has it;
exercises; and cells that the student has added. If the cases of an exercise stand in its call of `check`, all cells of
the notebook run, since such cases may use what came before. The call of `check` is always the original's. The code is
the student's: run it where it can do no harm, such as in a container without a network.
"""

import argparse
import ast
import csv
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook
from tqdm import tqdm

from minstate.lab.notebook.solutions import calls_of_check, exercises, hidden_exercise
from minstate.lab.paths import clone_for

COLUMNS = ("student", "notebook", "exercise", "result", "remark")
MISSING = ("not attempted", "its cell is not in the notebook")
VERDICT = """import json as _json
from minstate.lab.notebook.exercise import outcome_of as _outcome_of
print("\\n" + {mark!r} + _json.dumps(_outcome_of(lambda: {call})))"""


@dataclass(frozen=True)
class Piece:
    """Source that runs as one cell; `exercise` is the one that it answers, and then `call` is the call of `check`."""

    source: str
    from_student: bool
    exercise: str | None = None
    call: str = ""


def pieces(original: NotebookNode, handed_in: NotebookNode) -> list[Piece]:
    """What of a notebook that was handed in has to run, in order."""
    asked, known = exercises(original), {cell.id: cell for cell in original.cells}
    code = [cell for cell in original.cells if cell.cell_type == "code"]
    all_run = any(hidden_exercise(call) is None for cell in code for call in calls_of_check(cell))
    found, seen = [Piece(code[0].source, False)], set()
    for cell in handed_in.cells:
        if cell.cell_type != "code" or cell.id == code[0].id:
            continue
        exercise = _exercise_in(cell, asked)
        if exercise and exercise not in seen:
            seen.add(exercise)
            found.append(Piece(cell.source, True, exercise, asked[exercise]))
        elif cell.id not in known:
            found.append(Piece(cell.source, True))
        elif all_run and not exercise:
            found.append(Piece(known[cell.id].source, False))
    return found


def _exercise_in(cell: NotebookNode, asked: dict[str, str]) -> str | None:
    """The exercise in a cell, by the cell's id, or by the id in its call of `check`: some editors change cells' ids."""
    if cell.id in asked:
        return cell.id
    if "check(" not in cell.source:
        return None
    return next((name for name in asked if f'"{name}"' in cell.source or f"'{name}'" in cell.source), None)


def without_check(source: str) -> str:
    """A cell's source without its calls of `check`. Raises SyntaxError if it cannot be read."""
    lines = source.splitlines()
    for call in reversed(calls_of_check(new_code_cell(source))):
        del lines[call.lineno - 1 : call.end_lineno]
    ast.parse(source)
    return "\n".join(lines)


def results_of(
    original: NotebookNode, handed_in: NotebookNode, folder: Path, seconds: int
) -> dict[str, tuple[str, str]]:
    """(result, remark) for each exercise of `original`. Cells run in `folder`, the student's for at most `seconds`."""
    todo, results = pieces(original, handed_in), {}
    while any(piece.exercise not in (None, *results) for piece in todo):
        todo = _run(todo, folder, seconds, results)
    return {name: results.get(name, MISSING) for name in exercises(original)}


def _run(todo: list[Piece], folder: Path, seconds: int, results: dict[str, tuple[str, str]]) -> list[Piece]:
    """Run the pieces in a new kernel. Returns those that another one has to run, if it did not survive one of them."""
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(new_notebook(), allow_errors=True, resources=resources)
    with client.setup_kernel():
        for place, piece in enumerate(todo):
            client.timeout = seconds if piece.from_student else None
            try:
                result = _result(client, piece)
            except (CellTimeoutError, DeadKernelError) as error:
                late = isinstance(error, CellTimeoutError)
                remark = f"ran for more than {seconds} seconds" if late else "the kernel died"
                if piece.exercise:
                    results[piece.exercise] = ("error", remark)
                return todo[:place] + todo[place + 1 :]
            if piece.exercise:
                results[piece.exercise] = result
    return []


def _result(client: NotebookClient, piece: Piece) -> tuple[str, str]:
    """Run one piece. The result and the remark mean something if it is an exercise."""
    mark = secrets.token_hex(8)  # so that nothing that a student prints is taken for a verdict
    try:
        source = without_check(piece.source) if piece.exercise else piece.source
    except SyntaxError as error:
        return "error", f"SyntaxError: {error}"
    if error := _error_in(_outputs(client, source)):
        return "error", error
    result = ("correct", "")
    for call in map(ast.unparse, ast.parse(piece.call).body):
        outputs = _outputs(client, VERDICT.format(call=call, mark=mark))
        printed = "".join(each.text for each in outputs if each.output_type == "stream")
        verdicts = [line.removeprefix(mark) for line in printed.splitlines() if line.startswith(mark)]
        if not verdicts:
            return "error", _error_in(outputs) or "no verdict"
        outcome, message = json.loads(verdicts[-1])
        if outcome != "correct":
            return outcome, message if outcome == "wrong" else ""
    return result


def _outputs(client: NotebookClient, source: str) -> list[NotebookNode]:
    cell = new_code_cell(source)
    client.nb.cells = [cell]
    client.execute_cell(cell, 0)
    return cell.outputs


def _error_in(outputs: list[NotebookNode]) -> str:
    errors = [f"{each.ename}: {each.evalue}" for each in outputs if each.output_type == "error"]
    return errors[0] if errors else ""


def handed_in(folder: Path, course: dict[str, Path]) -> Iterator[tuple[str, str, Path]]:
    """(student, notebook of the course, file) for each notebook below `folder`.

    The first folder on the way to a file is the student. Of a file's name the course's name has to be a part, as in
    `02_paged_kv (1).ipynb`.
    """
    for path in sorted(folder.glob("*/**/*.ipynb")):
        parts = path.relative_to(folder).parts
        name = max((each for each in course if each in path.stem), key=len, default=None)
        if name and ".ipynb_checkpoints" not in parts:
            yield parts[0], name, path


@contextmanager
def workplace(path: Path, name: str, notebooks: Path) -> Iterator[Path]:
    """The folder in which a notebook runs: that of the originals; for one that builds, a copy of the student's own.

    A notebook that builds writes into the student's file beside it, and what was handed in must stay as it is.
    """
    if "_build_" not in name:
        yield notebooks
        return
    with TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(path.parent, Path(temporary) / "work", ignore=shutil.ignore_patterns("*.ipynb")))


def collect(folder: Path, notebooks: Path, seconds: int) -> list[dict[str, str]]:
    """The rows of the table, for all that lies in `folder`; `notebooks` has the originals."""
    course, rows = {path.stem: path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}, []
    for student, name, path in tqdm(list(handed_in(folder, course)), unit="notebook"):
        original = nbformat.read(course[name], as_version=4)
        try:
            with workplace(path, name, notebooks) as place:
                found = results_of(original, nbformat.read(path, as_version=4), place, seconds)
        except (ValueError, nbformat.ValidationError) as error:  # not a notebook
            found = dict.fromkeys(exercises(original), ("error", f"{path.name} cannot be read: {error}"))
        for exercise, (result, remark) in found.items():
            rows.append(dict(zip(COLUMNS, (student, name, exercise, result, remark), strict=True)))
    return rows


def main() -> None:
    """Write the table, and print how many exercises of each student are correct."""
    notebooks = clone_for("lab.notebook.collect") / "notebooks"
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.notebook.collect", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="has a folder for each student, with notebooks")
    parser.add_argument(
        "--seconds", type=int, default=60, help="how long a student's cell may run (default: %(default)s)"
    )
    options = parser.parse_args()
    rows = collect(options.folder, notebooks, options.seconds)
    target = options.folder / "results.csv"
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    for student in dict.fromkeys(row["student"] for row in rows):
        own = [row["result"] for row in rows if row["student"] == student]
        print(f"{student}: {own.count('correct')} of {len(own)} exercises correct")
    print(target)


if __name__ == "__main__":
    main()
