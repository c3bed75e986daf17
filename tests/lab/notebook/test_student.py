"""A student works on cleared copies: what is there stays, links lead to the same files, answers are not among them."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minstate.lab.notebook.student import cleared, make_copies, options, start_page
from minstate.lab.paths import CLONE

FOLDED = {"tags": ["predict"], "jupyter": {"source_hidden": True}}


@pytest.fixture
def clone(tmp_path):
    notebooks = tmp_path / "notebooks"
    for folder in ("solutions", "cases", "labs/solutions", "my_engine"):
        (notebooks / folder).mkdir(parents=True)
    cell = new_code_cell("6 * 7", outputs=[new_output("stream", text="42")], execution_count=1, metadata=FOLDED)
    link = new_markdown_cell("[a session](../minstate/session.py)")
    nbformat.write(new_notebook(cells=[link, cell]), notebooks / "00_start_here.ipynb")
    for name in ("README.md", "solutions/00.py", "cases/00.json", "labs/1.md", "labs/solutions/1.py", "my_engine/a.py"):
        (notebooks / name).write_text(name)
    return tmp_path


def test_copies_have_no_outputs_and_no_answers(clone):
    written, kept = make_copies(clone / "notebooks", clone / "work")
    names = {path.relative_to(clone / "work").as_posix() for path in written}
    assert names == {"00_start_here.ipynb", "README.md", "labs/1.md", "my_engine/a.py"} and kept == []
    _, cell = nbformat.read(clone / "work" / "00_start_here.ipynb", as_version=4).cells
    assert (cell.source, cell.outputs, cell.execution_count) == ("6 * 7", [], None)
    assert cell.metadata == FOLDED, "tags and what is folded away stay"
    original = nbformat.read(clone / "notebooks" / "00_start_here.ipynb", as_version=4)
    assert original.cells[1].outputs


def test_a_file_that_is_there_is_the_students(clone):
    make_copies(clone / "notebooks", clone / "work")
    (clone / "work" / "README.md").write_text("mine")
    (clone / "work" / "labs" / "1.md").unlink()
    written, kept = make_copies(clone / "notebooks", clone / "work")
    assert [path.name for path in written] == ["1.md"] and len(kept) == 3
    assert (clone / "work" / "README.md").read_text() == "mine"


def test_git_ignores_the_copies_and_relative_links_stay_right():
    assert "work/" in (CLONE / ".gitignore").read_text().splitlines()
    assert (CLONE / "work" / ".." / "minstate").resolve() == (CLONE / "notebooks" / ".." / "minstate").resolve()


def test_jupyterlab_has_the_clone_as_root_and_begins_with_the_first_notebook(clone):
    make_copies(clone / "notebooks", clone / "work")
    given = options(clone, clone / "work", user=1000)
    assert given == [f"--ServerApp.root_dir={clone}", "--LabApp.default_url=/lab/tree/work/00_start_here.ipynb"]
    assert options(clone, clone / "work", user=0) == [*given, "--allow-root"], "as in a container"
    assert start_page(clone / "work") == "00_start_here.ipynb"


def test_clearing_keeps_what_is_folded_away():
    notebook = cleared(new_notebook(cells=[new_code_cell("x", metadata=FOLDED, execution_count=3)]))
    assert notebook.cells[0].metadata == FOLDED and notebook.cells[0].execution_count is None
