"""Figures of many agents on one engine."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minstate.lab.figures import BLUE, GREEN, INK, ORANGE, SKY, STYLE, new_figure

LINES = {
    "naive": (ORANGE, "s", "--"),
    "prefix reuse": (GREEN, "^", "-."),
    "stateful": (BLUE, "o", "-"),
    "stateful + speculation": (SKY, "D", ":"),
}


def throughput_and_latency(rows: pd.DataFrame) -> Figure:
    """Turns a minute, and the seconds that a turn takes, as more agents work at once: a row each and configuration."""
    figure, (left, right) = new_figure(2)
    with mpl.rc_context(STYLE):
        for name, mine in rows.groupby("configuration", sort=False):
            color, marker, dashes = LINES[name]
            left.plot(mine["agents"], mine["turns a minute"], dashes, marker=marker, color=color, label=name)
            right.plot(mine["agents"], mine["p50 s"], dashes, marker=marker, color=color, label=f"{name}, median")
            right.plot(mine["agents"], mine["p95 s"], dashes, color=color, linewidth=0.8, alpha=0.7)
            right.fill_between(mine["agents"], mine["p50 s"], mine["p95 s"], color=color, alpha=0.08)
        ticks = sorted(rows["agents"].unique())
        for axes, label, title in [
            (left, "turns a minute", "Throughput: higher is better"),
            (right, "seconds a turn (thin: 95th percentile)", "Latency: lower is better"),
        ]:
            axes.set(xlabel="agents at work", ylabel=label, title=title, xscale="log")
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
        left.set_ylim(0, None)
        right.set_yscale("log")
        left.legend(loc="upper left", fontsize=8)
    return figure


def under_pressure(rows: pd.DataFrame) -> Figure:
    """The share of the history that is found again, and the tokens forwarded, as the pool shrinks."""
    figure, (left, right) = new_figure(2)
    with mpl.rc_context(STYLE):
        for hints, color, marker, label in [
            (False, ORANGE, "s", "least recently used goes first"),
            (True, BLUE, "o", "and agents say when they are back"),
        ]:
            mine = rows[rows["hints"] == hints]
            left.plot(mine["share"], mine["hit rate"], marker=marker, color=color, label=label)
            right.plot(mine["share"], mine["forwarded"] / 1000, marker=marker, color=color, label=label)
        for axes in (left, right):
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
            axes.set_xlabel("pool, as a share of the working set")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.invert_xaxis()
        left.set(ylabel="history found again", ylim=(0, 1.05), title="Hit rate")
        left.yaxis.set_major_formatter(PercentFormatter(1))
        right.set(ylabel="tokens forwarded (thousands)", ylim=(0, None), title="Work")
        left.legend(loc="lower left", fontsize=8)
    return figure
