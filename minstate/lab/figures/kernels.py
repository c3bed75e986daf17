"""Figures of kernels: an online softmax, the tiles of a launch, busy multiprocessors, predicted times, two rooflines.

Each function takes plain numbers and returns a figure, so that a slider can draw it as well.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate.lab.figures.palette import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    STYLE,
    YELLOW,
    new_figure,
    paper_box,
    tint,
)
from minstate.lab.machines.roofline import Roofline

COLORS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE)
LAUNCH_COLORS = (BLUE, SKY, GREEN, ORANGE, PURPLE, INK)
MARKERS = "os^Dvp"


class ProgramWork(NamedTuple):
    """The work of one program: rows of one sequence (query token × head of the group), over some of its keys."""

    program: tuple[int, ...]
    sequence: int
    rows: range
    keys: range


def online_softmax_figure(
    scores: Sequence[float], tile: int, maxima: Sequence[float], estimates: np.ndarray, final: Sequence[float]
) -> Figure:
    """A softmax computed tile by tile: the scores and their running maximum; the output after each tile.

    scores     of all keys, to base 2
    maxima     after each tile of `tile` keys
    estimates  some numbers of the output after each tile, `[tiles, numbers]`
    final      the same numbers of the whole softmax
    """
    figure, (left, right) = new_figure(2, width=9.6, height=3.5)
    ends = [min(tile * (i + 1), len(scores)) for i in range(len(maxima))]
    with mpl.rc_context(STYLE):
        left.vlines(range(len(scores)), 0, scores, color=SKY, linewidth=2, label="score of a key")
        left.step(
            [0, *ends], [maxima[0], *maxima], where="pre", color=ORANGE, linewidth=2, label="m, the highest so far"
        )
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
        right.set(xlabel="keys read so far", ylabel="a / w", title="Output so far, and of all keys (dashed)")
        right.set(xticks=ends, ylim=(low, high + 0.25 * (high - low)))
        right.legend(loc="upper center", fontsize=8, ncols=len(final))
    return figure


def launch_figure(work: Sequence[ProgramWork], sequences: Mapping[str, tuple[int, int]], idle: int) -> Figure:
    """What each program of a launch works on: for each sequence a plane of rows and keys, a rectangle for each program.

    work       of the programs of one KV head
    sequences  by name: the number of rows, and of keys in the context
    idle       programs of that head without work
    """
    figure, panels = new_figure(len(sequences), width=9.6, height=3.9, sharey=True)
    splits, most = max(each.program[-1] for each in work) + 1, max(rows for rows, _ in sequences.values())
    with mpl.rc_context(STYLE):
        for number, (axes, (name, (rows, keys))) in enumerate(zip(panels, sequences.items(), strict=True)):
            mine = [each for each in work if each.sequence == number]
            axes.add_patch(Rectangle((0, 0), keys, rows, facecolor=PAPER, edgecolor=GREY, hatch="..", linewidth=1))
            for each in mine:
                tile, split = each.program[0], each.program[-1]
                look = {"facecolor": COLORS[tile % len(COLORS)], "edgecolor": INK, "hatch": ("", "//", "xx")[split % 3]}
                corner = each.keys.start, each.rows.start
                axes.add_patch(Rectangle(corner, len(each.keys), len(each.rows), **look))
                thin = len(each.rows) < most / 12  # too thin for its label, which then stands below it
                x, y = each.keys.start + len(each.keys) / 2, each.rows.start + len(each.rows) / 2
                text = f"{tile}" if splits == 1 else f"{tile}, {split}"
                axes.text(x, most / 16 if thin else y, text, ha="center", va="center", fontsize=8, bbox=paper_box())
            what = "program" if len(mine) == 1 else "programs"
            axes.set(xlim=(0, keys), ylim=(most, 0), xlabel="key", title=f"{name}: {len(mine)} {what}")
            axes.grid(False)
        panels[0].set_ylabel("row (query token × head of the group)")
        labels = "tile" if splits == 1 else "tile, part of the keys"
        text = f"in each rectangle: {labels} of its program; {idle} more programs have no work"
        figure.supxlabel(text, fontsize=9)
    return figure


def multiprocessor_grids(programs: int, splits: int, count: int) -> Figure:
    """How the programs of a launch spread over `count` multiprocessors, with the keys in one part and in `splits`."""
    figure, panels = new_figure(2, width=9.6, height=3.5)
    columns = 12
    for axes, parts in zip(panels, (1, splits), strict=True):
        busy = programs * parts
        with mpl.rc_context(STYLE):
            for i in range(count):
                here = len(range(i, busy, count))  # programs are dealt out in turn
                color = PAPER if here == 0 else SKY if here == 1 else ORANGE
                look = {"facecolor": color, "edgecolor": INK if here else GREY, "hatch": "" if here < 2 else "//"}
                axes.add_patch(Rectangle((i % columns + 0.05, i // columns + 0.05), 0.9, 0.9, linewidth=0.7, **look))
                if here:
                    where = i % columns + 0.5, i // columns + 0.5
                    axes.text(*where, here, ha="center", va="center", fontsize=8, bbox=paper_box())
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
    cpu: Roofline | None = None,
    reached: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """The shortest possible times by a data sheet, and where each kind of launch lies under the roofline.

    micros     by kind of launch: µs of one layer's attention at each of `contexts`, None where there is no such case
    intensity  of some of these kinds: FLOPs for each byte moved
    machine    peaks of the GPU called `name`
    measured   as `micros`, where there are measurements
    cpu        measured peaks of this CPU, for a second roofline
    reached    by kind of batch: its FLOPs for each byte moved, and the FLOP/s that this CPU reached
    """
    figure, (left, right) = new_figure(2, width=9.6, height=4.2)
    looks = dict(zip(micros, cycle(zip(LAUNCH_COLORS, MARKERS, strict=True)), strict=False))
    with mpl.rc_context(STYLE):
        for kind, (color, marker) in looks.items():
            points = [(x, y) for x, y in zip(contexts, micros[kind], strict=True) if y is not None]
            broad = _hidden(kind, micros)
            look = {"linewidth": 9, "markersize": 12, "color": tint(color, 0.45)} if broad else {"color": color}
            line = "-" if broad else "--"
            left.plot(*zip(*points, strict=True), marker + line, label=kind, markerfacecolor=PAPER, **look)
            points = [(x, y) for x, y in zip(contexts, (measured or {}).get(kind, []), strict=False) if y is not None]
            if points:
                left.plot(*zip(*points, strict=True), marker + "-", color=color, label=f"{kind}, measured")
        left.set(xscale="log", yscale="log", xlabel="context (tokens)", ylabel="µs for one layer's attention")
        left.set_title(f"PREDICTION for one {name}: at least")
        left.set_xticks(contexts, [f"{context // 1024}k" for context in contexts])
        left.minorticks_off()
        left.legend(loc="upper left", fontsize=8)
        _draw_roofline(right, machine, {kind: (value, *looks[kind]) for kind, value in intensity.items()})
        if cpu:
            _draw_cpu(right, cpu, reached or {})
            right.set_title("Two rooflines: data sheet, and CPU measured")
            right.text(1.1, machine.bytes_per_s * 2.5e-12, name, fontsize=8)  # above the slope
    return figure


def _hidden(kind: str, micros: Mapping[str, Sequence[float | None]]) -> bool:
    """Whether a later line runs within a tenth of this one wherever both are: it is then drawn broad, to be seen."""
    kinds = list(micros)
    for later in kinds[kinds.index(kind) + 1 :]:
        pairs = [pair for pair in zip(micros[kind], micros[later], strict=True) if None not in pair]
        if pairs and all(abs(below - above) < 0.1 * below for below, above in pairs):
            return True
    return False


def _draw_roofline(axes: Axes, machine: Roofline, kinds: Mapping[str, tuple[float, str, str]]) -> None:
    """The roof, and a marker for each kind of launch: its FLOPs for each byte, its colour, its marker."""
    _draw_roof(axes, machine)
    below = -2
    for kind, (value, color, marker) in kinds.items():
        reached = min(machine.flops_per_s, value * machine.bytes_per_s) / 1e12
        axes.plot(value, reached, marker, color=color, markerfacecolor=PAPER, markersize=8, label=kind)
        offset, align = (8, -4), "left"
        if value >= machine.ridge:  # names on the flat roof stand one below the other
            below -= 14
            offset, align = (0, below), "center"
        text = kind.split(",")[0] if "," in kind and not kind[-1].isdigit() else kind
        axes.annotate(text, (value, reached), offset, textcoords="offset points", ha=align, fontsize=8)
    axes.axvline(machine.ridge, color=INK, linestyle=":", linewidth=1)
    axes.text(machine.ridge * 1.1, machine.bytes_per_s / 1e12, f"ridge: {machine.ridge:.0f}", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs for each byte moved", ylabel="TFLOP/s, at most")
    axes.set_title("Roofline by the data sheet")


def _draw_roof(axes: Axes, machine: Roofline) -> None:
    x = np.geomspace(1, 10_000, 200)
    roof = np.minimum(machine.flops_per_s, x * machine.bytes_per_s) / 1e12
    axes.plot(x, roof, color=GREY, linewidth=6, zorder=0)


def _draw_cpu(axes: Axes, cpu: Roofline, reached: Mapping[str, tuple[float, float]]) -> None:
    """The roof of a CPU, and a filled marker for each rate that it reached."""
    _draw_roof(axes, cpu)
    for kind, (value, rate) in reached.items():
        axes.plot(value, rate / 1e12, "s", color=INK, markersize=7, label=f"{kind}, measured")
        look = {"textcoords": "offset points", "fontsize": 8, "bbox": paper_box(0)}
        axes.annotate(kind, (value, rate / 1e12), (8, -4), **look)
    top = cpu.flops_per_s / 1e12
    axes.vlines(cpu.ridge, axes.get_ylim()[0], top, color=INK, linestyle=":", linewidth=1)
    axes.text(cpu.ridge, top * 1.4, f"ridge: {cpu.ridge:.0f}", ha="center", fontsize=8)
    axes.text(9000, top * 1.4, "this CPU", ha="right", fontsize=8)
