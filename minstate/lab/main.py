"""The main job: execute the first notebook, show its table, and leave the executed page under `out/`."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[2]


class EchoingClient(NotebookClient):
    """Passes on what the kernel writes to stderr, progress bars for one, while a cell still runs."""

    def output(self, outs, msg, display_id, cell_index):
        """Handle one output message of the kernel."""
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stderr":
            sys.stderr.write(msg["content"]["text"])
            sys.stderr.flush()
        return super().output(outs, msg, display_id, cell_index)


def execute(notebook: Path, out: Path) -> Path:
    """Run `notebook` from top to bottom, write it and its HTML page into `out`, and return the page's path.

    A cell that fails raises nbclient's CellExecutionError; what ran before it is written all the same.
    """
    content = nbformat.read(notebook, as_version=4)
    out.mkdir(parents=True, exist_ok=True)
    page = out / notebook.with_suffix(".html").name
    client = EchoingClient(
        content,
        timeout=None,
        resources={"metadata": {"path": str(notebook.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    try:
        client.execute()
    finally:
        nbformat.write(content, out / notebook.name)
        page.write_text(HTMLExporter().from_notebook_node(content)[0])
    return page


def text_outputs(notebook: Path, tag: str) -> str:
    """What the cells that carry `tag` show, as plain text."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if tag in cell.metadata.get("tags", [])]
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n\n".join(o.text if o.output_type == "stream" else o.data["text/plain"] for o in outputs)


def main() -> None:
    """Execute `notebooks/00_start_here.ipynb`."""
    notebook = ROOT / "notebooks" / "00_start_here.ipynb"
    print(f"executing {notebook.relative_to(ROOT)}: two engines, the same agent, the same tokens", flush=True)
    page = execute(notebook, ROOT / "out")
    print(text_outputs(page.with_suffix(".ipynb"), "headline"))
    print(f"\nThe executed page, with its figures: {page}")


if __name__ == "__main__":
    main()
