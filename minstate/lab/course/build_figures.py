"""Figures of the build notebooks: what a step saves, counted."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from minstate.lab.figures.palette import (
    BLUE,
    GREY,
    INK,
    NAIVE,
    PAPER,
    STATEFUL,
    STYLE,
    THOUSANDS,
    fill_of,
    new_figure,
    paper_box,
    tint,
)

BEFORE, AFTER = NAIVE, STATEFUL


def before_and_after(rows: Mapping[str, Sequence[float]], labels: Sequence[str], x: str, y: str, title: str) -> Figure:
    """Two bars for each label, the first of `rows` without the step and the second with it; or one bar, with it."""
    figure, (axes,) = new_figure(width=8.4, height=3.2)
    with mpl.rc_context(STYLE):
        for place, (name, values) in enumerate(rows.items()):
            look = (BEFORE, AFTER)[place + 2 - len(rows)]
            at = [i + (place - (len(rows) - 1) / 2) * 0.4 for i in range(len(values))]
            bars = axes.bar(at, values, 0.38, label=name, edgecolor=PAPER, **look)
            if len(values) <= 8:
                axes.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=9, padding=2)
    _title(axes, title)
    axes.set(xticks=range(len(labels)), xticklabels=labels, xlabel=x, ylabel=y)
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.margins(y=0.18)
    if len(rows) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
    return figure


def page_diary(events: Sequence[str], title: str) -> Figure:
    """A column for each event, a row for each page, and in each cell the text that holds the page; “·” for nobody."""
    figure, (axes,) = new_figure(width=8.4, height=4.4)
    names = sorted({name for event in events for name in event} - {"·"})
    for column, event in enumerate(events):
        for page, name in enumerate(event):
            if name == "·":
                continue
            axes.add_patch(Rectangle((column, page), 1, 0.94, linewidth=0, edgecolor=INK, **_look(names.index(name))))
            if column == 0 or events[column - 1][page] != name:
                place = {"ha": "left", "va": "center", "fontsize": 8, "fontweight": "bold"}
                axes.text(column + 0.25, page + 0.5, name, bbox=paper_box(0.08), **place)
    swatches = [Patch(edgecolor=INK, linewidth=0.5, label=f"text {name}", **_look(names.index(name))) for name in names]
    axes.legend(handles=swatches, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)
    axes.set(xlim=(0, len(events)), ylim=(len(events[0]), 0), xlabel="event: a text grows, or ends", ylabel="page")
    _title(axes, title)
    axes.grid(visible=False)
    return figure


def _title(axes: Axes, title: str) -> None:
    with mpl.rc_context(STYLE):
        axes.set_title(title)


def _look(place: int) -> dict:
    """The colour and hatch of a text, pale enough for a letter on it."""
    fill = fill_of(place)
    return {"facecolor": tint(fill["facecolor"], 0.55), "hatch": fill["hatch"]}


def passes_in_text(pieces: Sequence[str], added: Sequence[int], title: str, columns: int = 12) -> Figure:
    """The tokens of a reply in lines, and around those that one pass has earned, a frame."""
    rows = -(-len(pieces) // columns)
    figure, (axes,) = new_figure(width=8.4, height=0.7 + 0.42 * rows)
    owner = [number for number, count in enumerate(added) for _ in range(count)]
    for place, piece in enumerate(pieces):
        row, column = divmod(place, columns)
        shade = tint(BLUE, 0.35) if owner[place] % 2 else PAPER
        axes.add_patch(Rectangle((column, row), 1, 0.82, facecolor=shade, edgecolor="none"))
        first = place == 0 or owner[place - 1] != owner[place]
        if first:
            axes.plot([column + 0.02] * 2, [row, row + 0.82], color=INK, linewidth=2)
        axes.plot([column, column + 1], [row + 0.82] * 2, color=GREY, linewidth=0.8)
        text = piece.replace("\n", "⏎").replace(" ", "␣").replace("$", r"\$")
        axes.text(column + 0.54, row + 0.42, text, ha="center", va="center", fontsize=8, family="monospace")
    axes.set(xlim=(-0.05, columns + 0.05), ylim=(rows, -0.1), xticks=[], yticks=[])
    _title(axes, title)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(visible=False)
    return figure
