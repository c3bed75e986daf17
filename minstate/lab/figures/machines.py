"""Pictures of what is predicted: a turn on other machines, its price, and its way from one to another."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from minstate.lab.figures.turn_costs import BLUE, GREEN, INK, NAIVE, ORANGE, PURPLE, SKY, STATEFUL, STYLE, new_figure
from minstate.lab.machines.data_sheets import MODELS
from minstate.lab.machines.turn_seconds import LINKS, DataSheet, Machine, decode_s, move_s

LABELLED = {"naive": -3, "stateful": 3}  # ways whose bars have their numbers, and how far these are moved apart
WAYS = {  # how a turn may be served
    "naive": NAIVE,
    "stateful": STATEFUL,
    "with drafts": {"facecolor": SKY, "hatch": "\\\\"},
}
LINK_STYLES = dict(zip(LINKS, ((ORANGE, "--"), (GREEN, "-."), (BLUE, ":"), (PURPLE, (0, (5, 1)))), strict=True))
SHADES = ("#F2B48C", "#D55E00", "#7A3600")  # of a colour that stands for no way of serving
LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 142_000)
TICKS = (1_000, 8_000, 32_000, 142_000)


def seconds_of(
    machine: Machine, model: str, n: int, delta: int, generated: int, chance: float
) -> dict[str, tuple[float, float]]:
    """Seconds until the first token and for the others, by way of serving."""
    config = MODELS[model]
    said, drafted = (decode_s(machine, config, n, generated, chance=each) for each in (0.0, chance))
    all_of_it, new = (machine.prefill_s(config, n, p) for p in (n, min(delta, n)))
    return {"naive": (all_of_it, said), "stateful": (new, said), "with drafts": (new, drafted)}


def turn_on(machine: Machine, name: str, model: str, n: int, delta: int, generated: int, chance: float) -> Figure:
    """A turn served in three ways, in seconds, and how the gain depends on the length of the conversation."""
    figure, (left, right) = new_figure(2, width=7.6, height=2.9)
    seconds = seconds_of(machine, model, n, delta, generated, chance)
    whole = sum(seconds["naive"])
    with mpl.rc_context(STYLE):
        for place, (way, (first, others)) in enumerate(seconds.items()):
            left.barh(place, first, 0.7, edgecolor="white", **WAYS[way])
            left.barh(place, others, 0.7, left=first, edgecolor="white", alpha=0.4, **WAYS[way])
            text = f" {whole / (first + others):.1f} ×"
            left.annotate(text, (first + others, place), va="center", fontsize=9)
        left.set_yticks(range(len(seconds)), list(seconds))
        left.invert_yaxis()
        left.set(xlabel="seconds: first token, and (pale) the others", xlim=(0, 1.15 * whole))
        left.set_title(f"{model}, {name}")
        left.grid(True, axis="x")
        left.grid(False, axis="y")
        _gain(right, machine, model, (n, delta, generated), chance)
        right.set(title="Gain over naive, by the length", ylabel="times faster")
        right.legend(fontsize=8.5, loc="upper left")
    return figure


def _gain(axis, machine: Machine, model: str, turn: tuple[int, int, int], chance: float) -> None:
    here, delta, generated = turn
    lengths = [n for n in LENGTHS if n >= delta]
    gains = {way: [] for way in WAYS}
    for n in [*lengths, here]:
        seconds = seconds_of(machine, model, n, delta, generated, chance)
        for way, parts in seconds.items():
            gains[way].append(sum(seconds["naive"]) / sum(parts))
    axis.plot(lengths, [n / delta for n in lengths], "--", color=INK, lw=1.2, label="n / Δ, tokens")
    for way, mark in (("with drafts", "^"), ("stateful", "o")):
        color = WAYS[way]["facecolor"]
        axis.plot(lengths, gains[way][:-1], color=color, lw=2, label=f"{way}, seconds")
        axis.plot(here, gains[way][-1], mark, color=color, markeredgecolor=INK)
    axis.set(xscale="log", yscale="log", xlabel="n, tokens of the prompt", ylim=(0.8, None))
    axis.set_xticks(TICKS, [f"{n / 1000:.0f}k" for n in TICKS])
    axis.minorticks_off()


def gains(machines: Mapping[str, DataSheet], delta: int, lengths_said: Sequence[int]) -> Figure:
    """How many times faster a stateful turn is than a naive one, predicted: a panel a model, a line for each answer."""
    figure, axes = new_figure(len(machines), width=3.5 * len(machines), height=2.9, sharey=True)
    looks = list(zip(SHADES, "o^s", strict=True))
    with mpl.rc_context(STYLE):
        for axis, (model, machine) in zip(axes, machines.items(), strict=True):
            lengths = [n for n in LENGTHS if n >= delta]
            axis.plot(lengths, [n / delta for n in lengths], "--", color=INK, lw=1.2, label="n / Δ, tokens")
            for (color, mark), generated in zip(looks, lengths_said, strict=False):
                both = [seconds_of(machine, model, n, delta, generated, 0.0) for n in lengths]
                gain = [sum(one["naive"]) / sum(one["stateful"]) for one in both]
                label = f"{generated} token{'s' * (generated > 1)} said"
                axis.plot(lengths, gain, mark + "-", color=color, lw=2, ms=5, label=label)
            axis.set(xscale="log", yscale="log", xlabel="n, tokens of the prompt", ylim=(0.8, None))
            axis.set_title(f"{model} on {machine.hardware.name}")
            axis.set_xticks(TICKS, [f"{n / 1000:.0f}k" for n in TICKS])
            axis.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
            axis.minorticks_off()
        axes[0].set_ylabel("times faster (predicted)")
        axes[0].legend(fontsize=8.5, loc="upper left")
    return figure


def turn_prices(table: pd.DataFrame, dollars_an_hour: float) -> Figure:
    """GPU-seconds of a turn, predicted, by way of serving: a panel a model. On the right, what they cost.

    table  rows: (model, n); columns: the ways
    """
    models = list(table.index.unique(0))
    figure, axes = new_figure(len(models), width=9.6, height=3.1, sharey=True)
    width = 0.8 / len(table.columns)
    with mpl.rc_context(STYLE):
        for axis, model in zip(axes, models, strict=True):
            rows = table.loc[model]
            for i, way in enumerate(table.columns):
                at = [place + (i - (len(table.columns) - 1) / 2) * width for place in range(len(rows))]
                axis.bar(at, rows[way], width, label=way, edgecolor="white", **WAYS[way])
                if way not in LABELLED:
                    continue
                for x, height in zip(at, rows[way], strict=True):
                    text, offset = f"{float(f'{height:.2g}'):g}", (LABELLED[way], 1)
                    axis.annotate(text, (x, height), offset, textcoords="offset points", ha="center", fontsize=8)
            axis.set_xticks(range(len(rows)), [f"{n / 1000:.0f}k" for n in rows.index])
            axis.set(yscale="log", xlabel="n, tokens of the prompt", title=model)
        axes[0].set_ylim(0.6 * table.to_numpy().min(), 2.5 * table.to_numpy().max())
        axes[0].set_ylabel("GPU-seconds a turn (predicted)")
        cents = axes[-1].secondary_yaxis("right", functions=_scale(100 * dollars_an_hour / 3600))
        cents.set_ylabel(f"cents a turn, at ${dollars_an_hour:.2f} a GPU hour")
        axes[0].legend(fontsize=8.5, loc="upper left")
    return figure


def _scale(factor: float) -> tuple:
    return (lambda y: y * factor), (lambda y: y / factor)


def waiting(served: pd.DataFrame, limit_s: float) -> Figure:
    """Simulated, over the number of agents: how long 19 in 20 first tokens take at most, and what is computed again.

    served  rows of `Tally.row`, indexed by policy and number of agents
    """
    figure, (left, right) = new_figure(2, width=7.6, height=2.9)
    looks = {"naive": (ORANGE, "s-"), "prefix reuse": (GREEN, "^-"), "stateful": (BLUE, "o--")}
    with mpl.rc_context(STYLE):
        for policy, (color, style) in looks.items():
            mine, look = served.loc[policy], {"color": color, "lw": 2, "ms": 5, "label": policy}
            left.plot(mine.index, mine["p95 to first token (s)"], style, **look)
            right.plot(mine.index, 100 * mine["recomputed share"], style, **look)
        left.axhline(limit_s, color=INK, ls=":", lw=1)
        end, offset = (mine.index[-1], limit_s), {"xytext": (0, -3), "textcoords": "offset points"}
        left.annotate(f"limit: {limit_s:g} s", end, ha="right", va="top", fontsize=9, **offset)
        left.set(yscale="log", ylabel="seconds, 95th percentile", title="Wait for a first token (predicted)")
        right.set(ylabel="% of prompt tokens", title="Computed again (simulated)", ylim=(-2, 102))
        for axis in (left, right):
            axis.set(xscale="log", xlabel="agents at once")
            axis.set_xticks(list(mine.index), [str(agents) for agents in mine.index])
            axis.minorticks_off()
        right.legend(fontsize=8.5, loc="center left")
    return figure


def moving(machines: Mapping[str, DataSheet]) -> Figure:
    """Seconds to have the K/V of n tokens on another machine: computed again, or sent over each link. All predicted."""
    figure, axes = new_figure(len(machines), width=3.7 * len(machines), height=3.1, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (model, machine) in zip(axes, machines.items(), strict=True):
            config = MODELS[model]
            again = [machine.prefill_s(config, n, n) for n in LENGTHS]
            axis.plot(LENGTHS, again, color=INK, lw=2.6, label="computed again")
            for name, bytes_per_s in LINKS.items():
                color, style = LINK_STYLES[name]
                seconds = [move_s(config, n, bytes_per_s) for n in LENGTHS]
                axis.plot(LENGTHS, seconds, ls=style, color=color, lw=2, label=f"sent: {name}")
            axis.set(xscale="log", yscale="log", xlabel="n, tokens of the session")
            axis.set_title(f"{model} on {machine.hardware.name}")
            axis.set_xticks(TICKS, [f"{n / 1000:.0f}k" for n in TICKS])
            axis.minorticks_off()
        axes[0].set_ylabel("seconds (predicted)")
        axes[0].legend(fontsize=8, loc="upper left")
    return figure
