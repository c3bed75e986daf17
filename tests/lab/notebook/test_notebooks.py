"""Executed notebooks as they are stored: texts as they were, pictures small and with alternative texts, no more."""

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from minstate.lab.notebook.execute import describe, main, slim


def test_pictures_shrink_and_text_stays():
    picture = Image.effect_noise((300, 300), 50).convert("RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    png = base64.b64encode(buffer.getvalue()).decode()
    shown = nbformat.v4.new_output("display_data", {"image/png": png, "text/plain": "<Figure>"})
    text = nbformat.v4.new_output("stream", text="138 tokens\n")
    cell = nbformat.v4.new_code_cell("f()", outputs=[shown, text], metadata={"execution": {"iopub.status.busy": "now"}})
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel, "widgets": {"state": {}}})

    slim(notebook)

    nbformat.validate(notebook)
    small = notebook.cells[0].outputs[0].data
    assert len(small["image/png"]) < len(png) and small["text/plain"] == "<Figure>"
    assert Image.open(io.BytesIO(base64.b64decode(small["image/png"]))).size == (300, 300)
    assert notebook.cells[0].outputs[1].text == "138 tokens\n"
    assert notebook.cells[0].metadata == {} and set(notebook.metadata) == {"kernelspec", "language_info"}


FOLDED = {"tags": ["predict", "hide-input"], "jupyter": {"source_hidden": True}, "alt": "A dot."}
KERNEL = {"name": "python3", "display_name": "Python 3"}
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}


def test_tags_and_what_is_folded_away_stay_and_of_a_widget_only_its_other_forms():
    answer = nbformat.v4.new_output("display_data", WIDGET | {"text/html": "<details>", "text/plain": "3"})
    slider = nbformat.v4.new_output("display_data", WIDGET | {"text/plain": "VBox()"})
    cell = nbformat.v4.new_code_cell("predict('3')", outputs=[answer, slider], metadata=FOLDED | {"execution": {}})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": KERNEL})
    slim(notebook)
    assert notebook.cells[0].metadata == FOLDED
    answer, slider = notebook.cells[0].outputs
    assert answer.data == {"text/html": "<details>", "text/plain": "3"} and slider.data.keys() > WIDGET.keys()


FIGURE = """
import minstate.lab.figures
from matplotlib.figure import Figure

figure = Figure(figsize=(3, 2), dpi=100)
figure.add_subplot()
figure
"""


def test_a_figure_has_two_pixels_for_each_point_and_keeps_its_size_on_the_page(tmp_path):
    cell = nbformat.v4.new_code_cell(FIGURE, metadata={"alt": "Empty axes."})
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": KERNEL}), path)
    main([str(path)])
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    shown = output.metadata["image/png"]
    assert (shown["width"], shown["height"], shown["alt"]) == (picture.width // 2, picture.height // 2, "Empty axes.")
    assert len(picture.getcolors()) <= 64


COURSE = sorted((Path(__file__).resolve().parents[3] / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def with_figure(**metadata):
    shown = nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "<Figure>"}, **metadata)
    return nbformat.v4.new_code_cell("f()", id="figure", outputs=[shown])


def test_the_text_of_a_cell_describes_its_figure():
    cell = with_figure()
    cell.metadata["alt"] = "A line that rises."
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert describe(notebook) == []
    nbformat.validate(notebook)
    assert cell.outputs[0].metadata == {"image/png": {"alt": "A line that rises."}}
    html = HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]
    assert 'alt="A line that rises."' in html


def test_a_text_from_the_code_stays_and_a_missing_one_is_reported():
    given, bare = with_figure(metadata={"image/png": {"alt": "Two bars."}}), with_figure()
    bare.id = "bare"
    assert describe(nbformat.v4.new_notebook(cells=[given, bare])) == ["bare"]
    assert given.outputs[0].metadata["image/png"]["alt"] == "Two bars."


def test_describing_executes_nothing(tmp_path, capsys):
    cell = with_figure()
    cell.source, cell.metadata["alt"] = "1 / 0", "A dot."
    path = tmp_path / "n.ipynb"
    bare = with_figure()
    bare.id = "bare"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, bare]), path)
    main(["--describe", str(path)])
    assert nbformat.read(path, as_version=4).cells[0].outputs[0].metadata["image/png"]["alt"] == "A dot."
    assert "figures without alternative text" in capsys.readouterr().out


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_figure_of_the_course_has_a_text_of_its_own(path):
    notebook = nbformat.read(path, as_version=4)
    assert describe(notebook) == [], "give these cells' metadata an `alt`, and run `--describe`"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.metadata["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(set(texts)) == len(texts) and all(len(text) > 60 and text.endswith(".") for text in texts)
    assert notebook == nbformat.read(path, as_version=4), "the texts in the outputs are the cells'"
