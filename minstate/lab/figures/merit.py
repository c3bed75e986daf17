"""Figures of merit: how much of a gain belongs to each of several mechanisms, by three questions and by any order."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab.figures.headline import LOOK
from minstate.lab.figures.palette import BLUE, DIM, INK, NAIVE, ORANGE, PAPER, STYLE, THOUSANDS, new_figure

MECHANISM = {  # as a step of a waterfall
    "prefix reuse": LOOK["prefix reuse"],
    "state": LOOK["stateful"],
    "prompt lookup": LOOK["+ prompt lookup"],
    "grammar": LOOK["+ grammar"],
}
QUESTIONS = {  # what is one of several mechanisms worth?
    "alone": ("alone: added to nothing", {"marker": ">", "color": ORANGE, "ms": 8}),
    "shapley": ("Shapley: averaged over all orders", {"marker": "o", "color": BLUE, "ms": 8}),
    "last": ("last: added to all others", {"marker": "s", "color": INK, "markerfacecolor": PAPER, "ms": 6.5}),
}


def attribution_figure(saved: Mapping[str, pd.DataFrame]) -> Figure:
    """The share of naive's seconds that each mechanism saves, in %, by each of the three `QUESTIONS`.

    A grey line joins the answers for one mechanism: the longer it is, the better other mechanisms can replace this one.

    saved  by workload, a row for each mechanism, in %: `alone`, `shapley`, `last`, and `from`, `to` around `shapley`
    """
    figure, axes = new_figure(len(saved), width=9.0, height=3.6, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (workload, table) in zip(axes, saved.items(), strict=True):
            for place, (_, row) in enumerate(table.iterrows()):
                answers = row[list(QUESTIONS)]
                axis.plot([answers.min(), answers.max()], [place, place], color=DIM, lw=1)
                axis.plot([row["from"], row["to"]], [place, place], color=BLUE, lw=4, alpha=0.35, solid_capstyle="butt")
                for column, (label, look) in QUESTIONS.items():
                    axis.plot(row[column], place, ls="", label=label if place == 0 else None, **look)
                numbers = " · ".join(f"{row[column]:.0f}".replace("-0", "0").replace("-", "−") for column in QUESTIONS)
                axis.annotate(f"{numbers} %", (answers.min(), place + 0.36), fontsize=8.5, va="center")
            axis.axvline(0, color=INK, lw=0.8)
            axis.set_yticks(range(len(table)), table.index)
            axis.set(xlabel="% of naive's seconds saved", title=workload, ylim=(len(table) - 0.4, -0.5))
            axis.set_xlim(min(-4, table.to_numpy().min() - 2), 1.06 * table.to_numpy().max())
            axis.grid(True, axis="x")
            axis.grid(False, axis="y")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), fontsize=9)
    return figure


def waterfall(order: Sequence[str], seconds: Mapping[frozenset, float], workload: str = "") -> Figure:
    """The seconds that each mechanism saves when they are added in this order. `seconds`: of every subset of them."""
    figure, (axis,) = new_figure(width=8.0, height=3.1)
    left = [seconds[frozenset(order[:count])] for count in range(len(order) + 1)]  # with the first `count` of them
    end = len(order) + 1
    with mpl.rc_context(STYLE):
        axis.bar(0, left[0], 0.6, edgecolor=PAPER, **NAIVE)
        axis.bar(end, left[-1], 0.6, edgecolor=PAPER, facecolor=INK)
        tops = [(0, left[0], f"{left[0]:,.0f}"), (end, left[-1], f"{left[-1]:,.0f}")]
        for place, (name, before, after) in enumerate(zip(order, left, left[1:], strict=False), 1):
            look = {"edgecolor": INK, "lw": 0.6, **MECHANISM[name]}
            axis.bar(place, abs(before - after), 0.6, bottom=min(before, after), **look)
            axis.plot([place - 1.3, place + 0.3], [before, before], color=INK, lw=0.6)
            share = (before - after) / (left[0] - left[-1])
            change = f"{after - before:+,.0f} s".replace("-", "−")
            tops.append((place, max(before, after), f"{change}\n{100 * share:.0f} % of the gain".replace("-", "−")))
        axis.plot([end - 1.3, end + 0.3], [left[-1]] * 2, color=INK, lw=0.6)
        for place, top, text in tops:
            axis.annotate(text, (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
        axis.set_xticks(range(end + 1), ["naive", *(f"+ {name}" for name in order), "all"], fontsize=9)
        axis.set(ylabel="seconds", title=f"{workload}, mechanisms in this order", ylim=(0, 1.2 * max(left)))
        axis.yaxis.set_major_formatter(THOUSANDS)
    return figure
