"""A repository with one source file, two notebooks, a solution, and results."""

import base64
import json
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
SESSION = '''"""A session."""

from dataclasses import dataclass


@dataclass
class Turn:
    """One turn.

    seed    of the noise,
            in any batch
    """

    seed: int = 0
    delta: int = 1  # what is new, as `Session.send` counts it


class Session:
    """A conversation."""

    def __init__(self, engine, *, tenant: str = "default"):
        self.tenant = tenant

    def send(self, text: str) -> Turn:
        """Answer `text`."""

    @property
    def closed(self) -> bool:
        """Whether it is over."""


def make_room(pages):
    """Evict."""
'''
FILES = {
    "README.md": "# The project\n",
    "ARCHITECTURE.md": "# Architecture\n\n`session.py` has `Session`.\n",
    "minstate/__init__.py": "from minstate.session import Session, Turn\n",
    "minstate/session.py": SESSION,
    "minstate/serve/__init__.py": "",
    "minstate/lab/engines/__init__.py": "",
    "minstate/lab/bench/steps.py": '"""What a step costs."""\n\n\ndef make_rooms():\n    """Not that one."""\n',
    "notebooks/for_lecturers.md": "# For lecturers\n\nSee the [course](README.md).\n",
    "notebooks/labs/README.md": "# Labs\n",
    "notebooks/labs/first.md": "# A lab\n",
    "notebooks/README.md": "# Guide\n\n[One](00_one.ipynb), [solved](solutions/00_one.py), [terms](glossary.md).\n",
    "notebooks/glossary.md": "# Glossary\n\n| term | file |\n| --- | --- |\n| room: `make_room` | `session.py` |\n",
    "notebooks/solutions/00_one.py": "answer = 42\n",
    "site/conf.py": (Path(__file__).parents[3] / "site" / "conf.py").read_text(),
    "site/_static/minstate.css": "",
    "site/index.md": (
        "# Front\n\n[The code](../minstate/session.py)\n\n![A dot.](../data/results/steps.png)\n\n"
        "<!-- course -->\n\n<!-- reference -->\n\n<!-- results -->\n\n<!-- lecturers -->\n"
    ),
    "site/reference/index.md": "# Reference\n",
    "site/results/index.md": "# Results\n\n<!-- table of results -->\n",
    "data/results/steps.json": json.dumps(
        {
            "machine": "2 threads", "date": "2026-01-02", "command": "python -m minstate.lab.bench steps size=2",
            "gflops": 125.25, "rows": [{"case": "a|b", "ms": 1.23456, "count": 1000, "missing": float("nan")}],
        }
    ),
}  # fmt: skip


def one() -> list:
    """The cells of the first notebook."""
    figure = new_output("execute_result", {"image/png": DOT}, metadata={"image/png": {"alt": "A dot.", "width": 70}})
    fold = new_output("display_data", {**WIDGET, "text/html": "<details><code>Session.send</code></details>"})
    yours = new_output("display_data", {"text/markdown": "Open [yours](../out/mine.py)."})
    return [
        new_markdown_cell("# 00 · One <tag>\n\nIt begins. See `session.py`, `nowhere.py` and `make_room`.\n\n## First"),
        new_markdown_cell("$$\\Delta \\cdot (1 + n/N)$$\n\nThen [two](01_two.ipynb#second) and `seed`."),
        new_code_cell("draw()", outputs=[figure], metadata={"jupyter": {"source_hidden": True}}),
        new_code_cell("seed = 1", outputs=[new_output("display_data", {**WIDGET, "text/plain": "VBox()"})]),
        new_code_cell("predict('the answer')", outputs=[fold, yours], metadata={"tags": ["predict"]}),
    ]


def write_course(root: Path) -> Path:
    """Write the repository into `root`, and return it."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    two = [new_markdown_cell("# 01 · Two\n\nMore.\n\n## Second\n\n[Back](00_one.ipynb), to [a turn](../minstate).")]
    quiz = [new_markdown_cell("# Quiz one\n\nWhat does [chapter one](../00_one.ipynb) say?")]
    (root / "notebooks/quizzes").mkdir()
    for name, cells in {"00_one": one(), "01_two": two, "quizzes/part_1": quiz}.items():
        nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")
    (root / "data/results/steps.png").write_bytes(base64.b64decode(DOT))
    return root
