"""Figures of many agents on one engine: pages that they share, what batching costs and gains, how long turns wait."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from minstate.chat.content import common_prefix
from minstate.draft_budget import CostTable
from minstate.lab.figures.palette import (
    BLUE,
    ENGINE_LINES,
    INK,
    NAIVE,
    ORANGE,
    PAPER,
    SKY,
    STATEFUL,
    STYLE,
    color_of,
    new_figure,
    paper_box,
)
from minstate.model_config import ModelConfig
from minstate.session import Session

LINES = ENGINE_LINES | {"stateful + speculation": (SKY, "D:")}


def throughput_figure(rows: pd.DataFrame) -> Figure:
    """Turns a minute, and seconds a turn, as more agents work at once: from a row for each number and configuration."""
    figure, (left, right) = new_figure(2)
    with mpl.rc_context(STYLE):
        for name, mine in rows.groupby("configuration", sort=False):
            color, style = LINES[name]
            left.plot(mine["agents"], mine["turns a minute"], style, color=color, label=name)
            right.plot(mine["agents"], mine["p50 s"], style, color=color, label=f"{name}, median")
            right.plot(mine["agents"], mine["p95 s"], style[1:], color=color, linewidth=0.8, alpha=0.7)
        ticks = sorted(rows["agents"].unique())
        for axes, label, title in [
            (left, "turns a minute", "Throughput: higher is better"),
            (right, "seconds a turn (thin: 95th percentile)", "Latency: lower is better"),
        ]:
            axes.set(xlabel="agents at work", ylabel=label, title=title, xscale="log")
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
        left.set_ylim(0, None)
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_locator(NullLocator())
        left.legend(loc="upper left", fontsize=8)
    return figure


def pressure_figure(rows: pd.DataFrame) -> Figure:
    """The share of the history that still has K/V, and the tokens forwarded, as the pool shrinks."""
    figure, (left, right) = new_figure(2)
    with mpl.rc_context(STYLE):
        # The lower line is the wider one, so that it can be seen where the other lies on it.
        below = {"color": ORANGE, "marker": "s", "ls": "--", "lw": 3, "markersize": 11, "markerfacecolor": "none"}
        above = {"color": BLUE, "marker": "o", "markersize": 5}
        for hints, look in [
            (False, below | {"label": "the least recently used is evicted first"}),
            (True, above | {"label": "agents also say when they will be back"}),
        ]:
            mine = rows[rows["hints"] == hints]
            left.plot(mine["share"], mine["hit rate"], **look)
            right.plot(mine["share"], mine["forwarded"] / 1000, **look)
        for axes in (left, right):
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
            axes.set_xlabel("pool, as a share of the working set")
            axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.set_xticks([share for share in (2, 1.5, 1, 0.75, 0.5, 0.25) if share <= rows["share"].max()])
            axes.invert_xaxis()
        left.set(ylabel="history that still has K/V", ylim=(0, 1.05), title="Hit rate")
        left.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        right.set(ylabel="tokens forwarded (thousands)", ylim=(0, None), title="Work")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, fontsize=8, frameon=False)
    return figure


@dataclass(frozen=True)
class Holding:
    """The pages of one session at one moment: a copy."""

    pages: tuple[int, ...]  # ids
    kv_len: int  # tokens that have K/V in them
    published: int  # pages that the tree owns; the pages after them are the tail
    from_others: int  # pages that a session before it in the figure has too
    copied: int  # tokens at the beginning of the next page that such a session has too, on a page of its own

    @staticmethod
    def of(sessions: Mapping[str, Session]) -> "dict[str, Holding]":
        """What each session holds. A shared page counts as computed by the first of `sessions` that has it."""
        holdings, earlier = {}, []
        for name, session in sessions.items():
            sequence, size = session.sequence, session.engine.pool.page_size
            pages, kv_len = tuple(sequence.table.pages), sequence.kv_len
            seen = {page for other in earlier for page in other.sequence.table.pages}
            shared = next((i for i, page in enumerate(pages) if page not in seen), len(pages))
            at = slice(shared * size, min((shared + 1) * size, kv_len))
            before = sequence.log[: at.start]
            family = [other.sequence for other in earlier if other.sequence.root is sequence.root]
            logs = [other.log[: other.kv_len] for other in family]
            alike = [common_prefix(sequence.log[at], log[at]) for log in logs if log[: at.start] == before]
            holdings[name] = Holding(pages, kv_len, sequence.table.borrowed, shared, max(alike, default=0))
            earlier.append(session)
        return holdings


def sharing_figure(holdings: Mapping[str, Holding], page_size: int) -> Figure:
    """A row for each session, a numbered cell for each page, in the colour of the session that computed it."""
    figure, (axes,) = new_figure(width=9.6, height=1.2 + 0.5 * len(holdings))
    first = {page: row for row, held in reversed(list(enumerate(holdings.values()))) for page in held.pages}
    for row, held in enumerate(holdings.values()):
        for place, page in enumerate(held.pages):
            start, color = place * page_size, color_of(first[page])
            filled = min(page_size, held.kv_len - start)
            axes.add_patch(Rectangle((start, row + 0.1), filled, 0.8, facecolor=(color, 0.55), linewidth=0))
            if place == held.from_others and held.copied:
                copy = {"facecolor": PAPER, "edgecolor": INK, "hatch": "///", "linewidth": 0}
                axes.add_patch(Rectangle((start, row + 0.1), held.copied, 0.8, **copy))
            dashes = "-" if place < held.published else ":"
            axes.add_patch(Rectangle((start, row + 0.1), page_size, 0.8, fill=False, edgecolor=INK, linestyle=dashes))
            middle = {"ha": "center", "va": "center", "fontsize": 8, "bbox": paper_box()}
            axes.text(start + page_size / 2, row + 0.5, str(page), **middle)
    with mpl.rc_context(STYLE):
        longest = max(len(held.pages) for held in holdings.values())
        axes.set(xlim=(-1, longest * page_size + 1), ylim=(len(holdings), 0), title="Whose pages are these?")
        axes.set_xlabel("position in the log (tokens)")
        axes.set_yticks([row + 0.5 for row in range(len(holdings))], list(holdings))
        axes.set_xticks(range(0, longest * page_size + 1, page_size * max(1, longest // 8)))
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        names = list(holdings)
        swatches = [
            Patch(facecolor=(color_of(row), 0.55), label=f"computed by {names[row]}")
            for row in sorted(set(first.values()))
        ]
        swatches.append(Patch(facecolor=PAPER, edgecolor=INK, hatch="///", label="common prefix, copied"))
        swatches.append(Patch(facecolor=PAPER, edgecolor=INK, linestyle=":", label="tail: not in the tree yet"))
        figure.legend(handles=swatches, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    return figure


def pass_ms(costs: CostTable, parts: Iterable[tuple[int, int]]) -> float:
    """Modelled milliseconds of a forward pass over several sequences, each given as (query tokens, tokens of context).

    The table was measured with one sequence. So we price all query tokens together at the table's smallest context, and
    add for each sequence the extra cost of its own tokens at its own context.
    """
    parts, least = list(parts), costs.at(0)
    own = sum(costs.at(context)(tokens) - least(tokens) for tokens, context in parts)
    return least(sum(tokens for tokens, _ in parts)) + own


def batched_decode(config: ModelConfig, costs: CostTable, context: int, dtype: torch.dtype, most: int) -> pd.DataFrame:
    """Bytes read for each token, and milliseconds, of a decode of 1, 2, 4, ... sequences with `context` tokens each.

    Bytes are counted. Milliseconds, and the rates that follow from them, are modelled.
    """
    rows = []
    for many in [2**i for i in range(most.bit_length())]:
        ms = pass_ms(costs, [(1, context)] * many)
        rows.append(
            {
                "sequences": many,
                "weights MB": config.bytes_read(0, dtype) / many / 1e6,
                "K/V MB": context * config.kv_bytes_per_token(dtype) / 1e6,
                "ms": ms,
                "tokens a second": 1000 * many / ms,
                "for each": 1000 / ms,
            }
        )
    return pd.DataFrame(rows).set_index("sequences")


def batching_figure(rows: pd.DataFrame) -> Figure:
    """Megabytes read for a token, and tokens a second, as more sequences decode together: from `batched_decode`."""
    figure, (left, right) = new_figure(2)
    places, labels = range(len(rows)), [str(many) for many in rows.index]
    with mpl.rc_context(STYLE):
        left.bar(places, rows["weights MB"], 0.7, label="weights, read once for all", **NAIVE)
        left.bar(places, rows["K/V MB"], 0.7, rows["weights MB"], label="its own K/V", **STATEFUL)
        left.set(ylabel="MB read for a token", title="Work: bytes read for each token")
        left.legend(fontsize=8)
        right.plot(places, rows["tokens a second"], "o-", color=BLUE, label="all sequences together")
        right.plot(places, rows["for each"], "s--", color=ORANGE, label="each sequence")
        right.set(ylabel="tokens a second (modelled)", title="Time: tokens a second", ylim=(0, None))
        right.legend(fontsize=8, loc="upper left")
        for axes in (left, right):
            axes.set(xlabel="sequences that decode together")
            axes.set_xticks(places, labels)
    return figure


def waiting_turns(panels: Mapping[str, pd.DataFrame], marked: str) -> Figure:
    """How long each turn waited, one of them marked: columns `name`, `came`, `waited` (steps), in order of arrival."""
    figure, charts = new_figure(len(panels), sharey=True, width=9.6, height=4.2)
    with mpl.rc_context(STYLE):
        for axes, (title, rows) in zip(charts, panels.items(), strict=True):
            for number, (name, came, waited) in enumerate(rows[["name", "came", "waited"]].itertuples(index=False), 1):
                one = name == marked
                look = {"color": ORANGE, "linewidth": 4, "zorder": 3} if one else {"color": BLUE, "linewidth": 1.5}
                axes.plot([came, came + waited], [number, number], **look, label=name if one else "_others")
                axes.plot(came + waited, number, "D" if one else "|", color=look["color"], markersize=6, zorder=3)
            axes.set(xlabel="step", title=title)
            axes.grid(visible=False)
        charts[0].set_ylabel("turns, in order of arrival")
        charts[0].invert_yaxis()
        charts[0].legend(loc="upper right", fontsize=8)
    return figure
