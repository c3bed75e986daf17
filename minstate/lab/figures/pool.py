"""Figures of pages: the owners of a pool's pages, the way from page tables to pages, the parts of a ragged batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from minstate.lab.figures.palette import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    STYLE,
    THOUSANDS,
    color_of,
    line_of,
    new_figure,
    tint,
)
from minstate.paged_kv import PageTable, page_runs
from minstate.ragged_batch import RaggedBatch


@dataclass(frozen=True)
class PoolState:
    """Who held which pages at one moment: a copy, so later changes of the tables do not reach it."""

    num_pages: int
    page_size: int
    tables: dict[str, tuple[tuple[int, ...], int]]  # by session: its pages in order, its tokens with a slot
    title: str = ""

    @staticmethod
    def of(tables: Mapping[str, PageTable], title: str = "") -> "PoolState":
        """The state of the pool that `tables` share; there must be one table at least."""
        pool = next(iter(tables.values())).pool
        held = {name: (tuple(table.pages), table.reserved) for name, table in tables.items()}
        return PoolState(pool.allocator.num_pages, pool.page_size, held, title)

    def owners(self, page: int) -> list[str]:
        """The sessions that hold `page`, in the order in which they were named."""
        return [name for name, (pages, _) in self.tables.items() if page in pages]

    def filled(self, page: int) -> int:
        """The tokens in `page`: with several owners, of the one that holds most."""
        counts = [
            min(self.page_size, length - pages.index(page) * self.page_size)
            for pages, length in self.tables.values()
            if page in pages
        ]
        return max(counts, default=0)

    def runs(self, name: str) -> int:
        """In how many runs of adjacent pages the session `name` lies."""
        return len(page_runs(self.tables[name][0]))

    def summary(self) -> dict[str, str]:
        """A line for each session that holds something: tokens, pages, runs of adjacent pages."""
        return {
            name: f"{name}: {_count(length, 'token')}, {_count(len(pages), 'page')}, {_count(self.runs(name), 'run')}"
            for name, (pages, length) in self.tables.items()
            if pages
        }


def pool_map(state: PoolState, *, columns: int = 16) -> Figure:
    """A cell for each page, in lines as a text has them: its number, its owners' letters, how full it is.

    Pages that follow each other in memory *and* in their session's table are joined: a joined strip is one run.
    """
    rows = -(-state.num_pages // columns)
    figure, (axes,) = new_figure(width=9.6, height=1.15 + 0.55 * rows)
    _draw_pool(axes, state, columns)
    free = sum(not state.owners(page) for page in range(state.num_pages))
    swatches = [Patch(facecolor=tint(_color(state, name), 0.7), label=line) for name, line in state.summary().items()]
    swatches.append(Patch(facecolor=PAPER, edgecolor=GREY, label=f"free: {_count(free, 'page')}"))
    figure.legend(handles=swatches, loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    return figure


def pool_strip(states: Sequence[PoolState], *, columns: int = 16, per_row: int = 2) -> Figure:
    """Several moments in one static figure, in lines as a text has them."""
    lines = -(-len(states) // per_row)
    rows = -(-states[0].num_pages // columns)
    figure, _ = new_figure(width=9.6, height=lines * (0.5 + 0.32 * rows))
    figure.clear()
    for number, state in enumerate(states, 1):
        _draw_pool(figure.add_subplot(lines, per_row, number), state, columns, numbers=False)
    return figure


def _draw_pool(axes: Axes, state: PoolState, columns: int, *, numbers: bool = True) -> None:
    tables = [pages for pages, _ in state.tables.values()]
    joined = {first for pages in tables for first, second in pairwise(pages) if second == first + 1}
    for page in range(state.num_pages):
        row, column = divmod(page, columns)
        owners, filled = state.owners(page), state.filled(page)
        width = 1.0 if page in joined and column < columns - 1 else 0.92
        if not owners:
            axes.add_patch(Rectangle((column, row), width, 0.86, facecolor=PAPER, edgecolor=GREY))
        for level, name in enumerate(owners):  # a shared page has a layer for each of its owners
            height, color = 0.86 / len(owners), _color(state, name)
            for share, strength in ((1, 0.25), (filled / state.page_size, 0.7)):
                look = {"facecolor": tint(color, strength), "linewidth": 0}
                axes.add_patch(Rectangle((column, row + level * height), width * share, height, **look))
        if width == 1.0:  # inside a run
            axes.plot([column + 1, column + 1], [row + 0.15, row + 0.71], color=PAPER, linewidth=0.8)
        place = {"ha": "center", "va": "center", "fontweight": "bold", "color": INK}
        axes.text(column + 0.47, row + 0.45, "".join(owners), fontsize=9 if numbers else 8, **place)
        if numbers:
            axes.text(column + 0.06, row + 0.05, str(page), fontsize=8, color=INK, va="top")
            if owners and filled < state.page_size:
                axes.text(column + 0.88, row + 0.83, f"{filled}/{state.page_size}", fontsize=8, ha="right", va="bottom")
    rows = range(-(-state.num_pages // columns))
    axes.set(
        xlim=(-0.1, columns + 0.1), ylim=(len(rows), -0.1),
        xticks=[], yticks=[row + 0.45 for row in rows], yticklabels=[row * columns for row in rows],
        ylabel="first page of the line" if numbers else "",
    )  # fmt: skip
    if numbers:
        axes.set_xlabel(f"a cell is a page of {state.page_size} tokens, its number in the corner", fontsize=8)
        axes.yaxis.label.set_size(8)
    _bare(axes, state.title)


def page_table_figure(state: PoolState) -> Figure:
    """For each session its page table (above), a line from every entry to the page that it names (below)."""
    figure, (axes,) = new_figure(width=9.0, height=3.0)
    size, top = state.page_size, 3.2
    for page in range(state.num_pages):
        axes.add_patch(Rectangle((page, 0), 0.94, 0.8, facecolor=PAPER, edgecolor=GREY))
        axes.text(page + 0.47, -0.12, f"page {page}", ha="center", va="top", fontsize=8)
        axes.text(
            page + 0.47, -0.48, f"slots {page * size}–{page * size + size - 1}", ha="center", va="top", fontsize=8
        )
    entries = sum(len(pages) for pages, _ in state.tables.values())
    gap = (state.num_pages - entries) / (len(state.tables) + 1)
    left = gap
    for name, (pages, length) in state.tables.items():
        color = _color(state, name)
        axes.text(left - 0.1, top + 0.4, f"{name}.pages", ha="right", va="center", fontsize=9, fontweight="bold")
        for entry, page in enumerate(pages):
            at = left + entry
            axes.add_patch(Rectangle((at, top), 0.94, 0.8, facecolor=tint(color, 0.7), edgecolor=PAPER))
            axes.text(at + 0.47, top + 0.4, str(page), ha="center", va="center", fontweight="bold")
            last = min(length, (entry + 1) * size) - 1
            axes.text(at + 0.47, top + 0.92, f"tokens {entry * size}–{last}", ha="center", va="bottom", fontsize=8)
            axes.plot([at + 0.47, page + 0.47], [top, 0.8], color=color, linewidth=1.5)
            for offset in range(size):
                token = entry * size + offset
                if token < length:
                    cell = (page + 0.94 * offset / size, 0)
                    look = {"facecolor": tint(color, 0.7), "edgecolor": PAPER}
                    axes.add_patch(Rectangle(cell, 0.94 / size, 0.8, **look))
                    where = (cell[0] + 0.47 / size, 0.4)
                    axes.text(*where, f"{name}{token}", ha="center", va="center", fontsize=8)
        left += len(pages) + gap
    axes.set(xlim=(-0.05, state.num_pages), ylim=(-0.9, top + 1.5), xticks=[], yticks=[])
    _bare(axes, state.title)
    return figure


def batch_figure(batch: RaggedBatch, names: Sequence[str], pieces: Sequence[str]) -> Figure:
    """The ragged batch as a table: a column for each query token, a bracket for each sequence.

    names   of the sequences
    pieces  the text of each query token
    """
    tokens, starts = len(batch.token_ids), batch.query_start.tolist()
    figure, (axes,) = new_figure(width=9.6, height=3.0)
    rows = ("text", "token_ids", "positions", "slots", "logits")
    wanted = set(batch.logit_rows.tolist())
    columns = zip(pieces, batch.token_ids.tolist(), batch.positions.tolist(), batch.slots.tolist(), strict=True)
    cells = [(*column, "wanted" if i in wanted else "") for i, column in enumerate(columns)]
    for number, (name, first, end) in enumerate(zip(names, starts, starts[1:], strict=False)):
        color = color_of(number)
        for i in range(first, end):
            for row, value in enumerate(cells[i]):
                look = {"facecolor": tint(color, 0.3 if row else 0.6), "edgecolor": PAPER}
                axes.add_patch(Rectangle((i, row), 1, 1, **look))
                axes.text(i + 0.5, row + 0.5, str(value), ha="center", va="center", fontsize=8)
        axes.plot([first + 0.06, end - 0.06], [-0.2, -0.2], color=color, linewidth=3, solid_capstyle="butt")
        axes.text((first + end) / 2, -0.4, name, ha="center", va="bottom", fontsize=8, fontweight="bold")
    for start in starts:
        axes.text(start, 5.1, str(start), ha="center", va="top", fontsize=8, color=INK)
    axes.set(
        xlim=(-0.2, tokens + 0.2), ylim=(5.8, -1.2), xticks=[],
        yticks=[row + 0.5 for row in range(5)] + [5.35], yticklabels=[*rows, "query_start"],
        xlabel=f"{tokens} query tokens in one forward pass",
    )  # fmt: skip
    _bare(axes, "")
    return figure


def memory_use(rows: Mapping[str, Sequence[tuple[int, int, int, int]]]) -> Figure:
    """What memory is used for over a trace, for each way of dividing it: stacked areas, a chart for each.

    rows  by the name of the way: at each event the slots (used, reserved but unused, free in too small holes, free)
    """
    figure, charts = new_figure(len(rows), width=9.6, sharey=True)
    looks = [
        ("holds a token", {"facecolor": BLUE, "edgecolor": BLUE}),
        ("reserved, holds nothing", {"facecolor": tint(ORANGE, 0.5), "edgecolor": ORANGE, "hatch": "//"}),
        ("free, in holes below 1,024 slots", {"facecolor": tint(PURPLE, 0.5), "edgecolor": INK, "hatch": "xx"}),
        ("free", {"facecolor": PAPER, "edgecolor": GREY}),
    ]
    for axes, (name, states) in zip(charts, rows.items(), strict=True):
        with mpl.rc_context(STYLE):
            bottom = [0] * len(states)
            for (label, look), slots in zip(looks, zip(*states, strict=True), strict=True):
                upper = [low + more for low, more in zip(bottom, slots, strict=True)]
                axes.fill_between(range(len(states)), bottom, upper, step="post", label=label, linewidth=0.4, **look)
                bottom = upper
            axes.set(xlabel="event of the trace", title=name, xlim=(0, len(states) - 1), ylim=(0, max(bottom)))
    charts[0].set_ylabel("slots (each for the K/V of one token)")
    charts[0].yaxis.set_major_formatter(THOUSANDS)
    figure.legend(
        *charts[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    return figure


def run_costs(micros: Mapping[str, Mapping[int, Sequence[float]]], floor: Sequence[float]) -> Figure:
    """Microseconds of one layer's attention against the number of runs: a line for each way to read, with its spread.

    micros  by the name of the way, by the number of runs: every measurement
    floor   every measurement on contiguous tensors
    """
    figure, (axes,) = new_figure(width=7.6, height=3.6)
    runs = sorted({count for by_runs in micros.values() for count in by_runs})
    with mpl.rc_context(STYLE):
        low, middle, high = _spread(floor)
        axes.axhspan(low, high, color=GREY, alpha=0.6, linewidth=0)
        axes.axhline(middle, color=INK, linewidth=1, label="contiguous tensors, no pages")
        for place, (name, by_runs) in enumerate(micros.items()):
            color, style = line_of(place)
            low, middle, high = zip(*map(_spread, by_runs.values()), strict=True)
            axes.plot(list(by_runs), middle, style, color=color, label=name)
            axes.fill_between(list(by_runs), low, high, color=color, alpha=0.2, linewidth=0)
        axes.set(xscale="log", xlabel="runs of adjacent pages (log scale)", ylabel="µs for one layer", ylim=(0, None))
        axes.set_xticks(runs, list(map(str, runs)))
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.legend(loc="upper left", fontsize=8)
    return figure


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles: half of the values lie between the first one and the last one."""
    return tuple(np.quantile(values, [0.25, 0.5, 0.75]))


def _color(state: PoolState, name: str) -> str:
    return color_of(list(state.tables).index(name))


def _bare(axes: Axes, title: str) -> None:
    """No frame, no grid, no ticks: cells carry their own labels."""
    with mpl.rc_context(STYLE):
        axes.set_title(title)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0, labelsize=8)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
