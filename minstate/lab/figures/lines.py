"""A plain line chart, for quantities that need no figure of their own."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from minstate.lab.figures.palette import BLUE, GREEN, ORANGE, PURPLE, STYLE, THOUSANDS, new_figure

COLORS = (ORANGE, GREEN, BLUE, PURPLE)  # in the order naive, prefix reuse, stateful
MARKERS = ("s-", "^:", "o-", "D-.")


def lines_figure(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, colors: Sequence[str] = COLORS, **labels
) -> Figure:
    """A line through the points (xs, ys) of each name; `labels` are what matplotlib's `Axes.set` takes."""
    figure, (axes,) = new_figure(width=7.2, height=3.4)
    with mpl.rc_context(STYLE):
        for (name, (xs, ys)), color, style in zip(lines.items(), colors, MARKERS, strict=False):
            axes.plot(xs, ys, style, color=color, label=name, linewidth=2, markersize=5)
        axes.set(**labels)
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.legend(fontsize=8.5)
    return figure
