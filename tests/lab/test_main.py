"""The main job: a notebook is executed, its page written, its tagged text found, its progress passed on."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from minstate.lab.notebook.web_page import render, text_outputs


def notebook(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(s, metadata={"tags": ["headline"]}) for s in sources]), path)
    return path


def test_the_page_holds_what_the_notebook_shows(tmp_path, capsys):
    source = notebook(
        tmp_path / "n.ipynb", "import sys; print('42 tokens'); print('half-way', file=sys.stderr)", "6 * 9"
    )
    page = render(source, tmp_path / "out")
    assert page == tmp_path / "out" / "n.html" and "42 tokens" in page.read_text()
    assert "half-way" in capsys.readouterr().err, "progress is passed on while the notebook runs"
    text = text_outputs(page.with_suffix(".ipynb"), "headline")
    assert "42 tokens" in text and "54" in text


def test_a_failing_cell_fails_the_job_and_leaves_the_page(tmp_path):
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        render(notebook(tmp_path / "n.ipynb", "print('so far')", "1 / 0"), tmp_path / "out")
    assert "so far" in (tmp_path / "out" / "n.html").read_text()
