"""Notebooks in a browser: the parts that need none, and two tiny notebooks where there is one."""

import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minstate.lab.notebook import browse
from minstate.lab.paths import CLONE

SLIDER = """
import io, ipywidgets
from PIL import Image

def dot(colour):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (colour, 0, 0)).save(file, "png")
    return file.getvalue()

slider, picture = ipywidgets.IntSlider(value=1, max=9), ipywidgets.Image(value=dot(10))
slider.observe(lambda change: picture.set_trait("value", dot(%s)), names="value")
ipywidgets.VBox([slider, picture])
"""


def notebook(path: Path, *sources: str) -> Path:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_code_cell(source, id=f"c{number}") for number, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_a_copy_has_no_outputs_and_finds_the_same_files_as_the_original(tmp_path):
    stored = new_code_cell("6 * 7", outputs=[new_output("stream", text="42")], execution_count=1)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# One"), stored]), tmp_path / "one.ipynb")
    before = (tmp_path / "one.ipynb").read_bytes()
    browse.lay_out([tmp_path / "one.ipynb"], tmp_path / "course")
    _, cell = nbformat.read(tmp_path / "course" / "notebooks" / "one.ipynb", as_version=4).cells
    assert (cell.source, cell.outputs, cell.execution_count) == ("6 * 7", [], None)
    assert (tmp_path / "one.ipynb").read_bytes() == before
    assert (tmp_path / "course" / "notebooks" / "../pyproject.toml").samefile(CLONE / "pyproject.toml")


def test_the_settings_are_ones_that_the_installed_jupyterlab_knows():
    schemas = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
    for plugin, settings in browse.SETTINGS.items():
        package, name = plugin.split(":")
        known = json.loads((schemas / package / f"{name}.json").read_text())["properties"]
        assert settings.keys() <= known.keys()


def test_the_browser_is_the_one_that_is_named_or_the_first_that_is_there(monkeypatch, tmp_path):
    for name in ("chrome", "mine"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert browse.chromium("/nowhere") == str(tmp_path / "chrome")
    monkeypatch.setenv("CHROMIUM", "mine")
    assert browse.chromium("/nowhere") == str(tmp_path / "mine")


def test_without_a_browser_or_playwright_it_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(SystemExit, match=r"found none of the programs chromium, .*install Chromium"):
        browse.chromium("/nowhere/chrome")
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(SystemExit, match="playwright is not installed: `make browse`"):
        browse.main([])


def test_a_good_notebook_passes_and_each_fault_of_a_bad_one_is_named(monkeypatch, tmp_path, capsys):
    pytest.importorskip("playwright", reason="needs the extra `browse`")
    if not any(map(shutil.which, browse.PROGRAMS)):
        pytest.skip("needs a Chromium on the path")
    monkeypatch.setattr(browse, "OUT", tmp_path / "out")
    monkeypatch.setattr(browse, "PICTURE", browse.PICTURE.replace("tries < 300", "tries < 20"))
    asked = "from minstate.lab.notebook.predict import predict\npredict('Seven.')\npredict('Eight.')"
    good = notebook(tmp_path / "good.ipynb", SLIDER % "25 * change['new']", "open('../pyproject.toml').close()", asked)
    deaf = "import ipywidgets\nipywidgets.VBox([ipywidgets.Textarea(), ipywidgets.Button(description='Commit')])"
    bad = notebook(tmp_path / "bad.ipynb", SLIDER % "10", deaf, "1 / 0", "print('never')")
    assert browse.main([good, bad]) == 1
    printed = capsys.readouterr().out
    assert "good.ipynb: 1 controls moved, no faults" in printed
    assert "3 of 4 cells ran: one of them failed" in printed
    assert "cell 2 (c1): a guess brought no answer" in printed
    assert "cell 1 (c0): slider, Home: the picture stays the same" in printed
    assert "cell 3 (c2): ZeroDivisionError: division by zero" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good.png", "bad.png"}
