"""The pictures of notebook 09: running sums, tiles of a launch, multiprocessors at work, predicted times.

Each takes plain numbers and returns a figure, so that a slider can draw it as well.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate.lab.figures.turn_costs import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, STYLE, YELLOW, new_figure
from minstate.lab.machines.roofline import Roofline

COLORS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE)
LINES = (BLUE, SKY, GREEN, ORANGE, PURPLE, INK)
MARKERS = "os^Dvp"


class Work(NamedTuple):
    """What one program did: rows of one sequence (query token times head of the group), over some of its keys."""

    program: tuple[int, ...]
    sequence: int
    rows: range
    keys: range


def online_softmax(
    scores: Sequence[float], tile: int, maxima: Sequence[float], estimates: np.ndarray, final: Sequence[float]
) -> Figure:
    """A softmax read tile by tile: the scores and their running maximum, and the output that follows from what is read.

    scores     of all keys, to base 2
    maxima     after each tile of `tile` keys
    estimates  after each tile, some numbers of the output `[tiles, numbers]`
    final      these numbers of the whole softmax's output
    """
    figure, (left, right) = new_figure(2, width=9.6, height=3.5)
    ends = [min(tile * (i + 1), len(scores)) for i in range(len(maxima))]
    with mpl.rc_context(STYLE):
        left.vlines(range(len(scores)), 0, scores, color=SKY, linewidth=2, label="score of a key")
        left.step([0, *ends], [maxima[0], *maxima], where="pre", color=ORANGE, linewidth=2, label="m, the highest yet")
        for end in ends:
            left.axvline(end - 0.5, color=GREY, linewidth=0.8, linestyle=":")
        low, high = left.get_ylim()
        left.set(xlabel="key", ylabel="score (to base 2)", title="Scores come in tiles", ylim=(low, high * 1.35))
        left.legend(loc="upper left", fontsize=8, ncols=2)
        for i, goal in enumerate(final):
            color = COLORS[i % len(COLORS)]
            right.axhline(goal, color=color, linewidth=1, linestyle="--")
            right.plot(ends, estimates[:, i], MARKERS[i % len(MARKERS)] + "-", color=color, label=f"number {i}")
        low, high = right.get_ylim()
        right.set(xlabel="keys read so far", ylabel="a / w", title="The output so far, and of all keys (dashed)")
        right.set(xticks=ends, ylim=(low, high + 0.25 * (high - low)))
        right.legend(loc="upper center", fontsize=8, ncols=len(final))
    return figure


def launch_picture(work: Sequence[Work], sequences: Mapping[str, tuple[int, int]], idle: int) -> Figure:
    """Who works on what in one launch: for each sequence a plane of rows and keys, each rectangle one program's part.

    work       of the programs of one KV head
    sequences  by name: rows, and keys in the context
    idle       programs of that head that found nothing to do
    """
    figure, panels = new_figure(len(sequences), width=9.6, height=3.9, sharey=True)
    splits, most = max(each.program[-1] for each in work) + 1, max(rows for rows, _ in sequences.values())
    with mpl.rc_context(STYLE):
        for number, (axes, (name, (rows, keys))) in enumerate(zip(panels, sequences.items(), strict=True)):
            mine = [each for each in work if each.sequence == number]
            axes.add_patch(Rectangle((0, 0), keys, rows, facecolor="white", edgecolor=GREY, hatch="..", linewidth=1))
            for each in mine:
                tile, split = each.program[0], each.program[-1]
                look = {"facecolor": COLORS[tile % len(COLORS)], "edgecolor": INK, "hatch": ("", "//", "xx")[split % 3]}
                corner = each.keys.start, each.rows.start
                axes.add_patch(Rectangle(corner, len(each.keys), len(each.rows), **look))
                thin = len(each.rows) < most / 12  # its name stands below it
                x, y = each.keys.start + len(each.keys) / 2, each.rows.start + len(each.rows) / 2
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
                text = f"{tile}" if splits == 1 else f"{tile}, {split}"
                axes.text(x, most / 16 if thin else y, text, ha="center", va="center", fontsize=8, bbox=box)
            what = "program" if len(mine) == 1 else "programs"
            axes.set(xlim=(0, keys), ylim=(most, 0), xlabel="key", title=f"{name}: {len(mine)} {what}")
            axes.grid(False)
        panels[0].set_ylabel("row (query token × head of the group)")
        labels = "tile" if splits == 1 else "tile, part of the keys"
        text = f"at each rectangle: {labels} of its program; {idle} more programs had nothing to do"
        figure.supxlabel(text, fontsize=9)
    return figure


def multiprocessors(programs: int, splits: int, count: int) -> Figure:
    """How the programs of a launch fall on `count` multiprocessors, with the keys in one part and in `splits`."""
    figure, panels = new_figure(2, width=9.6, height=3.5)
    columns = 12
    for axes, parts in zip(panels, (1, splits), strict=True):
        busy = programs * parts
        with mpl.rc_context(STYLE):
            for i in range(count):
                here = busy // count + (i < busy % count)
                color = "white" if here == 0 else SKY if here == 1 else ORANGE
                look = {"facecolor": color, "edgecolor": INK if here else GREY, "hatch": "" if here < 2 else "//"}
                axes.add_patch(Rectangle((i % columns + 0.05, i // columns + 0.05), 0.9, 0.9, linewidth=0.7, **look))
                if here:
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                    where = i % columns + 0.5, i // columns + 0.5
                    axes.text(*where, here, ha="center", va="center", fontsize=8, bbox=box)
            lines = -(-count // columns)
            what = "keys in one part" if parts == 1 else f"keys in {parts} parts"
            axes.set(xlim=(0, columns), ylim=(lines, 0), xticks=[], yticks=[], title=f"{what}: {busy} programs")
            axes.set_xlabel(f"{max(0, count - busy)} of {count} multiprocessors idle")
            axes.spines[:].set_visible(False)
            axes.grid(False)
    return figure


def predicted_times(
    contexts: Sequence[int],
    micros: Mapping[str, Sequence[float | None]],
    intensity: Mapping[str, float],
    machine: Roofline,
    name: str,
    measured: Mapping[str, Sequence[float | None]] | None = None,
) -> Figure:
    """Shortest times by a data sheet, and where that puts each kind of launch under the roofline.

    micros     by kind of launch: µs of one layer's attention at each of `contexts`, None where there is no such case
    intensity  of some of these kinds: FLOPs for each byte moved
    machine    peaks of the GPU called `name`
    measured   as micros, where there are measurements
    """
    figure, (left, right) = new_figure(2, width=9.6, height=4.2)
    with mpl.rc_context(STYLE):
        for i, (kind, times) in enumerate(micros.items()):
            color, marker = LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]
            points = [(x, y) for x, y in zip(contexts, times, strict=True) if y is not None]
            left.plot(*zip(*points, strict=True), marker + "--", color=color, label=kind, markerfacecolor="white")
            real = [(x, y) for x, y in zip(contexts, (measured or {}).get(kind, []), strict=False) if y is not None]
            if real:
                left.plot(*zip(*real, strict=True), marker + "-", color=color, label=f"{kind}, measured")
        left.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="µs for one layer's attention")
        left.set_title(f"PREDICTION for one {name}: at least")
        left.set_xticks(contexts, [f"{context // 1024}k" for context in contexts])
        left.minorticks_off()
        left.legend(loc="upper left", fontsize=8)
        x = np.geomspace(1, 10_000, 200)
        roof = np.minimum(machine.flops_per_s, x * machine.bytes_per_s) / 1e12
        right.plot(x, roof, color=GREY, linewidth=6, zorder=0)
        below = -2
        for kind, value in intensity.items():
            i, reached = list(micros).index(kind), min(machine.flops_per_s, value * machine.bytes_per_s) / 1e12
            look = {"color": LINES[i % len(LINES)], "markerfacecolor": "white", "markersize": 8, "label": kind}
            right.plot(value, reached, MARKERS[i % len(MARKERS)], **look)
            below -= 14 * (value >= machine.ridge)  # names on the flat roof stand one below the other
            offset, align = ((8, -4), "left") if value < machine.ridge else ((0, below), "center")
            text = kind.split(",")[0] if "," in kind and not kind[-1].isdigit() else kind
            right.annotate(text, (value, reached), offset, textcoords="offset points", ha=align, fontsize=8)
        right.axvline(machine.ridge, color=INK, linestyle=":", linewidth=1)
        right.text(machine.ridge * 1.1, machine.bytes_per_s / 1e12, f"ridge: {machine.ridge:.0f}", fontsize=8)
        right.set(xscale="log", yscale="log", xlabel="FLOPs for each byte moved", ylabel="TFLOP/s, at most")
        right.set_title("Roofline by the data sheet")
    return figure
