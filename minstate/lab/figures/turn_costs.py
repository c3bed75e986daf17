"""What turns cost on two engines: tokens forwarded, seconds, running totals, and what a prompt is made of."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab.figures.palette import (
    ENGINE_LINES,
    INK,
    KEPT,
    NAIVE,
    REUSED,
    STATEFUL,
    STYLE,
    THOUSANDS,
    new_figure,
)


def turn_costs(rows: pd.DataFrame, foil: str = "naive", ours: str = "stateful") -> Figure:
    """Tokens forwarded and seconds taken by each turn on two engines, from `measure.run_side_by_side`."""
    figure, (left, right) = new_figure(2, height=3.7)
    turns, width = sorted(rows["turn"].unique()), 0.38
    at = {foil: [turn - width / 2 for turn in turns], ours: [turn + width / 2 for turn in turns]}
    look = {foil: NAIVE, ours: STATEFUL}
    tokens = rows.groupby(["engine", "turn"])[["forwarded", "reused"]].first()
    seconds = rows.groupby(["engine", "turn"])[["prefill_s", "decode_s", "total_s"]].median()
    with mpl.rc_context(STYLE):
        for name in (foil, ours):
            left.bar(at[name], tokens.loc[name, "forwarded"], width, label=f"forwarded, {name}", **look[name])
        kept = tokens.loc[ours]
        left.bar(at[ours], kept["reused"], width, bottom=kept["forwarded"], label=KEPT, **REUSED)
        for name in (foil, ours):
            medians = seconds.loc[name]
            right.bar(at[name], medians["prefill_s"], width, label=f"{name}: until the first token", **look[name])
            pale = {**look[name], "alpha": 0.4, "label": f"{name}: the other tokens"}
            right.bar(at[name], medians["decode_s"], width, bottom=medians["prefill_s"], **pale)
            if rows["repeat"].nunique() > 1:
                every, offset = rows[rows["engine"] == name], at[name][0] - turns[0]
                label = "each run" if name == ours else None
                right.plot(every["turn"] + offset, every["total_s"], ".", color=INK, markersize=4, label=label)
        left.set(xlabel="turn", ylabel="tokens", title="Work: tokens in a turn", xticks=turns)
        right.set(xlabel="turn", ylabel="seconds", title="Time: seconds for a turn", xticks=turns)
        left.yaxis.set_major_formatter(THOUSANDS)
        for axes in (left, right):
            axes.set_ylim(0, axes.get_ylim()[1] * 1.4)  # room for the legend
            axes.legend(loc="upper left", fontsize=8)
    return figure


def running_totals(rows: pd.DataFrame, column: str, unit: str, foil: str = "naive", ours: str = "stateful") -> Figure:
    """The running total of `column` over the turns: one curve bends, the other does not."""
    figure, (axes,) = new_figure(width=5.6)
    totals = rows.groupby(["engine", "turn"])[column].median().unstack(0).cumsum()
    looks = {foil: ENGINE_LINES["naive"], ours: ENGINE_LINES["stateful"]}
    with mpl.rc_context(STYLE):
        for name, (color, style) in looks.items():
            axes.plot(totals.index, totals[name], style, color=color, label=name, linewidth=2)
            axes.annotate(
                f"{totals[name].iloc[-1]:,.0f}", (totals.index[-1], totals[name].iloc[-1]), (6, 0),
                textcoords="offset points", color=color, va="center", fontweight="bold", annotation_clip=False,
            )  # fmt: skip
        axes.set(xlabel="turn", ylabel=unit, title="From the first turn on", xticks=list(totals.index), ylim=(0, None))
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.legend(loc="upper left")
    return figure


def prompt_strips(turns: pd.DataFrame, count: int) -> Figure:
    """What the first `count` prompts are made of, from one engine's `measure.turn_row` rows, indexed by turn."""
    figure, (axes,) = new_figure(width=8, height=2.8)
    parts = {KEPT: ("reused", REUSED), "Δ: new, forwarded once": ("delta", STATEFUL)}
    parts["generated"] = ("generated", {"facecolor": INK})
    left = pd.Series(0, index=turns.index)
    with mpl.rc_context(STYLE):
        for label, (column, look) in parts.items():
            axes.barh(turns.index[:count], turns[column][:count], 0.7, left[:count], label=label, **look)
            left = left + turns[column]
        axes.set(xlabel="position in the conversation (tokens)", ylabel="turn", title="What a turn's prompt is made of")
        axes.set(xlim=(0, left.max() * 1.02), ylim=(len(turns) + 0.6, 0.4), yticks=list(turns.index))
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper right", fontsize=8)
    return figure
