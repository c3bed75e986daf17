"""The pictures of notebook 01. Each takes plain numbers and returns a figure, so that a slider can draw it as well."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter

from minstate.lab.figures.turn_costs import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NAIVE,
    ORANGE,
    REUSED,
    SKY,
    STYLE,
    THOUSANDS,
    new_figure,
)

GIGA, MEGA, MILLI = 1e9, 1e6, 1e-3


def work_grid(words: Sequence[str], passes: dict[str, Sequence[int]], shown: int | None = None) -> Figure:
    """Which tokens each forward pass takes: a panel for each way to generate, a row for a pass, a column for a token.

    words   the tokens, the prompt's and the new ones, as text
    passes  for "naive", "cached" or both: how many tokens each pass forwards, always the newest ones
    shown   draw only the first `shown` passes, None for all
    """
    count = len(next(iter(passes.values())))
    shown = count if shown is None else shown
    prompt = len(words) - count
    figure, panels = new_figure(len(passes), width=4.6 * len(passes), height=3.7, sharey=True)
    computed = {
        "naive": {"facecolor": ORANGE, "hatch": NAIVE["hatch"], "edgecolor": "white"},
        "cached": {"facecolor": BLUE, "edgecolor": "white"},
    }
    chosen = {"facecolor": "white", "edgecolor": INK, "linewidth": 1.3}
    with mpl.rc_context(STYLE):
        for axes, (name, forwarded) in zip(panels, passes.items(), strict=True):
            for row, new in enumerate(forwarded[:shown]):
                end = prompt + row
                for column in range(end + 1):
                    look = chosen if column == end else computed[name] if column >= end - new else REUSED
                    axes.add_patch(Rectangle((column - 0.43, row + 0.57), 0.86, 0.86, **look))
            labels = [_label(word) if i < prompt + shown else "" for i, word in enumerate(words)]
            axes.set_xticks(range(len(words)), labels, rotation=90, fontsize=8, family="monospace")
            axes.set_yticks(range(1, count + 1), [str(i) if i % 2 else "" for i in range(1, count + 1)])
            axes.set(xlim=(-0.6, len(words) - 0.4), ylim=(count + 0.6, 0.4), xlabel="token in the sequence")
            axes.set_title(f"{name}: {sum(forwarded[:shown])} tokens forwarded")
            axes.grid(False)
            axes.tick_params(length=0)
            handles = [Patch(label="forwarded in this pass", **computed[name])]
            handles += [Patch(label="K/V kept from earlier passes", **REUSED)] if name == "cached" else []
            handles += [Patch(label="chosen by this pass", **chosen)]
            axes.legend(handles=handles, loc="upper right", fontsize=8)
        panels[0].set_ylabel("forward pass")
    return figure


def change_strips(changes: dict[str, torch.Tensor], words: dict[str, Sequence[str]]) -> Figure:
    """How much K/V changed, relative, `[layers, positions]` for each panel; `words` are the tokens below it."""
    figure, panels = new_figure(len(changes), width=3.1 * len(changes), height=3.9, sharey=True)
    colors = mpl.colormaps["YlOrBr"].with_extremes(under="white")
    with mpl.rc_context(STYLE):
        for axes, (title, change) in zip(panels, changes.items(), strict=True):
            picture = axes.imshow(
                change.clamp(min=1e-9).numpy(), cmap=colors, norm=LogNorm(1e-4, 1), aspect="auto", origin="lower"
            )
            labels = [_label(word) for word in words[title]]
            axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8, family="monospace")
            axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
            axes.set_yticks(range(0, len(change), 5))
            axes.set(title=title, xlabel="token")
            axes.grid(False)
            axes.grid(which="minor", axis="x", color=GREY, linewidth=0.6)
            axes.tick_params(which="both", length=0)
        panels[0].set_ylabel("layer")
        label = "relative change of K/V (none: white)"
        figure.colorbar(picture, ax=panels, label=label, extend="min")
    return figure


def passes_against_floor(tokens: Sequence[int], flops: Sequence[int], read: Sequence[int], seconds, machine) -> Figure:
    """Seconds of forward passes, and where that puts them under the roofline.

    tokens, flops, read  of each pass: query tokens, floating-point operations, bytes
    seconds              of each pass: the runs
    machine              the `Roofline` that predicts the floors
    """
    figure, (left, right) = new_figure(2, height=3.9)
    floors = [machine.floor_s(f, b) for f, b in zip(flops, read, strict=True)]
    rates = [[f / s / GIGA for s in runs] for f, runs in zip(flops, seconds, strict=True)]
    intensity = np.array(flops) / np.array(read)
    with mpl.rc_context(STYLE):
        left.plot(tokens, np.array(read) / machine.bytes_per_s / MILLI, ":", color=INK, label="reading takes")
        left.plot(tokens, np.array(flops) / machine.flops_per_s / MILLI, "--", color=INK, label="arithmetic takes")
        left.plot(
            tokens, np.array(floors) / MILLI, color=GREY, linewidth=7, zorder=0, label="floor: the longer of both"
        )
        _with_spread(left, tokens, [[s / MILLI for s in runs] for runs in seconds], BLUE, "o", "measured")
        left.set(xscale="log", yscale="log", xlabel="tokens in the pass", ylabel="milliseconds for the pass")
        left.set_title("Time of a pass")
        left.set_xticks(tokens, [str(n) for n in tokens])
        left.minorticks_off()
        left.legend(loc="upper left", fontsize=8)
        x = np.geomspace(intensity[0] / 1.6, intensity[-1] * 1.6, 200)
        roof = np.minimum(machine.flops_per_s, x * machine.bytes_per_s) / GIGA
        right.plot(x, roof, color=GREY, linewidth=7, zorder=0, label="roof: what the machine can do")
        _with_spread(right, intensity, rates, BLUE, "o", "measured")
        low = roof[-1] / 10  # the ridge's line ends above the legend
        right.plot([machine.ridge] * 2, [low, roof[-1]], color=INK, linestyle=":", linewidth=1)
        right.text(machine.ridge * 1.1, low, f"ridge: {machine.ridge:.1f}", fontsize=8)
        right.set_ylim(roof[0] / 2.5, roof[-1] * 1.4)
        for i, name, offset in ((0, "1 token", (8, -4)), (-1, f"{tokens[-1]} tokens", (-24, -14))):
            right.annotate(name, (intensity[i], np.median(rates[i])), offset, textcoords="offset points", fontsize=8)
        right.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte read)", ylabel="GFLOP/s")
        right.set_title("The same passes under the roofline")
        right.yaxis.set_minor_formatter(NullFormatter())
        right.legend(loc="lower right", fontsize=8)
    return figure


def gap(parts: dict[str, dict[str, list[float]]]) -> Figure:
    """Seconds of the floor, of the matrix products alone and of the whole pass: each run, a panel for each pass."""
    figure, panels = new_figure(len(parts), height=2.1)
    colors = (GREY, SKY, BLUE)
    with mpl.rc_context(STYLE):
        for axes, (title, bars) in zip(panels, parts.items(), strict=True):
            runs = [np.array(seconds) / MILLI for seconds in bars.values()]
            values = [float(np.median(each)) for each in runs]
            axes.barh(range(len(bars)), values, color=colors, height=0.6)
            for row, (each, value) in enumerate(zip(runs, values, strict=True)):
                axes.plot([min(each), max(each)], [row, row], color=INK, linewidth=1.5)
                axes.text(max(each), row, f"  {value:,.0f}", va="center", fontsize=9)
            axes.set_yticks(range(len(bars)), bars)
            axes.set(
                title=title,
                xlabel="milliseconds (median, fastest to slowest)",
                xlim=(0, 1.25 * max(map(max, runs))),
                ylim=(2.6, -0.6),
            )
            axes.grid(axis="x")
            axes.grid(False, axis="y")
        for axes in panels[1:]:
            axes.set_yticklabels([])
    return figure


def cost_of_one_token(contexts, flops: dict, measured: dict, floors: dict) -> Figure:
    """FLOPs and milliseconds of one more token against the tokens already there.

    flops     for "naive" and "cached": one number for each of `contexts`
    measured  for both: {context: seconds of each run}
    floors    for both: seconds, one for each of `contexts`
    """
    figure, (left, right) = new_figure(2, height=3.7)
    looks = {"naive": (ORANGE, "s"), "cached": (BLUE, "o")}
    with mpl.rc_context(STYLE):
        for name, (color, marker) in looks.items():
            left.plot(contexts, np.array(flops[name]) / GIGA, color=color, marker=marker, markersize=4, label=name)
            floor = np.array(floors[name]) / MILLI
            right.plot(contexts, floor, color=color, alpha=0.35, linewidth=5, label=f"{name}, floor (predicted)")
            runs = [[s / MILLI for s in runs] for runs in measured[name].values()]
            _with_spread(right, list(measured[name]), runs, color, marker, f"{name}, measured")
        left.set(ylabel="GFLOP for one more token", title="Arithmetic")
        right.set(ylabel="milliseconds for one more token", title="Time")
        for axes, room in ((left, 1.5), (right, 12)):  # above the lines, for the legend
            axes.set(xscale="log", yscale="log", xlabel="tokens already in the context")
            axes.set_ylim(top=axes.get_ylim()[1] * room)
            axes.set_xticks(contexts[::2], [f"{n:,}" for n in contexts[::2]])
            axes.minorticks_off()
            axes.legend(loc="upper left", fontsize=8)
    return figure


def memory(kv_bytes_per_token: int, weight_bytes: int, *, agents: int, longest: int) -> Figure:
    """Memory of K/V against context, for as many `agents` as hold one each, beside that of the weights."""
    figure, (axes,) = new_figure(width=6.4, height=3.4)
    with mpl.rc_context(STYLE):
        for count, style in sorted({1: "--", agents: "-"}.items()):
            kept = count * kv_bytes_per_token * longest
            axes.plot([0, longest], [0, kept / MEGA], style, color=BLUE, linewidth=2)
            who = "one conversation" if count == 1 else f"{count} conversations"
            axes.annotate(f"{who}:\n{kept / MEGA:,.0f} MB", (longest, kept / MEGA), (6, 0), textcoords="offset points",
                          va="center", fontsize=9, color=BLUE, annotation_clip=False)  # fmt: skip
        axes.axhline(weight_bytes / MEGA, color=GREEN, linewidth=2)
        side, at = ("left", 0.01) if agents < 3 else ("right", 0.99)  # where no blue line is in the way
        axes.text(at * longest, weight_bytes / MEGA, f"the weights: {weight_bytes / MEGA:,.0f} MB",
                  va="bottom", ha=side, fontsize=9, color=GREEN)  # fmt: skip
        crossing = weight_bytes / (agents * kv_bytes_per_token)
        title = "Memory"
        if crossing <= longest:
            axes.plot(crossing, weight_bytes / MEGA, "o", color=INK)
            title += f": K/V outgrow the weights at {crossing:,.0f} tokens each"
        axes.set(xlabel="tokens in each context", ylabel="megabytes", title=title, xlim=(0, longest))
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.set_ylim(0, 1.1 * max(weight_bytes, agents * kv_bytes_per_token * longest) / MEGA)
    return figure


def _with_spread(axes, x, runs, color: str, marker: str, label: str) -> None:
    """Medians as markers, and a line from the fastest to the slowest run."""
    medians = [float(np.median(each)) for each in runs]
    down = [m - min(each) for m, each in zip(medians, runs, strict=True)]
    up = [max(each) - m for m, each in zip(medians, runs, strict=True)]
    axes.errorbar(x, medians, yerr=[down, up], fmt=marker, color=color, ecolor=to_rgba(color, 0.6), markersize=5,
                  elinewidth=3, label=f"{label} (median, fastest to slowest)")  # fmt: skip


def _label(word: str) -> str:
    """A token as a tick label: white space made visible."""
    return word.replace("\n", "⏎").replace(" ", "·")
