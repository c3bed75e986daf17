"""The students' edition has no answer and no output, and all else; what comes back from students is a table."""

import csv
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from minstate.lab.notebook.collect import COLUMNS, collect, main, pieces, without_check
from minstate.lab.notebook.release import release

STUB = 'def {name}(x):\n    return {body}\n\n\ncheck({name}, {cases}, hint="Count.")'
OPEN = "((1,), 2), ((4,), 8)"


def test_the_edition_has_no_answers_and_no_outputs(tmp_path):
    root = tmp_path / "clone"
    names = ["notebooks/solutions/00.py", "notebooks/labs/solutions/1.py", "notebooks/labs/1.md", "minstate/a.py"]
    names += [
        "notebooks/cases/00.json",
        "tests/test_a.py",
        "tests/test_b.py",
        "tests/faults.txt",
        ".ci/run",
        "Makefile",
        "work/mine.txt",
    ]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text({"tests/test_b.py": "SOLUTION", "tests/faults.txt": "a solution"}.get(name, name))
    cell = new_code_cell("6 * 7", outputs=[new_output("stream", text="42")], metadata={"tags": ["predict"]})
    nbformat.write(new_notebook(cells=[cell]), root / "notebooks" / "00.ipynb")
    (root / ".gitignore").write_text("work/\n")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)

    out = tmp_path / "out"
    assert release(root, out) == len([path for path in out.rglob("*") if path.is_file()])
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        "notebooks/labs/1.md", "notebooks/00.ipynb", "notebooks/cases/00.json", "minstate/a.py", "tests/test_a.py",
        "Makefile", ".gitignore",
    }  # fmt: skip
    (cell,) = nbformat.read(out / "notebooks" / "00.ipynb", as_version=4).cells
    assert cell.outputs == [] and cell.metadata.tags == ["predict"]
    with pytest.raises(FileExistsError, match="is not empty"):
        release(root, out)
    with pytest.raises(RuntimeError, match="git does not list the files"):
        release(out, tmp_path / "other")


# ---- What comes back


def stub(name: str, body: str = "...", cases: str = OPEN) -> nbformat.NotebookNode:
    return new_code_cell(STUB.format(name=name, body=body, cases=cases), id=name)


def notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3"}
    return new_notebook(cells=list(cells), metadata={"kernelspec": kernel})


def original(cases: str = OPEN) -> nbformat.NotebookNode:
    imports = new_code_cell("from minstate.lab.notebook.exercise import check", id="imports")
    between = new_code_cell("two = 2", id="between")
    return notebook(imports, between, *(stub(name, cases=cases) for name in ("one", "other", "third")))


def test_the_call_of_check_is_the_originals_and_only_what_is_needed_runs():
    given, back = original('"one"'), original('"one"')
    back.cells[2] = new_code_cell("def one(x):\n    return 7\n\n\ncheck(one, ((1,), 7))", id="one")
    back.cells.insert(2, new_code_cell("def mine(): pass", id="added"))
    back.cells[0].source = "changed"
    found = pieces(given, back)
    assert [piece.exercise for piece in found] == [None, None, "one", "other", "third"]
    assert [piece.source for piece in found[:2]] == [given.cells[0].source, "def mine(): pass"]
    assert found[2].call == 'check(one, "one", hint="Count.")'
    assert without_check(found[2].source).strip() == "def one(x):\n    return 7"
    assert "two = 2" not in [piece.source for piece in found]
    assert "two = 2" in [piece.source for piece in pieces(original(), original())], "open cases may need it"


def test_a_cell_whose_id_was_changed_is_found_by_the_exercise_that_it_names():
    given, back = original('"third"'), original('"third"')
    given.cells, back.cells = [given.cells[0], given.cells[4]], [back.cells[0], back.cells[4]]
    back.cells[1].id = "lost"
    assert [piece.exercise for piece in pieces(given, back)] == [None, "third"]


@pytest.fixture
def class_room(tmp_path, monkeypatch):
    course, folder = tmp_path / "notebooks", tmp_path / "handed_in"
    course.mkdir()
    nbformat.write(original(), course / "00_one.ipynb")
    answers = {
        "ada": (stub("one", "two * x"), stub("other", "2 if x == 1 else x / 0"), stub("third")),
        "bob": (new_code_cell("def one(x) return", id="one"), stub("other", "sleep(99)"), stub("third", "exit_now()")),
        "cy": (stub("mine", "..."),),
    }
    helpers = "import os\nfrom time import sleep\n\n\ndef exit_now():\n    os._exit(1)"
    for student, cells in answers.items():
        (folder / student / "week 1").mkdir(parents=True)
        own = new_code_cell(helpers, id="own")
        back = notebook(*original().cells[:2], own, *cells)
        nbformat.write(back, folder / student / "week 1" / "00_one (1).ipynb")
    (folder / "dan").mkdir()
    (folder / "dan" / "00_one.ipynb").write_text("{")
    monkeypatch.setattr("minstate.lab.notebook.collect.clone_for", lambda _: tmp_path)
    return folder


def test_the_table_has_a_row_for_each_exercise_of_each_student(class_room, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collect", str(class_room), "--seconds", "3"])
    main()
    with (class_room / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    found = {(row["student"], row["exercise"]): (row["result"], row["remark"]) for row in rows}
    assert found == {
        ("ada", "one"): ("correct", ""),
        ("ada", "other"): ("wrong", "other(x=4) raises ZeroDivisionError: division by zero. Count."),
        ("ada", "third"): ("not attempted", ""),
        ("bob", "one"): ("error", found["bob", "one"][1]),
        ("bob", "other"): ("error", "ran for more than 3 seconds"),
        ("bob", "third"): ("error", "the kernel died"),
        **{("cy", name): ("not attempted", "its cell is not in the notebook") for name in ("one", "other", "third")},
        **{("dan", name): ("error", found["dan", "one"][1]) for name in ("one", "other", "third")},
    }
    assert found["bob", "one"][1].startswith("SyntaxError") and "cannot be read" in found["dan", "one"][1]
    assert "ada: 1 of 3 exercises correct" in capsys.readouterr().out


def test_other_files_are_no_notebooks_of_the_course(tmp_path):
    (tmp_path / "ada").mkdir()
    nbformat.write(original(), tmp_path / "ada" / "essay.ipynb")
    assert collect(tmp_path, tmp_path, 3) == []
