"""Run notebooks and store them with their outputs, small enough for a repository.

    python -m minstate.lab.notebooks notebooks/01_*.ipynb

Pictures are stored with 128 colours, which figures don't miss, in a third of the bytes. What a widget shows is not
stored: without a kernel it can't move, and the same figure stands beside it.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

COLOURS = 128


class EchoingClient(NotebookClient):
    """Passes on what the kernel writes to stderr, progress bars for one, while a cell still runs."""

    def output(self, outs, msg, display_id, cell_index):
        """Handle one output message of the kernel."""
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stderr":
            sys.stderr.write(msg["content"]["text"])
            sys.stderr.flush()
        return super().output(outs, msg, display_id, cell_index)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run `notebook` from top to bottom in `folder`; a cell that fails raises nbclient's CellExecutionError."""
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
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_few_colours(output.data["image/png"])


def _with_few_colours(png: str) -> str:
    """A base64 PNG, on a palette unless that makes it larger."""
    picture, small = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return min(png, base64.b64encode(small.getvalue()).decode(), key=len)


def main(paths: list[str]) -> None:
    """Execute each notebook in its own folder and overwrite it. A cell that fails raises nbclient's error."""
    for path in map(Path, paths):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path.parent)
        slim(notebook)
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
