"""Figures of the claims: how much of a prompt is old, what a turn costs, and how engines compare."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab.bench.bootstrap import bootstrap_interval
from minstate.lab.figures.palette import (
    BLUE,
    DIM,
    DRAFTING,
    ENGINE_LINES,
    INK,
    NAIVE,
    ORANGE,
    PAPER,
    PREFIX_REUSE,
    PURPLE,
    SKY,
    STATEFUL,
    STYLE,
    THOUSANDS,
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
    "+ 8-bit K/V": {"facecolor": DIM, "hatch": "--"},
}
LINES = ENGINE_LINES | {"+ prompt lookup": (SKY, "D:"), "+ grammar": (PURPLE, "v-"), "+ 8-bit K/V": (DIM, "s-")}
STEPS = {  # what is added from one step of the ladder to the next
    "prefix reuse": "+ prefix reuse", "stateful": "+ state",
    "+ prompt lookup": "+ prompt lookup", "+ grammar": "+ grammar", "+ 8-bit K/V": "+ 8-bit K/V",
}  # fmt: skip
GROUPS = {
    "drafts": "keeps its prefix, and drafts",
    "prefix": "keeps its prefix",
    "nothing": "keeps nothing between turns",
}
SPELT = {"vllm": "vLLM", "openvino": "OpenVINO", "llama_cpp": "llama.cpp"}
MARKS = {
    "drafts": {"marker": "D", "markerfacecolor": PAPER},
    "prefix": {"marker": "o"},
    "nothing": {"marker": "X"},
}


def ladder_figure(measured: Mapping[str, pd.DataFrame], tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each mechanism saves when they are added one by one: in every turn, and in whole conversations.

    For each workload there is a row of small charts, one for each mechanism: seconds of every turn before it was added
    (dashed) and with it. Below stand the seconds of all turns, for each step of the ladder.

    measured  by workload, the rows of `bench.ablation.measure_turns`; the medians of repeats are shown
    tables    by workload, those of `bench.ablation.ladder`
    """
    rows = len(measured)
    with mpl.rc_context(STYLE):
        whole = plt.figure(figsize=(9.6, 2.5 * rows + 2.2))
        *parts, bottom = whole.subfigures(rows + 1, 1, height_ratios=[2.5] * rows + [2.2])
        for part, (workload, turns) in zip(parts, measured.items(), strict=True):
            _steps(part, workload, turns, tables[workload])
        for axis, (workload, table) in zip(bottom.subplots(1, rows, squeeze=False)[0], tables.items(), strict=True):
            _totals(axis, table)
            axis.set_title(f"All turns of {workload}", fontsize=10)
    plt.close(whole)
    return whole


def _steps(part, workload: str, turns: pd.DataFrame, table: pd.DataFrame) -> None:
    """A chart for each step of the ladder: seconds over turns before it and after it, and the difference as an area."""
    seconds = turns.groupby(["configuration", "turn"])["total_s"].median()
    part.suptitle(
        f"{turns['turn'].max()} turns of {workload}: seconds of each turn", x=0.01, ha="left", weight="bold", size=11
    )
    axes = part.subplots(1, len(LOOK) - 1, sharex=True)
    for axis, (before, after) in zip(axes, pairwise(LOOK), strict=True):
        old, new = seconds[before], seconds[after]
        color, style = LINES[after]
        axis.fill_between(old.index, old, new, where=new <= old, interpolate=True, color=color, alpha=0.25, lw=0)
        axis.plot(old.index, old, "--", color=INK, lw=1.1, label="before")
        axis.plot(new.index, new, style[0] + "-", color=color, lw=1.4, ms=3.5, label="with it")
        spent = [table.loc[name, "total s"] for name in (before, after)]
        axis.set_title(f"{STEPS[after]}\n{spent[0]:,.0f} s → {spent[1]:,.0f} s", fontsize=9.5, weight="normal")
        axis.set_xlabel("turn")
    axes[0].set_ylim(0, 1.5 * seconds["naive"].max())  # room for the legend
    axes[0].legend(fontsize=8.5, loc="upper left")
    top = 1.05 * max(seconds[name].max() for name in list(LOOK)[1:])
    for axis in axes[1:]:
        axis.set_ylim(0, top)


def _totals(axis, table: pd.DataFrame) -> None:
    """Seconds of the conversation: those until the first tokens, and those of the other tokens."""
    table = table.loc[list(LOOK)]
    for place, (name, look) in enumerate(LOOK.items()):
        row = table.loc[name]
        axis.barh(place, row["prefill s"], 0.7, edgecolor=PAPER, **look)
        axis.barh(place, row["decode s"], 0.7, left=row["prefill s"], edgecolor=PAPER, alpha=0.4, **look)
        text = f" {row['total s']:,.0f} s, {row['times faster']:.1f} ×"
        axis.annotate(text, (row["total s"], place), va="center", fontsize=9)
    axis.set_yticks(range(len(LOOK)), list(LOOK), fontsize=9)
    axis.invert_yaxis()
    axis.set(xlabel="seconds: until the first tokens, and (pale) the others", xlim=(0, 1.35 * table["total s"].max()))
    axis.xaxis.set_major_formatter(THOUSANDS)
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")


