"""The main job: execute the first notebook, show its table, and leave the executed page under `out/`."""

from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from minstate.lab.notebook.execute import execute

ROOT = Path(__file__).resolve().parents[2]


MONOSPACE = "font-family: var(--jp-code-font-family, monospace)"
CSS = f"<style>.jp-OutputArea-output pre, .jp-OutputArea-output pre code {{ {MONOSPACE} }}</style></head>"


def render(source: Path, out: Path) -> Path:
    """Run the notebook `source`, write it and its HTML page into `out`, and return the page's path.

    A cell that fails raises nbclient's CellExecutionError; what ran before it is written all the same.
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
    """What the cells that carry `tag` show, as plain text."""
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if tag in cell.metadata.get("tags", [])]
    outputs = [output for cell in cells for output in cell.outputs]
    return "\n\n".join(o.text if o.output_type == "stream" else o.data["text/plain"] for o in outputs)


def main() -> None:
    """Execute `notebooks/00_start_here.ipynb`."""
    notebook = ROOT / "notebooks" / "00_start_here.ipynb"
    print(f"executing {notebook.relative_to(ROOT)}: two engines, the same agent, the same tokens", flush=True)
    page = render(notebook, ROOT / "out")
    print(text_outputs(page.with_suffix(".ipynb"), "headline"))
    print(f"\nThe executed page, with its figures: {page}")


if __name__ == "__main__":
    main()
