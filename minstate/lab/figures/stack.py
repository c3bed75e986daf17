"""The picture of the whole engine, from the server down to the kernels, with the place of a notebook in it."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from minstate.lab.figures.palette import BLUE, DIM, FAINT, INK, PALE, PAPER, new_figure, tint

# Layers from top to bottom; in each, the parts from left to right: (name, what it does, chapter that explains it).
LAYERS = {
    "the door": [("server", "requests in, streams of tokens out", "14")],
    "a conversation": [
        ("tokens and templates", "messages to token ids, and back", "05"),
        ("session", "the log of all tokens so far", "03"),
    ],
    "each step": [
        ("scheduler", "who takes part in this forward pass", "07"),
        ("speculation", "a draft of the next tokens", "06"),
    ],
    "memory": [
        ("prefix tree", "who has these tokens?", "04"),
        ("pages", "keys and values", "02"),
        ("tiers", "host memory and disk", "08"),
    ],
    "arithmetic": [("model", "token ids to logits", "01"), ("kernels", "attention over pages", "09")],
}
PARTS = tuple(name for layer in LAYERS.values() for name, _, _ in layer)
LEFT, GAP, HEIGHT = 1.55, 0.12, 0.74  # room for the layers' names; between boxes; of a box. Layers are 1 apart
WIDTH = 10.0
OTHER = {"facecolor": PALE, "edgecolor": FAINT, "linewidth": 0.8}
HERE = {"facecolor": tint(BLUE, 0.22), "edgecolor": INK, "linewidth": 2.2}


def stack_picture(*here: str) -> Figure:
    """The parts of the engine in layers. The parts `here` have a thick frame and a flag, “you are here”.

    The small numbers are chapters. Raises ValueError if there is no part of a name; `PARTS` has them all.
    """
    if unknown := set(here) - set(PARTS):
        raise ValueError(f"no part of the engine is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figure, (axes,) = new_figure(width=8.4, height=2.75)
    for row, (layer, parts) in enumerate(LAYERS.items()):
        axes.text(LEFT - 0.2, row + HEIGHT / 2, layer, ha="right", va="center", fontsize=9, color=DIM, style="italic")
        width = (WIDTH - LEFT - GAP * (len(parts) - 1)) / len(parts)
        for column, part in enumerate(parts):
            _box(axes, LEFT + column * (width + GAP), row, width, part, part[0] in here)
    axes.set(xlim=(0, WIDTH + 0.1), ylim=(len(LAYERS) - 1 + HEIGHT + 0.08, -0.3))
    axes.axis("off")
    return figure


def _box(axes: Axes, left: float, top: float, width: float, part: tuple[str, str, str], here: bool) -> None:
    """One part: its name, what it does, its chapter, and a flag if it is `here`."""
    name, does, chapter = part
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((left, top), width, HEIGHT, boxstyle=shape, **(HERE if here else OTHER)))
    axes.text(left + 0.14, top + 0.25, name, va="center", fontsize=9.5, fontweight="bold", color=INK)
    axes.text(left + 0.14, top + 0.53, does, va="center", fontsize=8, color=INK)
    axes.text(left + width - 0.12, top + 0.53, chapter, ha="right", va="center", fontsize=8, color=INK)
    if here:
        flag = {"boxstyle": "round,pad=0.25", "facecolor": INK, "edgecolor": INK}
        axes.text(
            left + width - 0.14, top + 0.04, "you are here", ha="right", va="center", fontsize=8, fontweight="bold",
            color=PAPER, bbox=flag,
        )  # fmt: skip
