"""Prefill, decode and the KV cache: which tokens a forward pass takes, and what passes cost in time and memory.

Each function takes plain numbers and returns a figure, so that a slider can draw it as well.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter

from minstate.lab.figures.palette import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NAIVE,
    PAPER,
    REUSED,
    STATEFUL,
    STYLE,
    THOUSANDS,
    heat_map,
    new_figure,
)

GIGA, MEGA, MILLI = 1e9, 1e6, 1e-3


def work_grid(pieces: Sequence[str], passes: dict[str, Sequence[int]], shown: int | None = None) -> Figure:
    """Which tokens each forward pass takes: a panel for each way to generate, a row for a pass, a column for a token.

    pieces  the text of each token, of the prompt and of what was generated
    passes  for "naive", "cached" or both: how many tokens each pass forwards, always the newest ones
    shown   draw only the first `shown` passes, None for all
    """
    count = len(next(iter(passes.values())))
    shown = count if shown is None else shown
    prompt = len(pieces) - count
    figure, panels = new_figure(len(passes), width=4.6 * len(passes), height=3.7, sharey=True)
    computed = {"naive": {**NAIVE, "edgecolor": PAPER}, "cached": {**STATEFUL, "edgecolor": PAPER}}
    chosen = {"facecolor": PAPER, "edgecolor": INK, "linewidth": 1.3}
    with mpl.rc_context(STYLE):
        for axes, (name, forwarded) in zip(panels, passes.items(), strict=True):
            for row, new in enumerate(forwarded[:shown]):
                end = prompt + row
                for column in range(end + 1):
                    look = chosen if column == end else computed[name] if column >= end - new else REUSED
                    axes.add_patch(Rectangle((column - 0.43, row + 0.57), 0.86, 0.86, **look))
            labels = [_label(piece) if i < prompt + shown else "" for i, piece in enumerate(pieces)]
            axes.set_xticks(range(len(pieces)), labels, rotation=90, fontsize=8, family="monospace")
            axes.set_yticks(range(1, count + 1), [str(i) if i % 2 else "" for i in range(1, count + 1)])
            axes.set(xlim=(-0.6, len(pieces) - 0.4), ylim=(count + 0.6, 0.4), xlabel="token in the sequence")
            axes.set_title(f"{name}: {sum(forwarded[:shown])} tokens forwarded")
            axes.grid(False)
            axes.tick_params(length=0)
            handles = [Patch(label="forwarded in this pass", **computed[name])]
            handles += [Patch(label="K/V kept from earlier passes", **REUSED)] if name == "cached" else []
            handles += [Patch(label="chosen by this pass", **chosen)]
            axes.legend(handles=handles, loc="upper right", fontsize=8)
        panels[0].set_ylabel("forward pass")
    return figure


def change_heat_maps(changes: dict[str, torch.Tensor], pieces: dict[str, Sequence[str]]) -> Figure:
    """How much K/V changed, relative to its length: `[layers, positions]` a panel. `pieces` are the tokens' texts."""
    figure, panels = new_figure(len(changes), width=3.1 * len(changes), height=3.9, sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (title, change) in zip(panels, changes.items(), strict=True):
            picture = axes.imshow(
                change.clamp(min=1e-9).numpy(), cmap=heat_map(), norm=LogNorm(1e-4, 1), aspect="auto", origin="lower"
            )
            labels = [_label(piece) for piece in pieces[title]]
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


def roofline_figure(tokens: Sequence[int], flops: Sequence[int], read: Sequence[int], seconds, machine) -> Figure:
    """How long forward passes take, beside the shortest possible time, and where they lie under the roofline.

    tokens, flops, read  of each pass: query tokens, floating-point operations, bytes read
    seconds              of each pass: the seconds of every run
    machine              the `Roofline` that predicts the floors
    """
    figure, (left, right) = new_figure(2, height=3.9)
    floors = [machine.floor_s(f, b) for f, b in zip(flops, read, strict=True)]
    rates = [[f / s / GIGA for s in runs] for f, runs in zip(flops, seconds, strict=True)]
    intensity = np.array(flops) / np.array(read)
    with mpl.rc_context(STYLE):
        left.plot(tokens, np.array(read) / machine.bytes_per_s / MILLI, ":", color=INK, label="time to read")
        left.plot(
            tokens, np.array(flops) / machine.flops_per_s / MILLI, "--", color=INK, label="time for the arithmetic"
        )
        left.plot(
            tokens, np.array(floors) / MILLI, color=GREY, linewidth=7, zorder=0, label="floor: the longer of both"
        )
        _with_spread(left, tokens, [[s / MILLI for s in runs] for runs in seconds], BLUE, "o", "measured")
        left.set(xscale="log", yscale="log", xlabel="tokens in the forward pass", ylabel="milliseconds")
        left.set_title("Time of a forward pass")
        left.set_xticks(tokens, [str(n) for n in tokens])
        left.minorticks_off()
        left.legend(loc="upper left", fontsize=8)
        x = np.geomspace(intensity[0] / 1.6, intensity[-1] * 1.6, 200)
        roof = np.minimum(machine.flops_per_s, x * machine.bytes_per_s) / GIGA
        right.plot(x, roof, color=GREY, linewidth=7, zorder=0, label="roof: the most the machine can do")
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


def memory_lines(kv_bytes_per_token: int, weight_bytes: int, *, agents: int, longest: int) -> Figure:
    """Memory of K/V against the length of the context, for one agent and for `agents`, beside the weights' memory."""
    figure, (axes,) = new_figure(width=6.4, height=3.4)
    with mpl.rc_context(STYLE):
        for count, style in sorted({1: "--", agents: "-"}.items()):
            kept = count * kv_bytes_per_token * longest
            axes.plot([0, longest], [0, kept / MEGA], style, color=BLUE, linewidth=2)
            holders = "one conversation" if count == 1 else f"{count} conversations"
            axes.annotate(
                f"{holders}:\n{kept / MEGA:,.0f} MB", (longest, kept / MEGA), (6, 0), textcoords="offset points",
                va="center", fontsize=9, color=BLUE, annotation_clip=False,
            )  # fmt: skip
        axes.axhline(weight_bytes / MEGA, color=GREEN, linewidth=2)
        side, at = ("left", 0.01) if agents < 3 else ("right", 0.99)  # where no line of K/V is in the way
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
    axes.errorbar(x, medians, yerr=[down, up], fmt=marker, color=color, ecolor=(color, 0.6), markersize=5,
                  elinewidth=3, label=f"{label} (median, fastest to slowest)")  # fmt: skip


def _label(piece: str) -> str:
    """A token's text as a tick label: white space made visible."""
    return piece.replace("\n", "⏎").replace(" ", "·")
