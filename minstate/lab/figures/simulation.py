"""Figures of simulated serving: what eviction costs, and how many agents a GPU serves."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab.figures.palette import BLUE, NAIVE, ORANGE, PAPER, PREFIX_REUSE, PURPLE, STATEFUL, STYLE, new_figure
from minstate.lab.serving.capacity import MAX_AGENTS

CURVES = {"LRU": (ORANGE, "s--"), "hints": (BLUE, "o-"), "clairvoyance": (PURPLE, "D:")}
BARS = {"naive": NAIVE, "prefix reuse": PREFIX_REUSE, "stateful": STATEFUL}


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
    """Agents that a GPU serves at once, predicted: a group of bars for each model, from `capacity.agents_per_gpu`."""
    figure, (axes,) = new_figure(width=8, height=3.6)
    cases = list(dict.fromkeys(zip(*(table.index.get_level_values(i) for i in range(3)), strict=True)))
    width = 0.8 / len(BARS)
    with mpl.rc_context(STYLE):
        for i, (policy, look) in enumerate(BARS.items()):
            heights = [table.loc[(*case, policy), "agents per GPU"] for case in cases]
            at = [place + (i - 1) * width for place in range(len(cases))]
            axes.bar(at, heights, width, label=policy, edgecolor=PAPER, **look)
            for x, height, case in zip(at, heights, cases, strict=True):
                more = "≥ " if table.loc[(*case, policy), "agents"] == MAX_AGENTS else ""
                text = f"{more}{height:.3g}"
                axes.annotate(text, (x, max(height, 0.1)), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        labels = [
            f"{model} on {'one GPU' if gpus == 1 else f'{gpus} GPUs'}\nlogs up to {longest:,}"
            for model, longest, gpus in cases
        ]
        axes.set_xticks(range(len(cases)), labels, fontsize=8.5)
        axes.set(yscale="log", ylabel="agents per GPU (predicted)")
        axes.set_ylim(0.1, 2 * axes.get_ylim()[1])  # room for the numbers
        axes.set_title("Agents served at once on an H100: a prediction")
        axes.legend(fontsize=8.5)
    return figure
