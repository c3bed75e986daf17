"""What turns cost on two engines: tokens forwarded, seconds, running totals, and what a prompt is made of."""

from collections.abc import Sequence
from itertools import accumulate

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
from minstate.turn import TurnStats


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


def long_conversation(naive: Sequence[TurnStats], stateful: Sequence[TurnStats]) -> Figure:
    """A conversation of many turns: what is old and what is new in each prompt, and the tokens forwarded so far."""
    figure, (left, right) = new_figure(2, height=3.7)
    turns = range(1, len(stateful) + 1)
    old, new = ([getattr(stats, part) for stats in stateful] for part in ("context", "delta"))
    with mpl.rc_context(STYLE):
        left.bar(turns, old, 0.9, label="was there one turn before", linewidth=0.3, **REUSED)
        left.bar(turns, new, 0.9, bottom=old, label="new", **STATEFUL)
        left.set(ylabel="tokens", title="The prompt of each turn")
        for name, stats in {"naive": naive, "stateful": stateful}.items():
            color, style = ENGINE_LINES[name]
            totals = list(accumulate(each.forwarded for each in stats))
            right.plot(turns, totals, style, color=color, label=name, linewidth=2, markersize=4)
            right.annotate(
                f"{totals[-1]:,}", (turns[-1], totals[-1]), (0, 7), textcoords="offset points",
                color=color, ha="right", fontweight="bold", annotation_clip=False,
            )  # fmt: skip
        right.set(ylabel="tokens forwarded so far", title="The work of all turns", ylim=(-2_000, None))
        for axes in (left, right):
            axes.set(xlabel="turn")
            axes.yaxis.set_major_formatter(THOUSANDS)
            axes.legend(loc="upper left", fontsize=9)
        left.set_ylim(0, 1.2 * max(map(sum, zip(old, new, strict=True))))
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