def old_share_figure(replayed: Mapping[str, pd.DataFrame], claimed: tuple[float, float]) -> Figure:
    """The share of each prompt that has K/V from earlier turns, in %, and the range that the paper claims for it.

    replayed  by workload, a session's turns: `turn`, `n` and `reused`
    """
    figure, (left, right) = new_figure(2, width=9.0, height=3.2, width_ratios=[3, 2])
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
    figure, (left, right) = new_figure(2, width=9.0, height=3.2, width_ratios=[3, 2])
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


def peer_factors(
    turns: Mapping[str, pd.DataFrame], ours: str, stateless: Sequence[str], claimed: Mapping[str, float]
) -> Figure:
    """How many times as long as `ours` each engine takes for the median turn: a panel for each workload.

    Engines stand in groups, by what they keep between turns and whether they draft; the number is on the right.

    turns      by workload, the rows of `bench.peers.measure_turns`; the first one's order holds for all
    stateless  the configurations that keep nothing between turns
    claimed    by workload, the paper's factor: a dashed line
    """
    tables = {workload: _factors(rows, ours) for workload, rows in turns.items()}
    first = next(iter(tables.values())).sort_values("median")
    groups = {group: [name for name in first.index if _group(name, stateless) == group] for group in GROUPS}
    places, headings = _places(groups)
    figure, axes = new_figure(len(tables), width=9.6, height=0.24 * (len(places) + len(headings)) + 1.1, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (workload, table) in zip(axes, tables.items(), strict=True):
            _draw_factors(axis, table, places, stateless)
            axis.axvline(1, color=BLUE, lw=0.8)
            axis.axvline(claimed[workload], color=ORANGE, lw=1.4, ls="--")
            text = f" paper: {claimed[workload]} ×"
            axis.annotate(text, (claimed[workload], -1.4), fontsize=9, va="center")
            axis.set(xlabel="median turn: its seconds / ours", ylim=(max(places.values()) + 0.7, -2))
            axis.set_title(f"{workload}, {turns[workload]['turn'].max()} turns")
            axis.grid(True, axis="x")
            axis.grid(False, axis="y")
        labels = {place: _spelt(name) for name, place in places.items()} | {at: text for text, at in headings.items()}
        axes[0].set_yticks(sorted(labels), [labels[place] for place in sorted(labels)], fontsize=8.5)
        for label in axes[0].get_yticklabels():
            label.set_color(BLUE if label.get_text().startswith("minstate") else INK)
            label.set_weight("bold" if label.get_text() in headings else "normal")
        for axis in axes:
            axis.tick_params(axis="y", length=0)
    return figure


def _places(groups: Mapping[str, Sequence[str]]) -> tuple[dict[str, float], dict[str, float]]:
    """Where each configuration stands, and where the heading of each group that has one does."""
    places, headings, at = {}, {}, 0.0
    for group, names in groups.items():
        if names:
            headings[GROUPS[group]] = at
            places |= {name: at + 1 + i for i, name in enumerate(names)}
            at += len(names) + 1.4
    return places, headings


def _draw_factors(axis, table: pd.DataFrame, places: Mapping[str, float], stateless: Sequence[str]) -> None:
    """A mark for each configuration, its interval, and its number at the right edge."""
    for name, (low, middle, high) in table.iterrows():
        color, place = BLUE if name.startswith("minstate") else INK, places[name]
        axis.plot([low, high], [place, place], color=color, lw=1.2)
        axis.plot(middle, place, color=color, markersize=7, **MARKS[_group(name, stateless)])
        edge = {"xycoords": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8.5, "color": color}
        axis.annotate(f"{middle:.1f} ×", (1.0, place), **edge)
    ends = table.to_numpy()
    low, high = ends.min() / 1.2, ends.max() * 2.4  # room for the numbers
    ticks = [2.0**power for power in range(-6, 7) if low < 2.0**power < ends.max() * 1.2]
    axis.set_xscale("log", base=2)
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _factors(turns: pd.DataFrame, ours: str) -> pd.DataFrame:
    """For each configuration: the median over turns of its seconds / ours, and the ends of the 95 % interval."""
    wide = turns.pivot(index=["repeat", "turn"], columns="configuration", values="seconds")
    rows = {}
    for name in wide.columns:
        ratios = (wide[name] / wide[ours]).dropna().to_numpy()  # some are measured in one repeat only
        low, high = bootstrap_interval(lambda at, ratios=ratios: np.median(ratios[at]), len(ratios))
        rows[name] = {"from": low, "median": np.median(ratios), "to": high}
    return pd.DataFrame(rows).T


def _spelt(name: str) -> str:
    engine, comma, mode = name.partition(",")
    return f"{SPELT.get(engine, engine)}{comma}{mode}"


def _group(name: str, stateless: Sequence[str]) -> str:
    drafts = "lookup" in name or "ngram" in name
    return "nothing" if name in stateless else "drafts" if drafts else "prefix"
