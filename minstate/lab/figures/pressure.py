"""Pictures of too little memory: who holds it, who is given up, what that costs; and of what a clock gives away."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from minstate.lab.figures.turn_costs import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, STYLE, YELLOW, new_figure

SESSION_LOOKS = tuple(
    {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
    for color, hatch in zip(
        (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW), ("", "//", "..", "\\\\", "xx", "--"), strict=True
    )
)
POLICY_LINES = {"LRU": (ORANGE, "s--"), "hints": (BLUE, "o-"), "clairvoyance": (INK, "^:")}
POLICY_NAMES = {
    "LRU": "LRU: the least recently used goes",
    "hints": "hints: who says to be back last goes",
    "clairvoyance": "clairvoyance: who will be used last goes",
}
KEPT = {"facecolor": "#CFE5F3", "edgecolor": "none"}
TENANTS = {"the victim's tenant": (ORANGE, "s"), "a tenant of his own": (BLUE, "o")}

Name = Hashable


class Visit(NamedTuple):
    """One turn of a replayed order: whose it is, whether its history was there, and who is in memory afterwards."""

    session: Name
    found: bool
    resident: frozenset


def replay_order(
    order: Sequence[Name], capacity: int, victim: Callable[[Sequence[Name], Sequence[Name]], Name]
) -> list[Visit]:
    """Turns in a fixed order, in a memory for `capacity` histories of one size.

    `victim(resident, future)` names who has to go: `resident` is sorted by last use, the oldest first; `future` is the
    order from the present turn on.
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
    """Turns whose session had been there before, and was not there any more."""
    seen: set[Name] = set()
    lost = 0
    for visit in visits:
        lost += visit.session in seen and not visit.found
        seen.add(visit.session)
    return lost


def fewest(order: Sequence[Name], capacity: int) -> int:
    """The least number of recomputations that any choice of victims leads to. Tries them all."""
    costs: dict[frozenset, int] = {frozenset(): 0}  # of the best way to have these in memory
    seen: set[Name] = set()
    for session in order:
        after: dict[frozenset, int] = {}
        for resident, cost in costs.items():
            cost += session in seen and session not in resident
            full = session not in resident and len(resident) == capacity
            for kept in [resident - {gone} for gone in resident] if full else [resident]:
                state = kept | {session}
                after[state] = min(cost, after.get(state, inf))
        costs = after
        seen.add(session)
    return min(costs.values())


def residency(panels: Mapping[str, Sequence[Visit]]) -> Figure:
    """For each policy: who is in memory after which turn (tinted), and which turns found their history or did not."""
    sessions = sorted({visit.session for visits in panels.values() for visit in visits})
    figure, _ = new_figure(width=9.6, height=0.7 + len(panels) * (0.5 + 0.19 * len(sessions)))
    figure.clear()
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    with mpl.rc_context(STYLE):
        for axes, (name, visits) in zip(grid[:, 0], panels.items(), strict=True):
            _draw_residency(axes, visits, sessions)
            lost = recomputations(visits)
            what = "turn computes its" if lost == 1 else "turns compute their"
            axes.set_title(f"{name}: {lost} {what} history again", fontsize=10)
        axes.set_xlabel("turn, in the order in which they come")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(
            handles=[
                Patch(**KEPT, label="in memory"),
                *(axes.plot([], [], look, color=color, label=label)[0] for label, look, color in _MARKS.values()),
            ],
            loc="outside lower left", ncols=4, fontsize=8, frameon=False,
        )  # fmt: skip
    return figure


_MARKS = {
    "found": ("history found", "o", BLUE),
    "lost": ("history computed again", "X", ORANGE),
    "first": ("first turn: nothing to find", "|", INK),
}


def _draw_residency(axes: Axes, visits: Sequence[Visit], sessions: Sequence[Name]) -> None:
    seen: set[Name] = set()
    for turn, visit in enumerate(visits, 1):
        for session in visit.resident:
            axes.add_patch(Rectangle((turn - 0.5, sessions.index(session) - 0.4), 1.0, 0.8, **KEPT))
        kind = "found" if visit.found else "lost" if visit.session in seen else "first"
        _, look, color = _MARKS[kind]
        axes.plot(turn, sessions.index(visit.session), look, color=color, markersize=5, markeredgecolor=color)
        seen.add(visit.session)
    axes.set_yticks(range(len(sessions)), [str(session) for session in sessions], fontsize=8)
    axes.set(xlim=(0.3, len(visits) + 0.7), ylim=(len(sessions) - 0.4, -0.6), ylabel="agent")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2, labelsize=8)


def holdings(panels: Mapping[str, Sequence[Mapping[str, int]]], capacity: int) -> Figure:
    """Pages held by each session, round by round, stacked; a panel for each rule."""
    names = list(dict.fromkeys(name for rounds in panels.values() for held in rounds for name in held))
    figure, columns = new_figure(len(panels), height=3.3, sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (title, rounds) in zip(columns, panels.items(), strict=True):
            for number, held in enumerate(rounds, 1):
                bottom = 0
                for name in names:
                    look = SESSION_LOOKS[names.index(name) % len(SESSION_LOOKS)]
                    axes.bar(number, held.get(name, 0), 0.86, bottom=bottom, **look)
                    bottom += held.get(name, 0)
            axes.axhline(capacity, color=INK, linewidth=1, linestyle="--")
            axes.text(0.5, capacity + 0.2, f"all {capacity} pages", fontsize=8, va="bottom")
            axes.set(title=title, xlabel="round", ylim=(0, capacity * 1.18))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        columns[0].set_ylabel("pages held")
        columns[0].yaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in columns:
            axes.set_xlim(0.3, max(map(len, panels.values())) + 0.7)
        swatches = [Patch(**SESSION_LOOKS[row % len(SESSION_LOOKS)], label=name) for row, name in enumerate(names)]
        figure.legend(handles=swatches, loc="outside lower left", ncols=len(names), fontsize=8, frameon=False)
    return figure


def policies(table: pd.DataFrame) -> Figure:
    """What each policy computes again, as a share of all prompts: a `lab.eviction.compare_eviction` table."""
    figure, (axes,) = new_figure(width=7.2, height=3.3)
    shares = table["recomputed share"].unstack("policy").sort_index(ascending=False)
    with mpl.rc_context(STYLE):
        for name, (color, look) in POLICY_LINES.items():
            axes.plot(shares.index, shares[name], look, color=color, label=POLICY_NAMES[name], linewidth=2)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_xticks(list(shares.index), [f"{100 * share:g} %" for share in shares.index])
        axes.invert_xaxis()
        axes.set(xlabel="pool, as a share of the working set", ylabel="computed again, share of all prompts")
        axes.set(title="Who has to go?", ylim=(0, None))
        axes.legend(loc="upper left", fontsize=8)
    return figure


def guesses(trials: pd.DataFrame) -> Figure:
    """What a prober sees of each guess: tokens shared, and milliseconds to the first token, every single probe.

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
