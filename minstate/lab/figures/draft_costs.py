"""Figures of what drafts cost and gain: the price of a forward pass, break-even, the best length, and the ledger."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import mul

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from minstate.draft_budget import CostTable
from minstate.lab.figures.palette import INK, STYLE, THOUSANDS, line_of, new_figure

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # query tokens of the forward passes that are drawn
DASHES = (0, (4, 3))


def expected_tokens(chances: Sequence[float]) -> float:
    """Tokens that a forward pass is expected to generate, given each guess's chance if those before it are right."""
    return 1 + sum(accumulate(chances, mul))


def break_even(cost: Callable[[int], float], guesses: int) -> float:
    """The chance that each of so many guesses needs, so that drafting them gives as many tokens per cost as without."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = expected_tokens([middle] * guesses) * cost(1) >= cost(1 + guesses)
        low, high = (low, middle) if enough else (middle, high)
    return high


def cost_figure(tables: Mapping[str, CostTable], context: int) -> Figure:
    """Left, what a forward pass costs; right, how likely guesses must be for a draft to pay."""
    figure, (left, right) = new_figure(2, width=8.4, height=2.8)
    with mpl.rc_context(STYLE):
        for place, (name, table) in enumerate(tables.items()):
            (color, style), cost = line_of(place), table.at(context)
            look = {"color": color, "label": name, "markersize": 5}
            left.plot(TOKENS, [cost(n) for n in TOKENS], style, **look)
            right.plot([n - 1 for n in TOKENS[1:]], [100 * break_even(cost, n - 1) for n in TOKENS[1:]], style, **look)
        left.set(xlabel="query tokens in the forward pass", ylabel="milliseconds", xscale="log", ylim=(0, None))
        left.set_title(f"A forward pass, {context:,} tokens of context")
        left.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        left.xaxis.set_minor_locator(NullLocator())
        right.set(xlabel="guesses in the draft (tokens)", ylabel="chance of each, at least (%)", ylim=(0, 105))
        right.set_title("Break-even")
        left.legend(fontsize=8)
    return figure


def expected_rates(cost: Callable[[int], float], chance: float, longest: int = 31) -> list[float]:
    """For drafts of 0 to `longest` tokens: tokens generated in the time that a forward pass over one token takes."""
    return [expected_tokens([chance] * m) * cost(1) / cost(1 + m) for m in range(longest + 1)]


def rate_figure(tables: Mapping[str, CostTable], context: int, chances: Sequence[float], longest: int = 31) -> Figure:
    """Expected tokens per cost against the length of the draft: a curve for each chance, its maximum marked."""
    figure, panels = new_figure(len(tables), width=8.4, height=3.2, sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (name, table) in zip(panels, tables.items(), strict=True):
            axes.axhline(1, color=INK, linewidth=0.8, linestyle=DASHES)
            for place, chance in enumerate(chances):
                (color, style), curve = line_of(place), expected_rates(table.at(context), chance, longest)
                best = max(range(len(curve)), key=curve.__getitem__)
                label = f"chance {100 * chance:.0f} %"
                axes.plot(range(len(curve)), curve, style[1:], color=color, linewidth=2, label=label)
                axes.plot(best, curve[best], style[0], color=color, markersize=8, markeredgecolor=INK, zorder=3)
                axes.annotate(
                    f"{best}", (best, curve[best]), (0, 7), textcoords="offset points", ha="center", fontsize=8
                )
            axes.set(xlabel="guesses in the draft (tokens)", title=name, xlim=(-1, longest + 1), ylim=(0, None))
        panels[0].set_ylabel("tokens generated in the time of\na forward pass over one (tokens)")
        top = max(axes.get_ylim()[1] for axes in panels)
        for axes in panels:
            axes.set_ylim(0, 1.05 * top)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(chances), fontsize=8.5, frameon=False)
    return figure


def ledger_figure(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], bound: float) -> Figure:
    """Modelled cost above that without speculation (%), against the tokens generated.

    panels  by title: by name, numbers of tokens, and the extra cost up to each of them, as a share like `bound`
    """
    figure, charts = new_figure(len(panels), width=8.4, height=2.8)
    with mpl.rc_context(STYLE):
        for axes, (title, curves) in zip(charts, panels.items(), strict=True):
            for place, (name, (tokens, extra)) in enumerate(curves.items()):
                color, style = line_of(place)
                axes.plot(tokens, [100 * share for share in extra], style[1:], color=color, linewidth=1.4, label=name)
                axes.plot(tokens[-1], 100 * extra[-1], style[0], color=color, markeredgecolor=INK)
            axes.axhline(100 * bound, color=INK, linewidth=1)
            axes.axhline(0, color=INK, linewidth=0.8, linestyle=DASHES)
            axes.text(1, 100 * bound, f"the ledger's bound, {100 * bound:.0f} %", ha="right", va="bottom", fontsize=8,
                      transform=axes.get_yaxis_transform())  # fmt: skip
            axes.set(xlabel="tokens generated", ylabel="modelled cost above that\nwithout drafts (%)", title=title)
            axes.margins(y=0.1)
            axes.xaxis.set_major_formatter(THOUSANDS)
        charts[-1].legend(fontsize=8)
    return figure
