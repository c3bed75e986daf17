"""Figures of too little memory: which sessions hold it, what eviction costs, and what a clock tells another tenant."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from minstate.lab.figures.palette import BLUE, GREY, INK, ORANGE, PAPER, STYLE, fill_of, new_figure, paper_box, tint

POLICY_LINES = {"LRU": (ORANGE, "s--"), "hints": (BLUE, "o-"), "clairvoyance": (INK, "^:")}
POLICY_NAMES = {
    "LRU": "LRU evicts the session used least recently",
    "hints": "hints: evicts the session expected back last",
    "clairvoyance": "clairvoyance: evicts the session used again last",
}
RESIDENT = {"facecolor": tint(BLUE, 0.19), "edgecolor": "none"}
TENANTS = {"the victim's tenant": (ORANGE, "s"), "a tenant of the attacker's own": (BLUE, "o")}
SOURCES = {  # of the K/V of a history
    "resident": {**fill_of(0), "edgecolor": PAPER, "label": "still in the pool"},
    "promoted": {**fill_of(2), "edgecolor": PAPER, "label": "brought back from host memory"},
    "recomputed": {**fill_of(1), "edgecolor": PAPER, "label": "computed again"},
}
MARKS = {
    "found": ("history found", "o", BLUE),
    "lost": ("history recomputed", "X", ORANGE),
    "first": ("first turn: no history yet", "|", INK),
}

Name = Hashable


class Visit(NamedTuple):
    """One turn of a replayed order."""

    session: Name
    found: bool  # whether the session's history was in memory
    resident: frozenset  # the sessions whose histories are in memory afterwards


def replay_order(
    order: Sequence[Name], capacity: int, victim: Callable[[Sequence[Name], Sequence[Name]], Name]
) -> list[Visit]:
    """Turns in a fixed order, in a memory for `capacity` histories of one size.

    `victim(resident, future)` names the session to evict: `resident` is sorted by last use, the oldest first; `future`
    is the order from the present turn on.
    """
    resident: list[Name] = []
    visits = []
    for now, session in enumerate(order):
        found = session in resident
        if found:
            resident.remove(session)
        elif len(resident) == capacity:
            resident.remove(victim(tuple(resident), order[now:]))
        resident.append(session)
        visits.append(Visit(session, found, frozenset(resident)))
    return visits


def recomputations(visits: Sequence[Visit]) -> int:
    """How many turns had lost their history to an eviction, and compute it again."""
    seen: set[Name] = set()
    lost = 0
    for visit in visits:
        if visit.session in seen and not visit.found:
            lost += 1
        seen.add(visit.session)
    return lost


def fewest_recomputations(order: Sequence[Name], capacity: int) -> int:
    """The least number of recomputations over all possible choices of victims. Tries them all."""
    costs: dict[frozenset, int] = {frozenset(): 0}  # the least cost, by the sessions that are then in memory
    seen: set[Name] = set()
    for session in order:
        after: dict[frozenset, int] = {}
        for resident, cost in costs.items():
            recomputed = session in seen and session not in resident
            full = session not in resident and len(resident) == capacity
            for kept in [resident - {gone} for gone in resident] if full else [resident]:
                state = kept | {session}
                after[state] = min(cost + 1 if recomputed else cost, after.get(state, inf))
        costs = after
        seen.add(session)
    return min(costs.values())


def residency_figure(panels: Mapping[str, Sequence[Visit]]) -> Figure:
    """For each policy: which sessions are in memory after each turn (tinted), and which turns found their history."""
    sessions = sorted({visit.session for visits in panels.values() for visit in visits})
    figure, _ = new_figure(width=9.6, height=0.7 + len(panels) * (0.5 + 0.19 * len(sessions)))
    figure.clear()
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    with mpl.rc_context(STYLE):
        for axes, (name, visits) in zip(grid[:, 0], panels.items(), strict=True):
            _draw_residency(axes, visits, sessions)
            lost = recomputations(visits)
            what = "turn recomputes its" if lost == 1 else "turns recompute their"
            axes.set_title(f"{name}: {lost} {what} history", fontsize=10)
        axes.set_xlabel("turn, in order of arrival")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(
            handles=[
                Patch(**RESIDENT, label="in memory"),
                *(axes.plot([], [], look, color=color, label=label)[0] for label, look, color in MARKS.values()),
            ],
            loc="outside lower left", ncols=4, fontsize=8, frameon=False,
        )  # fmt: skip
    return figure


def _draw_residency(axes: Axes, visits: Sequence[Visit], sessions: Sequence[Name]) -> None:
    seen: set[Name] = set()
    for turn, visit in enumerate(visits, 1):
        for session in visit.resident:
            axes.add_patch(Rectangle((turn - 0.5, sessions.index(session) - 0.4), 1.0, 0.8, **RESIDENT))
        kind = "found" if visit.found else "lost" if visit.session in seen else "first"
        _, look, color = MARKS[kind]
        axes.plot(turn, sessions.index(visit.session), look, color=color, markersize=5, markeredgecolor=color)
        seen.add(visit.session)
    axes.set_yticks(range(len(sessions)), [str(session) for session in sessions], fontsize=8)
    axes.set(xlim=(0.3, len(visits) + 0.7), ylim=(len(sessions) - 0.4, -0.6), ylabel="agent")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2, labelsize=8)


def pages_held_figure(
    panels: Mapping[str, Sequence[tuple[Mapping[str, int], int]]], capacity: int, turns: int
) -> Figure:
    """Pages held by each session, round by round, stacked; a panel for each rule.

    panels    by title: after each round, the pages by session, and the turns done so far, which stand above the bar
    capacity  pages of the pool
    turns     all turns that there are; a round after the last one is not drawn, and the panel says why it ends
    """
    names = list(dict.fromkeys(name for rounds in panels.values() for held, _ in rounds for name in held))
    looks = {name: {**fill_of(place), "edgecolor": PAPER, "linewidth": 0.6} for place, name in enumerate(names)}
    figure, columns = new_figure(len(panels), height=3.5, sharey=True)
    most = max(map(len, panels.values()))
    with mpl.rc_context(STYLE):
        for axes, (title, rounds) in zip(columns, panels.items(), strict=True):
            for number, (held, done) in enumerate(rounds, 1):
                _draw_stack(axes, number, held, looks)
                if sum(held.values()):
                    axes.text(number, sum(held.values()) + 0.2, f"{done}", ha="center", va="bottom", fontsize=9)
                else:
                    text = f"all {turns} turns\nare done,\nno page is held"
                    axes.text(number - 0.4, capacity / 2, text, ha="left", va="center", fontsize=9, bbox=paper_box())
            axes.axhline(capacity, color=INK, linewidth=1, linestyle="--")
            axes.text(most + 0.6, capacity + 0.2, f"all {capacity} pages", fontsize=8, va="bottom", ha="right")
            axes.set(title=title, xlabel="round (above a bar: turns done so far)", ylim=(0, capacity * 1.18))
            axes.set(xlim=(0.3, most + 0.7), xticks=range(1, len(rounds) + 1))
        columns[0].set_ylabel("pages held")
        columns[0].yaxis.set_major_locator(MaxNLocator(integer=True))
        swatches = [Patch(**look, label=name) for name, look in looks.items()]
        figure.legend(handles=swatches, loc="outside lower left", ncols=len(names), fontsize=8, frameon=False)
    return figure


def _draw_stack(axes: Axes, number: int, held: Mapping[str, int], looks: Mapping[str, dict]) -> None:
    bottom = 0
    for name, look in looks.items():
        axes.bar(number, held.get(name, 0), 0.86, bottom=bottom, **look)
        bottom += held.get(name, 0)


def policy_figure(table: pd.DataFrame) -> Figure:
    """What each policy recomputes, as a share of all prompts: a table of `compare_eviction_policies`."""
    figure, (axes,) = new_figure(width=7.2, height=3.3)
    shares = table["recomputed share"].unstack("policy").sort_index(ascending=False)
    with mpl.rc_context(STYLE):
        for name, (color, look) in POLICY_LINES.items():
            axes.plot(shares.index, shares[name], look, color=color, label=POLICY_NAMES[name], linewidth=2)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xticks(list(shares.index), [f"{100 * share:g} %" for share in shares.index])
        axes.invert_xaxis()
        axes.set(xlabel="pool, as a share of the working set", ylabel="recomputed, share of all prompts")
        axes.set(title="What each policy recomputes", ylim=(0, None))
        axes.legend(loc="upper left", fontsize=8)
    return figure


def tiers_figure(rows: pd.DataFrame) -> Figure:
    """Where the tokens of the history come from, as the pool shrinks, without a tier below it and with one.

    rows  a row for each pool and tier: "share" of the working set, "tier", and tokens: "resident", "promoted",
          "recomputed"
    """
    figure, columns = new_figure(rows["tier"].nunique(), height=3.3, sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (tier, mine) in zip(columns, rows.groupby("tier", sort=False), strict=True):
            history = mine[list(SOURCES)].sum(axis=1)
            bottom = 0 * history
            for name, look in SOURCES.items():
                axes.bar(range(len(mine)), mine[name] / history, 0.8, bottom=bottom, **look)
                bottom += mine[name] / history
            axes.set_xticks(range(len(mine)), [f"{100 * share:g} %" for share in mine["share"]])
            axes.set(xlabel="pool, as a share of the working set", title=tier)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        columns[0].set_ylabel("share of the history")
        swatches = [Patch(**look) for look in SOURCES.values()]
        figure.legend(handles=swatches, loc="outside lower left", ncols=len(SOURCES), fontsize=8, frameon=False)
    return figure


def probe_figure(trials: pd.DataFrame) -> Figure:
    """What an attacker sees of each guess: tokens shared, and milliseconds to the first token, of every probe.

    trials  a row for each probe: "guess", "where" (a key of `TENANTS`), "shared", "ms"
    """
    names = list(dict.fromkeys(trials["guess"]))
    figure, (left, right) = new_figure(2, height=3.5)
    with mpl.rc_context(STYLE):
        for offset, (where, (color, marker)) in zip((-0.16, 0.16), TENANTS.items(), strict=True):
            mine = trials[trials["where"] == where]
            for row, name in enumerate(names):
                probes = mine[mine["guess"] == name]
                look = {"color": color, "marker": marker, "linestyle": "none", "label": where if not row else None}
                left.plot(probes["shared"], [row + offset] * len(probes), markersize=6, **look)
                right.plot(probes["ms"], [row + offset] * len(probes), markersize=4, alpha=0.7, **look)
                right.plot([probes["ms"].median()] * 2, [row + offset - 0.14, row + offset + 0.14], color=INK)
        for axes, label, title in [
            (left, "tokens shared", "The counter behind it"),
            (right, "milliseconds to the first token (line: median)", "What a clock shows"),
        ]:
            axes.set(xlabel=label, title=title, xlim=(0, None), ylim=(len(names) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), names)
            axes.grid(axis="x", color=GREY, linewidth=0.5)
            axes.grid(axis="y", visible=False)
        left.set_xlim(-2, None)
        left.set_ylabel("guess")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8, frameon=False)
    return figure


def precision_figure(vectors: Mapping[str, np.ndarray]) -> Figure:
    """How large the numbers of vectors `[T, D]` are by dimension, beside the step between two numbers in 8 bits."""
    figure, panels = new_figure(len(vectors), height=3.0)
    with mpl.rc_context(STYLE):
        for axes, (name, x) in zip(panels, vectors.items(), strict=True):
            step = float(np.median(np.abs(x).max(1) / 127))
            axes.bar(range(x.shape[1]), np.median(np.abs(x), axis=0), width=0.8, color=BLUE, label="median size")
            axes.axhline(step, color=ORANGE, linestyle="--", linewidth=2, label="one step in 8 bits (median)")
            axes.set(xlabel="dimension", ylabel="size", title=name, yscale="log")
            axes.set_ylim(min(np.abs(x).max(1).min() for x in vectors.values()) / 200, None)
        top = 4 * max(axes.get_ylim()[1] for axes in panels)  # room for the legend
        for axes in panels:
            axes.set_ylim(top=top)
        panels[-1].legend(loc="upper right", fontsize=8)
    return figure
