"""Each exercise has a solution that its checker accepts, and a solved copy is otherwise the original."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minstate.lab.notebook.solutions import exercises, read_solutions, solve, write_solved
from minstate.lab.paths import NOTEBOOKS

COURSE = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
STUB = """def double(x):
    return ...


check(double, ((1,), 2), ((4,), 8))"""


def small_notebook():
    untouched = new_output("stream", text="not attempted yet: replace the ... and run this cell again\n")
    cells = [
        new_markdown_cell("# Twice", id="title"),
        new_code_cell("from minstate.lab.notebook.exercise import check", id="imports"),
        new_code_cell(STUB, id="stub", outputs=[untouched], execution_count=2),
        new_code_cell(
            "print(open('number.txt').read())",
            id="rest",
            outputs=[new_output("stream", text="138\n")],
            execution_count=3,
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_and_every_solution_an_exercise(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert write_solved(path, tmp_path) == len(exercises(notebook)), "else it raises, and names the cell"
    solved = nbformat.read(tmp_path / path.name, as_version=4)
    nbformat.validate(solved)
    inserted = [cell for cell in solved.cells if cell not in notebook.cells]
    assert [cell for cell in solved.cells if cell in notebook.cells] == notebook.cells
    assert len(inserted) == 1 + len(exercises(notebook))


def test_every_file_of_solutions_has_its_notebook():
    files = {path.stem for path in (NOTEBOOKS / "solutions").glob("*.py")}
    assert files <= {path.stem for path in COURSE}


@pytest.mark.parametrize("path", sorted((NOTEBOOKS / "solutions").glob("*.py")), ids=lambda path: path.stem)
def test_a_solution_explains_itself(path):
    for cell_id, body in read_solutions(path).items():
        assert re.match(r"# .{40,}\n", body), f"{cell_id} begins with a sentence or two"
        assert "return ..." not in body


def test_the_solution_stands_behind_its_stub_with_the_same_check():
    solved = solve(small_notebook(), {"stub": "def double(x):\n    return 2 * x"})
    assert [cell.id for cell in solved.cells][2:] == ["imports", "stub", "stub-solution", "rest"]
    solution = solved.cells[4]
    assert solution.source.startswith("def double(x):\n    return 2 * x\n")
    assert solution.source.endswith("with must_be_correct():\n    check(double, ((1,), 2), ((4,), 8))")
    assert solution.outputs == []


@pytest.mark.parametrize("solutions", [{}, {"rest": "..."}, {"stub": "double = 2", "rest": "..."}])
def test_a_missing_solution_and_one_too_many_are_refused(solutions):
    with pytest.raises(ValueError, match="an exercise without a solution, or a solution without its exercise"):
        solve(small_notebook(), solutions)


def test_two_sections_for_one_cell_are_refused(tmp_path):
    path = tmp_path / "00.py"
    path.write_text('"""Solutions."""\n\n# %% a: one\nx = 1\n\n# %% a: two\nx = 2\n')
    with pytest.raises(ValueError, match="two sections"):
        read_solutions(path)


def test_only_a_right_solution_passes_where_outputs_are_compared(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "number.txt").write_text("138")  # a solved copy finds what the original finds
    for name, body in {"right": "return 2 * x", "wrong": "return x + 1", "missing": "return ..."}.items():
        solved = solve(small_notebook(), {"stub": f"def double(x):\n    {body}"}, "notebooks")
        nbformat.write(solved, tmp_path / f"{name}.ipynb")
    options = ["--nbval", "--nbval-current-env", "--tb=no", "-p", "no:cacheprovider", "-v"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    failed = set(re.findall(r"^(\w+)::ipynb::(.*?) FAILED", run.stdout, flags=re.MULTILINE))
    assert failed == {("wrong", "Cell 3"), ("missing", "Cell 3")}, run.stdout
