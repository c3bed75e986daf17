"""What is stored of an executed notebook: its text as it was, its pictures small, nothing that differs by run."""

import base64
import io

import nbformat
from PIL import Image

from minstate.lab.notebooks import slim


def test_pictures_shrink_and_text_stays():
    picture = Image.effect_noise((300, 300), 50).convert("RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    png = base64.b64encode(buffer.getvalue()).decode()
    shown = nbformat.v4.new_output("display_data", {"image/png": png, "text/plain": "<Figure>"})
    said = nbformat.v4.new_output("stream", text="138 tokens\n")
    cell = nbformat.v4.new_code_cell("f()", outputs=[shown, said], metadata={"execution": {"iopub.status.busy": "now"}})
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel, "widgets": {"state": {}}})

    slim(notebook)

    nbformat.validate(notebook)
    small = notebook.cells[0].outputs[0].data
    assert len(small["image/png"]) < len(png) and small["text/plain"] == "<Figure>"
    assert Image.open(io.BytesIO(base64.b64decode(small["image/png"]))).size == (300, 300)
    assert notebook.cells[0].outputs[1].text == "138 tokens\n"
    assert notebook.cells[0].metadata == {} and set(notebook.metadata) == {"kernelspec", "language_info"}
