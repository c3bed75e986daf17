"""Run notebooks and store them with their outputs, small enough for a repository.

    python -m minstate.lab.notebook.execute notebooks/01_*.ipynb
    python -m minstate.lab.notebook.execute --describe notebooks/*.ipynb       # without running them

Pictures have two pixels for each point of a screen, and are stored with 64 colours, which is enough for figures and
takes a third of the bytes. Their size on the page stands in the output's metadata. Widgets are not stored: without a
kernel they cannot move, and a static figure stands beside each. Of a widget that has other forms with it, such as a
fold with an answer, these are stored.

A figure's alternative text, for readers who cannot see it, is in its cell's metadata under `alt`. From there we copy it
into the metadata of the output, as `{"image/png": {"alt": ...}}`, where Jupyter's own tools put it: nbconvert's basic
template (and so our site) makes an `alt` attribute of it. A text that the cell's code passes to `display` stays.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

COLOURS = 64
WIDGET = "application/vnd.jupyter.widget-view+json"


class EchoingClient(NotebookClient):
    """Passes on the kernel's stderr, such as progress bars, while a cell still runs."""

    def output(self, outs, msg, display_id, cell_index):
        """Handle one output message of the kernel."""
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stderr":
            sys.stderr.write(msg["content"]["text"])
            sys.stderr.flush()
        return super().output(outs, msg, display_id, cell_index)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run `notebook` from top to bottom in `folder`. Raises nbclient's CellExecutionError if a cell fails."""
    EchoingClient(
        notebook,
        timeout=None,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    ).execute()


def slim(notebook: nbformat.NotebookNode) -> None:
    """Reduce the pictures in the outputs, and drop metadata that would differ from run to run."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _with_few_colours(data["image/png"])
            if "text/html" in data:
                data.pop(WIDGET, None)


def describe(notebook: nbformat.NotebookNode) -> list[str]:
    """Give each figure the text in its cell's metadata. Returns the ids of cells whose figure has no text."""
    missing = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                if text := cell.metadata.get("alt"):
                    output.metadata.setdefault("image/png", nbformat.NotebookNode()).alt = text
                elif not output.metadata.get("image/png", {}).get("alt"):
                    missing.append(cell.id)
    return missing


def _with_few_colours(png: str) -> str:
    """A base64 PNG with a palette, unless that makes it larger."""
    picture, small = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return min(png, base64.b64encode(small.getvalue()).decode(), key=len)


def main(arguments: list[str]) -> None:
    """Execute each notebook in its own folder and overwrite it. Raises nbclient's error if a cell fails.

    With `--describe`, nothing is executed: only the alternative texts of figures change.
    """
    for path in [Path(argument) for argument in arguments if argument != "--describe"]:
        notebook = nbformat.read(path, as_version=4)
        if "--describe" not in arguments:
            execute(notebook, path.parent)
            slim(notebook)
        missing = describe(notebook)
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
        if missing:
            print(f"    figures without alternative text: give the cells' metadata an `alt`: {', '.join(missing)}")


if __name__ == "__main__":
    main(sys.argv[1:])
