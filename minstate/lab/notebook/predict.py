"""The answer to a *Predict* question: the reader writes a guess first, and then sees both side by side.

A cell's output has one bundle with three forms, and each place shows the best one that it can: JupyterLab a widget with
a text field, a web page a fold (`<details>`), a terminal plain text. All but the widget are the same in every run.

The answer begins on the second line of its cell: JupyterLab shows the first line of a cell whose source is folded away.

Guesses are kept in `work/guesses.json` of the clone, which git ignores, so the widget shows them again when the
notebook is reopened. A guess is stored under a digest of the answer: it belongs to that text, wherever the cell stands.
"""

import hashlib
import json
from html import escape
from pathlib import Path

import ipywidgets
from IPython.display import display
from nbconvert.filters import markdown2html

from minstate.lab.paths import CLONE

GUESSES = (CLONE or Path.cwd()) / "work" / "guesses.json"
SIDE_BY_SIDE = {"flex": "1 1 18em", "min_width": "12em", "margin": "0 1.5em 0 0"}


def predict(answer: str) -> None:
    """Display a field for a guess, which reveals `answer` (Markdown), or a fold and plain text without widgets."""
    answer = answer.strip()
    html = f"<details>\n<summary>The answer</summary>\n{markdown2html(answer).strip()}\n</details>"
    bundle = {"text/plain": answer, "text/html": html}
    widget = guess_widget(answer)._repr_mimebundle_()
    display({**widget, **bundle}, raw=True)


def guess_widget(answer: str) -> ipywidgets.VBox:
    """A text field and a button; after the button is pressed, the guess and the answer side by side."""
    field = ipywidgets.Textarea(placeholder="Your guess, and why", layout={"width": "min(40em, 100%)"})
    button = ipywidgets.Button(description="Commit", tooltip="Store the guess and show the answer")
    box = ipywidgets.VBox([field, button])

    def show(guess: str) -> None:
        yours = ipywidgets.HTML(f"<b>Your guess</b><p style='white-space: pre-wrap'>{escape(guess)}</p>")
        ours = ipywidgets.HTMLMath(f"<b>The answer</b>{markdown2html(answer)}")
        for side in (yours, ours):
            side.layout = SIDE_BY_SIDE
        box.children = [ipywidgets.HBox([yours, ours], layout={"flex_flow": "row wrap"})]

    def commit(_button: ipywidgets.Button) -> None:
        if guess := field.value.strip():
            remember(answer, guess)
            show(guess)
        else:
            field.placeholder = "Write a guess first: a number or a few words are enough"

    button.on_click(commit)
    if guess := recall(answer):
        show(guess)
    return box


def remember(answer: str, guess: str) -> None:
    """Store the guess at `answer`."""
    GUESSES.parent.mkdir(exist_ok=True)
    guesses = _guesses() | {_key(answer): guess}
    GUESSES.write_text(json.dumps(guesses, indent=1, ensure_ascii=False), encoding="utf-8")


def recall(answer: str) -> str | None:
    """The guess at `answer` that is stored, or None."""
    return _guesses().get(_key(answer))


def _guesses() -> dict[str, str]:
    """All guesses. A file that cannot be read counts as empty: a reader's slip must not stop the notebook."""
    try:
        found = json.loads(GUESSES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(answer: str) -> str:
    return hashlib.sha256(answer.encode()).hexdigest()[:16]
