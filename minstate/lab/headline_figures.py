"""The course's last figures: what each mechanism is worth."""

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab import figures

LOOK = {
    "naive": figures.NAIVE,
    "prefix reuse": {"facecolor": figures.GREEN, "hatch": ".."},
    "stateful": figures.STATEFUL,
    "+ prompt lookup": {"facecolor": figures.SKY, "hatch": "\\\\"},
    "+ grammar": {"facecolor": figures.PURPLE, "hatch": "xx"},
}


def ladders(measured: Mapping[str, pd.DataFrame], tables: Mapping[str, pd.DataFrame]) -> Figure:
    """For each workload: seconds of every turn without any mechanism and with all, and of the whole conversation.

    measured  by workload, the rows of `bench.ablation.measure`; the medians of repeats are shown
    tables    by workload, those of `bench.ablation.ladder`
    """
    figure, axes = figures.new_figure(2 * len(measured), width=13, height=3.6, width_ratios=[3, 2] * len(measured))
    with mpl.rc_context(figures.STYLE):
        for (workload, turns), left, right in zip(measured.items(), axes[::2], axes[1::2], strict=True):
            _turns(left, turns)
            left.set_title(f"{turns['turn'].max()} turns ({workload})")
            _totals(right, tables[workload])
        axes[0].set_ylabel("seconds a turn")
    return figure


def _turns(axis, turns: pd.DataFrame) -> None:
    """Seconds over turns, a line for each step of the ladder."""
    seconds = turns.groupby(["configuration", "turn"])["total_s"].median()
    for name, look in LOOK.items():
        mine = seconds[name]
        style = {"lw": 2.2} if name in ("naive", "+ grammar") else {"lw": 1}
        axis.plot(mine.index, mine, color=look["facecolor"], label=name, **style)
    axis.set(xlabel="turn", ylim=0)
    axis.legend(fontsize=8)


def _totals(axis, table: pd.DataFrame) -> None:
    """Seconds of the conversation: until the first tokens, and the others."""
    table = table.loc[list(LOOK)]
    for place, (name, look) in enumerate(LOOK.items()):
        row = table.loc[name]
        axis.barh(place, row["prefill s"], 0.7, edgecolor="white", **look)
        axis.barh(place, row["decode s"], 0.7, left=row["prefill s"], edgecolor="white", alpha=0.4, **look)
        axis.annotate(f" {row['times faster']:.1f} ×", (row["total s"], place), va="center", fontsize=9)
    axis.set_yticks(range(len(LOOK)), list(LOOK), fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="seconds, first tokens and (pale) the others", xlim=(0, 1.2 * table["total s"].max()))
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
