"""Figures of the headline: how much of a prompt is old, what each mechanism is worth, and how other engines compare."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from minstate.lab.bench.bootstrap import bootstrap_interval
from minstate.lab.figures.palette import (
    BLUE,
    DIM,
    DRAFTING,
    ENGINE_LINES,
    GREY,
    INK,
    LEGEND_ON_GRID,
    NAIVE,
    ORANGE,
    PAPER,
    PREFIX_REUSE,
    PURPLE,
    SKY,
    STATEFUL,
    STYLE,
    THOUSANDS,
    YELLOW,
    line_of,
    new_figure,
)
from minstate.lab.machines.cost_fit import CostFit

LOOK = {
    "naive": NAIVE,
    "prefix reuse": PREFIX_REUSE,
    "stateful": STATEFUL,
    "+ prompt lookup": DRAFTING,
    "+ grammar": {"facecolor": PURPLE, "hatch": "xx"},
}
AGENTS = {"agentic": "debugging"}  # the agent's work, where the trace's name does not tell it
LINES = ENGINE_LINES | {"+ prompt lookup": (SKY, "D:"), "+ grammar": (PURPLE, "v-")}
MECHANISM = {  # as a step of a waterfall
    "prefix reuse": LOOK["prefix reuse"],
    "state": LOOK["stateful"],
    "prompt lookup": LOOK["+ prompt lookup"],
    "grammar": LOOK["+ grammar"],
}
ATTRIBUTIONS = {  # three questions about what one of several mechanisms is worth
    "alone": ("added to nothing", {"facecolor": INK}),
    "shapley": ("averaged over all orders (Shapley)", {"facecolor": GREY}),
    "last": ("added to all others", {"facecolor": YELLOW, "hatch": "//"}),
}


def ladder_figure(measured: Mapping[str, pd.DataFrame], tables: Mapping[str, pd.DataFrame]) -> Figure:
    """A row for each workload: seconds of every turn, and of the conversation, as mechanisms are added one by one.

    measured  by workload, the rows of `bench.ablation.measure_turns`; the medians of repeats are shown
    tables    by workload, those of `bench.ablation.ladder`
    """
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(measured), 2, figsize=(9.6, 3.2 * len(measured) + 0.3), squeeze=False, width_ratios=[3, 2]
        )
        for (workload, turns), (left, right) in zip(measured.items(), axes, strict=True):
            _turns(left, turns)
            left.set_title(f"{turns['turn'].max()} turns of a {AGENTS.get(workload, workload)} agent")
            _totals(right, tables[workload])
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=len(LINES), fontsize=9)
    plt.close(figure)
    return figure


def _turns(axis, turns: pd.DataFrame) -> None:
    """Seconds over turns, a line for each step of the ladder; the area between the first and the last is saved time."""
    seconds = turns.groupby(["configuration", "turn"])["total_s"].median()
    naive, best = seconds["naive"], seconds["+ grammar"]
    axis.fill_between(naive.index, naive, best, color=ORANGE, alpha=0.12, lw=0)
    for name, (color, style) in LINES.items():
        axis.plot(naive.index, seconds[name], style, color=color, label=name, lw=1.5, ms=4)
    axis.set(xlabel="turn", ylabel="seconds a turn", ylim=0)


def _totals(axis, table: pd.DataFrame) -> None:
    """Seconds of the conversation: those until the first tokens, and those of the other tokens."""
    table = table.loc[list(LOOK)]
    for place, (name, look) in enumerate(LOOK.items()):
        row = table.loc[name]
        axis.barh(place, row["prefill s"], 0.7, edgecolor=PAPER, **look)
        axis.barh(place, row["decode s"], 0.7, left=row["prefill s"], edgecolor=PAPER, alpha=0.4, **look)
        axis.annotate(f" {row['times faster']:.1f} ×", (row["total s"], place), va="center", fontsize=9)
    axis.set_yticks(range(len(LOOK)), list(LOOK), fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="seconds of all turns", xlim=(0, 1.22 * table["total s"].max()))
    axis.xaxis.set_major_formatter(THOUSANDS)
    axis.set_title("First tokens, and (pale) the others")
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")


def old_share_figure(replayed: Mapping[str, pd.DataFrame], claimed: tuple[float, float]) -> Figure:
    """The share of each prompt that has K/V from earlier turns, in %, and the range that the paper claims for it.

    replayed  by workload, a session's turns: `turn`, `n` and `reused`
    """
    figure, (left, right) = new_figure(2, width=7.6, height=2.9, width_ratios=[3, 2])
    with mpl.rc_context(STYLE):
        low, high = (100 * share for share in claimed)
        left.axhspan(low, high, facecolor="none", edgecolor=DIM, hatch="//", linewidth=0, label="claimed")
        for place, (name, turns) in enumerate(replayed.items()):
            color, (mark, *_) = line_of(place)
            later = turns[turns["turn"] > 1]
            label = f"{name}, {len(turns)} turns"
            left.plot(later["turn"], 100 * later["reused"] / later["n"], mark + "-", color=color, label=label, ms=4)
            right.plot(turns["turn"], turns["n"], "-", color=color, lw=2)
            right.plot(turns["turn"], turns["delta"], mark, color=color, ms=4)
            right.annotate(" n", (turns["turn"].iloc[-1], turns["n"].iloc[-1]), color=color, va="center")
        left.set(xlabel="turn", ylabel="% of the prompt", title="Old tokens in the prompt", ylim=(70, 101))
        left.legend(loc="lower right", fontsize=8.5)
        right.set(xlabel="turn", ylabel="tokens", title="n (lines) and Δ (marks)", ylim=0)
        right.yaxis.set_major_formatter(THOUSANDS)
    return figure


def fit_curves(turns: pd.DataFrame, fit: CostFit) -> Figure:
    """Seconds until the first token, and milliseconds for each other token, as measured and as fitted.

    turns  of the configurations naive and stateful
    """
    figure, (left, right) = new_figure(2, width=7.6, height=2.9, width_ratios=[3, 2])
    at = np.linspace(turns["n"].min(), turns["n"].max(), 100)
    with mpl.rc_context(STYLE):
        for name, color, mark in (("naive", ORANGE, "s"), ("stateful", BLUE, "o")):
            mine = turns[turns["configuration"] == name]
            left.plot(mine["n"], mine["prefill_s"], mark, color=color, ms=4, alpha=0.7, label=f"{name}, measured")
            token_ms = 1000 * mine["decode_s"] / (mine["generated"] - 1)
            right.plot(mine["n"], token_ms, mark, color=color, ms=4, alpha=0.7, label=f"{name}, measured")
        left.plot(at, fit.prefill_s(at, at), color=ORANGE, lw=2, label="fitted, all n forwarded")
        new = mine[mine["turn"] > 1]["delta"]
        low, middle, high = (fit.prefill_s(at, float(new.quantile(q))) for q in (0.1, 0.5, 0.9))
        left.fill_between(at, low, high, color=SKY, alpha=0.5, lw=0)
        left.plot(at, middle, color=BLUE, lw=2, label=f"fitted, Δ = {new.median():.0f} forwarded")
        right.plot(at, 1000 * fit.decode_s(at, 2), color=INK, lw=2, label="fitted")
        left.set(xlabel="n, tokens of the prompt", ylabel="seconds", title="Until the first token", ylim=0)
        right.set(xlabel="n, tokens of the prompt", ylabel="ms a token", title="Each token after it")
        right.set_ylim(0, 1.45 * right.get_ylim()[1])  # room for the legend
        for axis in (left, right):
            axis.xaxis.set_major_formatter(THOUSANDS)
            axis.locator_params(axis="x", nbins=5)
        left.legend(fontsize=8.5)
        right.legend(fontsize=8.5, loc="upper right")
    return figure


def attribution_figure(saved: Mapping[str, pd.DataFrame]) -> Figure:
    """The share of naive's seconds that each mechanism saves, in %, by each of the three `ATTRIBUTIONS`.

    saved  by workload, a row for each mechanism, in %: `alone`, `shapley`, `last`, and `from`, `to` around `shapley`
    """
    figure, axes = new_figure(len(saved), width=7.6, height=3.1, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (workload, table) in zip(axes, saved.items(), strict=True):
            places = np.arange(len(table))
            for i, (column, (label, look)) in enumerate(ATTRIBUTIONS.items()):
                at = places + 0.27 * (i - 1)
                axis.barh(at, table[column], 0.25, label=label, edgecolor=INK, lw=0.6, **look)
                if column == "shapley":
                    away = [table[column] - table["from"], table["to"] - table[column]]
                    axis.errorbar(table[column], at, xerr=np.maximum(away, 0), fmt="none", ecolor=INK, lw=1)
            axis.axvline(0, color=INK, lw=0.8)
            axis.set_yticks(places, table.index)
            axis.set(xlabel="% of naive's seconds saved", title=workload)
            axis.grid(True, axis="x")
            axis.grid(False, axis="y")
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8.5)
    return figure


def waterfall(order: Sequence[str], seconds: Mapping[frozenset, float], workload: str = "") -> Figure:
    """The seconds that each mechanism saves when they are added in this order. `seconds`: of every subset of them."""
    figure, (axis,) = new_figure(width=7.0, height=2.9)
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
            tops.append((place, max(before, after), f"{after - before:+,.1f}"))
        axis.plot([end - 1.3, end + 0.3], [left[-1]] * 2, color=INK, lw=0.6)
        for place, top, text in tops:
            axis.annotate(text, (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=9)
        axis.set_xticks(range(end + 1), ["naive", *(f"+ {name}" for name in order), "all"], fontsize=9)
        axis.set(ylabel="seconds", title=f"{workload}, mechanisms in this order", ylim=(0, 1.12 * max(left)))
        axis.yaxis.set_major_formatter(THOUSANDS)
    return figure


def peer_factors(
    turns: Mapping[str, pd.DataFrame], ours: str, stateless: Sequence[str], claimed: Mapping[str, float]
) -> Figure:
    """How many times as long as `ours` each engine takes for the median turn: a panel for each workload.

    turns      by workload, the rows of `bench.peers.measure_turns`; the first one's order holds for all
    stateless  the configurations that keep nothing between turns
    claimed    by workload, the paper's factor: a dashed line
    """
    tables = {workload: _factors(rows, ours) for workload, rows in turns.items()}
    names = list(next(iter(tables.values())).sort_values("median").index)
    figure, axes = new_figure(len(tables), width=9.6, height=3.9, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (workload, table) in zip(axes, tables.items(), strict=True):
            for place, name in enumerate(names):
                if name in table.index:
                    low, middle, high = table.loc[name]
                    color = BLUE if name.startswith("minstate") else INK
                    axis.plot([low, high], [place, place], color=color, lw=1.2)
                    axis.plot(middle, place, color=color, markersize=7, **_mark(name, stateless))
            axis.axvline(1, color=BLUE, lw=0.8)
            axis.axvline(claimed[workload], color=ORANGE, lw=1.4, ls="--")
            text = f" paper: {claimed[workload]} ×"
            axis.annotate(text, (claimed[workload], -0.9), fontsize=9, va="center")
            axis.set_xscale("log", base=2)
            ends = table.to_numpy()
            ticks = [2.0**power for power in range(-6, 7) if ends.min() / 1.5 < 2.0**power < ends.max() * 1.5]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set(xlabel="median turn: its seconds / ours", ylim=(len(names) - 0.4, -1.5))
            axis.set_title(f"{workload}, {turns[workload]['turn'].max()} turns")
            axis.grid(True, axis="x")
            axis.grid(False, axis="y")
        axes[0].set_yticks(range(len(names)), names, fontsize=8)
        for label in axes[0].get_yticklabels():
            label.set_color(BLUE if label.get_text().startswith("minstate") else INK)
        kinds = {"keeps nothing": stateless[0], "keeps its prefix": "", "also drafts": "lookup"}
        handles = [
            Line2D([], [], color=INK, markersize=7, ls="", label=label, **_mark(name, stateless))
            for label, name in kinds.items()
        ]
        axes[-1].legend(handles=handles, fontsize=8.5, loc="lower right", **LEGEND_ON_GRID)
    return figure


def _factors(turns: pd.DataFrame, ours: str) -> pd.DataFrame:
    """For each configuration: the median over turns of its seconds / ours, and the ends of the 95 % interval."""
    wide = turns.pivot(index=["repeat", "turn"], columns="configuration", values="seconds")
    rows = {}
    for name in wide.columns:
        ratios = (wide[name] / wide[ours]).to_numpy()
        low, high = bootstrap_interval(lambda at, ratios=ratios: np.median(ratios[at]), len(ratios))
        rows[name] = {"from": low, "median": np.median(ratios), "to": high}
    return pd.DataFrame(rows).T


def _mark(name: str, stateless: Sequence[str]) -> dict:
    drafts = "lookup" in name or "ngram" in name
    marker = "X" if name in stateless else "D" if drafts else "o"
    return {"marker": marker, "markerfacecolor": PAPER if drafts else None}
