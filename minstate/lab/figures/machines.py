"""Figures of predictions: a turn on other machines, its price, and the transfer of a session between machines."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from minstate.lab.figures.palette import (
    BLUE,
    DRAFTING,
    ENGINE_LINES,
    GREEN,
    INK,
    NAIVE,
    ORANGE,
    PAPER,
    PURPLE,
    SHADES,
    SKY,
    STATEFUL,
    STYLE,
    new_figure,
)
from minstate.lab.machines.data_sheets import MODELS
from minstate.lab.machines.kv_transfer import LINKS, transfer_s
from minstate.lab.machines.turn_seconds import DataSheetMachine, Machine, decode_s

MODES = {"naive": NAIVE, "stateful": STATEFUL, "with drafts": DRAFTING}  # how a turn may be served
PRICE_LINES = {"naive": (ORANGE, "s--"), "stateful": (BLUE, "o-"), "with drafts": (SKY, "D:")}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 0.1, 1, 10 in place of powers of ten
LINK_STYLES = dict(zip(LINKS, ((ORANGE, "--"), (GREEN, "-."), (BLUE, ":"), (PURPLE, (0, (5, 1)))), strict=True))
LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 142_000)
TICKS = (1_000, 8_000, 32_000, 142_000)


def predicted_seconds(
    machine: Machine, model: str, n: int, delta: int, generated: int, acceptance: float
) -> dict[str, tuple[float, float]]:
    """Seconds until the first token, and seconds of the other tokens, by mode of serving.

    acceptance  the chance of each drafted token to be accepted if those before it are
    """
    config = MODELS[model]
    plain, drafted = (decode_s(machine, config, n, generated, acceptance=each) for each in (0.0, acceptance))
    whole, new = (machine.prefill_s(config, n, p) for p in (n, min(delta, n)))
    return {"naive": (whole, plain), "stateful": (new, plain), "with drafts": (new, drafted)}


def turn_figure(
    machine: Machine, name: str, model: str, n: int, delta: int, generated: int, acceptance: float
) -> Figure:
    """A turn served in three modes, in seconds, and how the gain depends on the length of the conversation."""
    figure, (left, right) = new_figure(2, width=9.0, height=3.2)
    seconds = predicted_seconds(machine, model, n, delta, generated, acceptance)
    whole = sum(seconds["naive"])
    with mpl.rc_context(STYLE):
        for place, (mode, (first, others)) in enumerate(seconds.items()):
            left.barh(place, first, 0.7, edgecolor=PAPER, **MODES[mode])
            left.barh(place, others, 0.7, left=first, edgecolor=PAPER, alpha=0.4, **MODES[mode])
            text = f" {whole / (first + others):.1f} ×"
            left.annotate(text, (first + others, place), va="center", fontsize=9)
        left.set_yticks(range(len(seconds)), list(seconds))
        left.invert_yaxis()
        left.set(xlabel="seconds: first token, and (pale) the others", xlim=(0, 1.15 * whole))
        left.set_title(f"{model}, {name}")
        left.grid(True, axis="x")
        left.grid(False, axis="y")
        _draw_gain(right, machine, model, (n, delta, generated), acceptance)
        right.set(title="Gain over naive, by length", ylabel="times faster")
        right.legend(fontsize=8.5, loc="upper left")
    return figure


def _draw_gain(axis, machine: Machine, model: str, turn: tuple[int, int, int], acceptance: float) -> None:
    """The gain over lengths of the prompt; a marker at the turn, which is given as (n, delta, generated)."""
    here, delta, generated = turn
    lengths = [n for n in LENGTHS if n >= delta]
    gains = {mode: [] for mode in MODES}
    for n in [*lengths, here]:
        seconds = predicted_seconds(machine, model, n, delta, generated, acceptance)
        for mode, parts in seconds.items():
            gains[mode].append(sum(seconds["naive"]) / sum(parts))
    axis.plot(lengths, [n / delta for n in lengths], "--", color=INK, lw=1.2, label="n / Δ, tokens")
    for mode, mark in (("with drafts", "^"), ("stateful", "o")):
        color = MODES[mode]["facecolor"]
        style = ":" if mode == "with drafts" else "-"
        axis.plot(lengths, gains[mode][:-1], style, color=color, lw=2, label=f"{mode}, seconds")
        axis.plot(here, gains[mode][-1], mark, color=color, markeredgecolor=INK)
    axis.set(xscale="log", yscale="log", xlabel="n, tokens of the prompt", ylim=(0.8, None))
    axis.set_xticks(TICKS, [f"{n / 1000:.0f}k" for n in TICKS])
    axis.yaxis.set_major_formatter(PLAIN)
    axis.minorticks_off()


def gain_figure(machines: Mapping[str, DataSheetMachine], delta: int, answers: Sequence[int]) -> Figure:
    """How many times faster a stateful turn is than a naive one, predicted: a panel for each model.

    answers  the tokens that are generated in the turn: a line for each
    """
    figure, axes = new_figure(len(machines), width=4.3 * len(machines), height=3.2, sharey=True)
    looks = list(zip(SHADES, "o^s", strict=True))
    with mpl.rc_context(STYLE):
        for axis, (model, machine) in zip(axes, machines.items(), strict=True):
            lengths = [n for n in LENGTHS if n >= delta]
            axis.plot(lengths, [n / delta for n in lengths], "--", color=INK, lw=1.2, label="n / Δ, tokens")
            for (color, mark), generated in zip(looks, answers, strict=False):
                both = [predicted_seconds(machine, model, n, delta, generated, 0.0) for n in lengths]
                gain = [sum(one["naive"]) / sum(one["stateful"]) for one in both]
                label = f"{generated} token{'' if generated == 1 else 's'} generated"
                axis.plot(lengths, gain, mark + "-", color=color, lw=2, ms=5, label=label)
            axis.set(xscale="log", yscale="log", xlabel="n, tokens of the prompt", ylim=(0.8, None))
            axis.set_title(f"{model} on {machine.hardware.name}")
            axis.set_xticks(TICKS, [f"{n / 1000:.0f}k" for n in TICKS])
            axis.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
            axis.minorticks_off()
        axes[0].set_ylabel("times faster (predicted)")
        axes[0].legend(fontsize=8.5, loc="upper left")
    return figure


def price_figure(table: pd.DataFrame, dollars_an_hour: float) -> Figure:
    """GPU-seconds of a turn, predicted, by mode of serving: a panel for each model, with a scale in cents on the right.

    table  rows: (model, n); columns: the modes
    """
    models = list(table.index.unique(0))
    figure, axes = new_figure(len(models), width=9.6, height=3.5, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, model in zip(axes, models, strict=True):
            rows = table.loc[model]
            for mode, (color, style) in PRICE_LINES.items():
                axis.plot(rows.index, rows[mode], style, color=color, lw=2, ms=6, label=mode)
                above = mode == "naive"
                for n, seconds in rows[mode].items():
                    text, offset = f"{float(f'{seconds:.2g}'):g}", (0, 7 if above else -8)
                    place = {"textcoords": "offset points", "ha": "center", "va": "bottom" if above else "top"}
                    if mode in ("naive", "with drafts"):
                        axis.annotate(text, (n, seconds), offset, fontsize=8.5, **place)
            axis.set(xscale="log", yscale="log", xlabel="n, tokens of the prompt", title=model)
            axis.set_xlim(0.6 * rows.index.min(), 1.7 * rows.index.max())
            axis.set_xticks(list(rows.index), [f"{n / 1000:.0f}k" for n in rows.index])
            axis.yaxis.set_major_formatter(PLAIN)
            axis.minorticks_off()
        axes[0].set_ylim(0.4 * table.to_numpy().min(), 2.5 * table.to_numpy().max())
        axes[0].set_ylabel("GPU-seconds a turn (predicted)")
        cents = axes[-1].secondary_yaxis("right", functions=_scale(100 * dollars_an_hour / 3600))
        cents.yaxis.set_major_formatter(PLAIN)
        cents.minorticks_off()
        cents.set_ylabel(f"cents a turn, at ${dollars_an_hour:.2f} a GPU hour")
        axes[0].legend(fontsize=9, loc="upper left")
    return figure


def _scale(factor: float) -> tuple:
    """The functions of a second axis: from the first axis, and back."""
    return (lambda y: y * factor), (lambda y: y / factor)


def waiting_figure(served: pd.DataFrame, limit_s: float) -> Figure:
    """Over the number of agents, simulated: the 95th percentile of the time to the first token, and what is recomputed.

    served  rows of `ServingStats.row`, indexed by policy and number of agents
    """
    figure, (left, right) = new_figure(2, width=9.0, height=3.2)
    with mpl.rc_context(STYLE):
        for policy, (color, style) in ENGINE_LINES.items():
            mine, look = served.loc[policy], {"color": color, "lw": 2, "ms": 5, "label": policy}
            left.plot(mine.index, mine["p95 to first token (s)"], style, **look)
            right.plot(mine.index, 100 * mine["recomputed share"], style, **look)
        left.axhline(limit_s, color=INK, ls=":", lw=1)
        end, offset = (mine.index[-1], limit_s), {"xytext": (0, -3), "textcoords": "offset points"}
        left.annotate(f"limit: {limit_s:g} s", end, ha="right", va="top", fontsize=9, **offset)
        left.set(yscale="log", ylabel="seconds, 95th percentile", title="Wait for a first token (predicted)")
        left.yaxis.set_major_formatter(PLAIN)
        right.set(ylabel="% of prompt tokens", title="Recomputed (simulated)", ylim=(-2, 102))
        for axis in (left, right):
            axis.set(xscale="log", xlabel="agents at once")
            axis.set_xticks(list(mine.index), [str(agents) for agents in mine.index])
            axis.minorticks_off()
        right.legend(fontsize=8.5, loc="center left")
    return figure


def transfer_figure(machines: Mapping[str, DataSheetMachine]) -> Figure:
    """Seconds until another machine has the K/V of n tokens, predicted: recomputed there, or sent over each link."""
    figure, axes = new_figure(len(machines), width=4.6 * len(machines), height=3.6, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (model, machine) in zip(axes, machines.items(), strict=True):
            config = MODELS[model]
            recomputed = [machine.prefill_s(config, n, n) for n in LENGTHS]
            axis.plot(LENGTHS, recomputed, color=INK, lw=2.6, label="recomputed")
            for name, bytes_per_s in LINKS.items():
                color, style = LINK_STYLES[name]
                seconds = [transfer_s(config, n, bytes_per_s) for n in LENGTHS]
                axis.plot(LENGTHS, seconds, ls=style, color=color, lw=2, label=f"sent: {name}")
            axis.set(xscale="log", yscale="log", xlabel="n, tokens of the session")
            axis.set_title(f"{model} on {machine.hardware.name}")
            axis.set_xticks(TICKS, [f"{n / 1000:.0f}k" for n in TICKS])
            axis.set_yticks(
                [10.0**power for power in range(-4, 2)], ["0.1 ms", "1 ms", "10 ms", "0.1 s", "1 s", "10 s"]
            )
            axis.minorticks_off()
        axes[0].set_ylabel("time (predicted)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=8.5)
    return figure
