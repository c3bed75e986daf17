"""A stored notebook as the site shows it: links resolved, widgets replaced, figures with their texts. Nothing runs."""

from os import environ
from pathlib import Path

from nbformat import NotebookNode

from minstate.lab.site import links
from minstate.lab.site.names import bound_in

WIDGET = "application/vnd.jupyter.widget-view+json"
NOTE = '<p class="widget-note">With a running kernel, a widget stands here: <code>make lab</code>.</p>'
REPOSITORY = environ.get("MINSTATE_REPOSITORY") or environ.get("GITHUB_REPOSITORY")  # OWNER/NAME on GitHub


def names_of_its_own(notebook: NotebookNode) -> set[str]:
    """The names that the notebook's own code gives a value."""
    return {name for cell in notebook.cells if cell.cell_type == "code" for name in bound_in(cell.source)}


def prepared(notebook: NotebookNode, path: Path, target: links.Target, mention: links.Mention) -> NotebookNode:
    """`notebook`, changed in place. `path` is where it lies in the repository."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.setdefault("language_info", {"name": "python"})
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = links.markdown(cell.source, target, mention)
        elif cell.cell_type == "code":
            _fold(cell)
            for output in cell.outputs:
                _show(output, cell, target, mention)
    if REPOSITORY and notebook.cells:
        first = notebook.cells[0]
        title, _, rest = first.source.partition("\n")
        first.source = f"{title}\n\n{elsewhere(path)}\n{rest}"
    return notebook


def _fold(cell: NotebookNode) -> None:
    """Fold away what JupyterLab folds away; the code of a Predict cell holds the answer, and is left out."""
    tags = set(cell.metadata.get("tags", []))
    if "predict" in tags:
        tags.add("remove-input")
    elif cell.metadata.get("jupyter", {}).get("source_hidden") and "hide-cell" not in tags:
        tags.add("hide-input")
    if tags:
        cell.metadata.tags = sorted(tags)


def _show(output: NotebookNode, cell: NotebookNode, target: links.Target, mention: links.Mention) -> None:
    """Choose what of one output is shown, and say what a picture shows."""
    data = output.get("data", {})
    if WIDGET in data:
        del data[WIDGET]
        if not {"text/html", "image/png", "image/svg+xml"} & data.keys():
            output.data = {"text/html": NOTE, "text/plain": "A widget."}
            return
    for kind in ("image/svg+xml", "image/png"):
        if kind in data:
            text = output.get("metadata", {}).get(kind, {}).get("alt") or cell.metadata.get("alt", "")
            cell.metadata.setdefault("mystnb", {}).setdefault("image", {"alt": text})
    if "text/markdown" in data:
        # Sphinx does not read the links of outputs.
        data["text/markdown"] = links.markdown(data["text/markdown"], lambda link: links.as_html(target(link)), mention)
    if "text/html" in data:
        data["text/html"] = links.html(data["text/html"], target, mention)


def elsewhere(path: Path) -> str:
    """Links that open the notebook in Colab and in Binder, for a site that knows its repository on GitHub."""
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path}"
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/main?labpath={path}"
    return f"[Open in Colab]({colab}) · [Open in Binder]({binder})"
