"""Figures of simulated serving: what eviction costs, and how many agents a GPU serves."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab.figures.palette import BLUE, ENGINE_LINES, FAINT, ORANGE, PURPLE, SKY, STYLE, new_figure
from minstate.lab.serving.capacity import MAX_AGENTS

POLICIES = ENGINE_LINES | {"stateful, host tier": (SKY, "D:")}
CURVES = {"LRU": (ORANGE, "s--"), "hints": (BLUE, "o-"), "clairvoyance": (PURPLE, "D:")}


def eviction_curves(table: pd.DataFrame) -> Figure:
    """Share of the prompts that is recomputed over the pool's size, by policy: from `compare_eviction_policies`."""
    figure, (axes,) = new_figure(width=7.2)
    with mpl.rc_context(STYLE):
        for policy, (color, style) in CURVES.items():
            mine = table.xs(policy, level="policy")["recomputed share"]
            axes.plot(mine.index, 100 * mine, style, color=color, label=policy, linewidth=2, markersize=5)
        pools = sorted(table.index.unique("pool"))
        axes.set(xscale="log", xlabel="pool, as a share of the working set", ylabel="% of prompt tokens recomputed")
        axes.set(title="What an eviction policy costs", ylim=(0, None))
        axes.set_xticks(pools, [f"{pool:g}" for pool in pools])
        axes.minorticks_off()
        axes.legend(fontsize=8.5)
    return figure


def agents_bars(table: pd.DataFrame) -> Figure:
    """Agents that a GPU serves at once, predicted: a row of dots for each model, from `capacity.agents_per_gpu`.

    The axis is linear below 1 and logarithmic above it, so that none served has a place, too.
    """
    figure, (axes,) = new_figure(width=8.6, height=4.4)
    cases = list(dict.fromkeys(zip(*(table.index.get_level_values(i) for i in range(3)), strict=True)))
    with mpl.rc_context(STYLE):
        for i, (policy, (color, style)) in enumerate(POLICIES.items()):
            for place, case in enumerate(cases):
                number, at = table.loc[(*case, policy), "agents per GPU"], place + 0.21 * (i - 1.5)
                more = "≥ " if table.loc[(*case, policy), "agents"] == MAX_AGENTS else ""
                axes.plot([0, number], [at, at], color=FAINT, lw=1)
                axes.plot(number, at, style[0], color=color, ms=8, label=None if place else policy)
                axes.annotate(
                    f"{more}{number:.3g}", (number, at), (8, 0), textcoords="offset points", va="center", size=9
                )
        labels = [
            f"{model} on {'one GPU' if gpus == 1 else f'{gpus} GPUs'}\nlogs up to {longest:,}"
            for model, longest, gpus in cases
        ]
        axes.set_yticks(range(len(cases)), labels, fontsize=9)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes.set_xlim(-0.2, 3 * max(10, table["agents per GPU"].max()))
        axes.set_xlabel("agents per GPU (predicted)")
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_title("Agents served at once on an H100: a prediction")
        axes.legend(fontsize=9, loc="lower right")
    return figure
