"""A notebook as an executed web page, and the text that its cells show."""

from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from minstate.lab.notebook.execute import execute

MONOSPACE = "font-family: var(--jp-code-font-family, monospace)"
CSS = f"<style>.jp-OutputArea-output pre, .jp-OutputArea-output pre code {{ {MONOSPACE} }}</style></head>"


def render(source: Path, out: Path) -> Path:
    """Run the notebook `source`, and write it and its HTML page into `out`. Returns the path of the page.

    Raises nbclient's CellExecutionError if a cell fails; the cells that ran before it are written all the same.
    """
    notebook = nbformat.read(source, as_version=4)
    out.mkdir(parents=True, exist_ok=True)
    page = out / source.with_suffix(".html").name
    try:
        execute(notebook, source.parent)
    finally:
        nbformat.write(notebook, out / source.name)
        page.write_text(HTMLExporter().from_notebook_node(notebook)[0].replace("</head>", CSS, 1))
    return page


def text_outputs(notebook: Path, tag: str) -> str:
    """The outputs of the cells with this `tag`, as plain text."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if tag in cell.metadata.get("tags", [])]
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n\n".join(o.text if o.output_type == "stream" else o.data["text/plain"] for o in outputs)
