"""Figures of text and tokens: what a template adds, where two histories diverge, and what a divergence costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from minstate.chat.drift import REASONS, Drift
from minstate.lab.figures.palette import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LEGEND_ON_GRID,
    NAIVE,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    STATEFUL,
    STYLE,
    THOUSANDS,
    YELLOW,
    new_figure,
    tint,
)
from minstate.session import Session

LOOKS = {
    "special": {"facecolor": tint(INK, 0.65), "edgecolor": PAPER},
    "template": {"facecolor": (SKY, 0.45), "edgecolor": PAPER},
    "content": {"facecolor": PAPER, "edgecolor": FAINT},
    "system": {"facecolor": tint(GREEN, 0.5), "edgecolor": INK, "linewidth": 1.6},
    "thought": {"facecolor": tint(YELLOW, 0.7), "edgecolor": INK, "linestyle": "--"},
    "same": {"facecolor": PAPER, "edgecolor": FAINT},
    "dropped": {"facecolor": (ORANGE, 0.45), "edgecolor": INK, "linestyle": "--"},
    "forwarded": {"facecolor": BLUE, "edgecolor": PAPER},
}
NAMES = {
    "special": "special token, its name shortened",
    "template": "other text of the template",
    "content": "what the user and the assistant said",
    "system": "system message",
    "thought": "thought",
    "same": "in both: keeps its K/V",
    "dropped": "in the log only: dropped",
    "forwarded": "in the given history only: to be forwarded",
}
SHORT = {"im_start": "start", "im_end": "end", "begin_of_text": "begin", "eot_id": "end",
         "start_header_id": "head", "end_header_id": "/head"}  # fmt: skip
LINE = 92  # characters that fit into a figure's width
Cell = tuple[str, str, bool]  # text, a key of LOOKS, whether it belongs to the delta


def pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, with spaces and line breaks made visible. Bytes that are not UTF-8 are shown as `�`."""
    return [tokenizer.decode([i]).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") for i in ids]


def template_cells(tokenizer, text: str, contents: Mapping[str, str], delta: int = 0) -> list[Cell]:
    """A cell for each token of a rendered `text`; the last `delta` tokens are marked.

    contents  texts that messages brought, each with its kind: "content", "system" or "thought"
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    spans = [(text.index(each), text.index(each) + len(each), kind) for each, kind in contents.items() if each in text]
    cells = []
    for number, (i, piece, (start, end)) in enumerate(zip(ids, pieces(tokenizer, ids), offsets, strict=True)):
        kinds = [kind for first, last, kind in spans if start < last and first < end] or ["template"]
        kind = "special" if i in tokenizer.added_tokens_decoder else kinds[0]
        cells.append((piece, kind, number >= len(ids) - delta))
    return cells


def template_strips(styles: Mapping[str, Sequence[Cell]]) -> Figure:
    """One conversation as several templates write it: a cell for each token, as wide as its text; Δ underlined.

    Special tokens get short names without brackets, so that what was said stands out.
    """
    lines = {name: _wrapped([_shortened(cell) for cell in cells]) for name, cells in styles.items()}
    count = sum(len(each) for each in lines.values()) + 0.5 * len(lines)
    figure, (axes,) = new_figure(width=9.6, height=0.7 + 0.28 * count)
    row, ticks = 0.0, {}
    for name, each in lines.items():
        ticks[f"{name}\n{len(styles[name])} tokens"] = row + len(each) / 2
        for cells in each:
            _draw(axes, row, 0, cells)
            row += 1
        row += 0.5
    _strip_axes(axes, ticks, 0, row)
    there = {kind for cells in styles.values() for _, kind, _ in cells}
    kinds = [kind for kind in NAMES if kind in there]
    _legend(figure, kinds, [Patch(color=INK, label="underlined: the delta")])
    return figure


@dataclass(frozen=True)
class Divergence:
    """A session's log and a given history, as the texts of their tokens, and the drift between them."""

    drift: Drift
    log: tuple[str, ...]
    history: tuple[str, ...]

    @staticmethod
    def of(session: Session, messages, tools=None) -> "Divergence":
        """The log and the history that `session.drift` compares. Raises `BadMessage`."""
        drift, chat = session.drift(messages, tools), session.engine.chat
        given = chat.new_transcript(messages, session.transcript.tools if tools is None else tools)
        reply = not given.messages or given.messages[-1]["role"] != "assistant"
        ids = chat.encode(chat.render(given.messages, given.tools, reply=reply))
        return Divergence(drift, *(tuple(pieces(chat.tokenizer, each)) for each in (session.token_ids, ids)))


def divergence_strip(divergence: Divergence, title: str = "", *, before: int = 30) -> Figure:
    """The log above and the given history below, from `before` characters before the divergence on."""
    drift = divergence.drift
    figure, (axes,) = new_figure(width=9.6, height=1.8)
    first, room = drift.at, before
    while first and len(divergence.log[first - 1]) <= room:
        first -= 1
        room -= len(divergence.log[first])
    left = room
    for row, tokens, kind in ((0, divergence.log, "dropped"), (1.25, divergence.history, "forwarded")):
        cells, room = [], LINE - 6 - left
        for number, piece in enumerate(tokens[first:], first):
            if len(piece) > room:
                break
            room -= len(piece)
            cells.append((piece, "same" if number < drift.at else kind, False))
        end = _draw(axes, row, left, cells)
        more = len(tokens) - first - len(cells)
        axes.text(end + 0.5, row + 0.5, f"+ {more:,}" if more else "", va="center", fontsize=8)
    axes.plot([before] * 2, [0, 2.2], color=INK, linewidth=1.5, linestyle=":")
    axes.text(before, 2.25, f"position {drift.at}", ha="center", va="top", fontsize=8)
    axes.set_title(title or REASONS[drift.reason], fontsize=10, fontweight="bold", loc="left")
    ticks = {f"log\n{drift.dropped} dropped": 0.5, f"history\n{drift.rest} to forward": 1.75}
    _strip_axes(axes, ticks, 0, 2.75)
    _legend(figure, ["same", "dropped", "forwarded"])
    return figure


def turn_bars(series: Mapping[str, Sequence[int]], marks: Mapping[int, str], unit: str, title: str = "") -> Figure:
    """Grouped bars for each turn; `marks` are notes on some turns, which are counted from 1."""
    figure, (axes,) = new_figure(width=9.6, height=3.3)
    servers = [{"facecolor": GREEN, "hatch": "xx"}, {"facecolor": PURPLE, "hatch": "//"}]
    looks = [STATEFUL, *({**look, "edgecolor": PAPER} for look in servers)]
    width = 0.84 / len(series)
    with mpl.rc_context(STYLE):
        for column, ((name, values), look) in enumerate(zip(series.items(), looks, strict=False)):
            at = [turn - 0.42 + (column + 0.5) * width for turn in range(1, len(values) + 1)]
            axes.bar(at, values, width, label=name, linewidth=0.3, **look)
        turns = range(1, max(map(len, series.values())) + 1)
        axes.set_xticks(turns, [f"{turn}\n{marks.get(turn, '')}" for turn in turns])
        axes.set(xlabel="turn", ylabel=unit, title=title, ylim=(0, axes.get_ylim()[1] * 1.35))
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.legend(loc="upper left", fontsize=8.5)
    return figure


def habit_bars(costs: Mapping[str, int], floor: int, unit: str) -> Figure:
    """A bar for each habit of a client: the `floor` that every client pays, and the cost that the habit adds."""
    figure, (axes,) = new_figure(width=9.6, height=0.9 + 0.36 * len(costs))
    rows, values = range(len(costs)), list(costs.values())
    with mpl.rc_context(STYLE):
        axes.barh(rows, [floor] * len(rows), 0.7, label="new tokens: the append-only floor", **STATEFUL)
        extra = [value - floor for value in values]
        look = {**NAIVE, "edgecolor": PAPER, "linewidth": 0.3}
        axes.barh(rows, extra, 0.7, left=floor, label="forwarded before, and once more", **look)
        for row, value in zip(rows, values, strict=True):
            axes.text(value, row, f"  {value:,} ({value / floor:.1f} ×)", va="center", fontsize=8.5)
        axes.set_yticks(rows, list(costs))
        axes.set(xlabel=unit, xlim=(0, max(values) * 1.16), ylim=(len(rows) - 0.5, -0.5))
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.legend(loc="upper right", fontsize=8.5, **LEGEND_ON_GRID)
    return figure


def _shortened(cell: Cell) -> Cell:
    """A special token under a short name, such as "start" for <|im_start|>; other cells as they are."""
    text, kind, in_delta = cell
    if kind != "special":
        return cell
    name = text.strip("<|>[]")
    return SHORT.get(name, name), kind, in_delta


def _wrapped(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in lines of at most `LINE` characters."""
    lines, width = [[]], 0
    for cell in cells:
        if width + len(cell[0]) > LINE:
            lines, width = [*lines, []], 0
        lines[-1].append(cell)
        width += len(cell[0])
    return lines


def _draw(axes: Axes, row: float, column: float, cells: Sequence[Cell]) -> float:
    """Draw cells side by side, and return where they end."""
    for text, kind, in_delta in cells:
        axes.add_patch(Rectangle((column, row + 0.12), len(text), 0.7, **{"linewidth": 0.8, **LOOKS[kind]}))
        look = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 9}
        color = PAPER if kind in ("forwarded", "special") else INK
        axes.text(column + len(text) / 2, row + 0.47, text.replace("$", r"\$"), color=color, **look)
        if in_delta:
            axes.plot([column, column + len(text)], [row + 0.92] * 2, color=INK, linewidth=2, solid_capstyle="butt")
        column += len(text)
    return column


def _strip_axes(axes: Axes, ticks: Mapping[str, float], top: float, bottom: float) -> None:
    axes.set_yticks(list(ticks.values()), list(ticks), fontsize=8)
    axes.set_xlabel("text, cut into tokens (a cell is a token, ␣ a space, ⏎ a line break)", fontsize=8)
    axes.set(xlim=(-0.5, LINE + 0.5), ylim=(bottom, top), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(False)


def _legend(figure: Figure, kinds: Sequence[str], more: Sequence[Patch] = ()) -> None:
    swatches = [Patch(label=NAMES[kind], **{"linewidth": 0.8, **LOOKS[kind]}) for kind in kinds]
    figure.legend(handles=[*swatches, *more], loc="outside lower left", ncols=3, fontsize=8.5, frameon=False)
