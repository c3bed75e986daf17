"""Figures of turns: what a log is made of, what each forward pass takes, what a compaction costs and saves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from minstate.lab.figures.palette import (
    BLUE,
    GREEN,
    GREY,
    INK,
    KEPT,
    LEGEND_ON_GRID,
    NAIVE,
    PALE,
    PAPER,
    PURPLE,
    REUSED,
    SKY,
    STYLE,
    color_of,
    new_figure,
    paper_box,
)
from minstate.session import Session
from minstate.turn import Turn

LOOKS = {
    "kept": REUSED,
    "sampled": {**NAIVE, "edgecolor": INK},
    "template": {"facecolor": SKY, "edgecolor": PAPER},
    "message": {"facecolor": BLUE, "edgecolor": PAPER},
    "generated": {"facecolor": INK, "edgecolor": PAPER},
}
NAMES = {
    "kept": KEPT,
    "sampled": "sampled, not forwarded yet",
    "template": "new: template",
    "message": "new: message",
    "generated": "generated and forwarded",
}


@dataclass(frozen=True)
class TurnTokens:
    """The log as a turn left it: what kind of token each one is, and where the turn's prompt begins and ends."""

    token_ids: tuple[int, ...]
    kinds: tuple[str, ...]  # a key of `LOOKS` for each token
    context: int
    prompt: int  # context + delta

    @staticmethod
    def of(session: Session, turn: Turn) -> "TurnTokens":
        """The tokens of `session` after `turn`, its latest one, in a ChatML conversation."""
        log, context = session.token_ids, turn.stats.context
        prompt = context + turn.stats.delta
        is_message = _inside_messages(log, session.engine.tokenizer)
        kinds = ["message" if inside else "template" for inside in is_message]
        kinds[:context] = ["kept"] * context
        kinds[prompt:] = ["generated"] * (len(log) - prompt)
        kinds[-1] = "sampled"
        if context:
            kinds[context] = "sampled"
        return TurnTokens(tuple(log), tuple(kinds), context, prompt)


def turn_strips(turns: Sequence[TurnTokens]) -> Figure:
    """A strip for each turn, a cell for each token of its log; a bracket over the delta."""
    figure, (axes,) = new_figure(width=9.6, height=1.3 + 0.75 * len(turns))
    for row, turn in enumerate(turns):
        for i, kind in enumerate(turn.kinds):
            axes.add_patch(Rectangle((i, row - 0.25), 1, 0.5, linewidth=0.5, **LOOKS[kind]))
        axes.plot([turn.context, turn.prompt], [row - 0.33] * 2, color=INK, linewidth=2, solid_capstyle="butt")
        middle = (turn.context + turn.prompt) / 2
        axes.text(middle, row - 0.38, f"Δ = {turn.prompt - turn.context}", ha="center", va="bottom", fontsize=9)
    with mpl.rc_context(STYLE):
        axes.set(xlabel="position in the log (tokens)", ylabel="turn", title="The log after each turn")
        axes.set(xlim=(-0.5, len(turns[-1].kinds) + 0.5), ylim=(len(turns) - 0.6, -0.75))
        axes.set_yticks(range(len(turns)), [str(number) for number in range(1, len(turns) + 1)])
        axes.grid(False)
        _legend(figure, {kind for turn in turns for kind in turn.kinds})
    return figure


def delta_cells(turn: TurnTokens, pieces: Sequence[str], *, around: int = 2) -> Figure:
    """Text and id of each token of a turn's delta, and of some tokens `around` it; `pieces`: each token's text."""
    first, end = max(0, turn.context - around), min(len(turn.kinds), turn.prompt + around)
    figure, (axes,) = new_figure(width=9.6, height=2.9)
    for column, i in enumerate(range(first, end)):
        look = LOOKS[turn.kinds[i]]
        pale = {**look, "facecolor": (look["facecolor"], 0.25), "hatch": None}
        axes.add_patch(Rectangle((column, 0), 1, 2.2, **pale))
        axes.add_patch(Rectangle((column, 2.2), 1, 0.3, **look))
        text = {"ha": "center", "va": "center", "fontsize": 8, "rotation": 90, "color": INK}
        axes.text(column + 0.5, 0.7, pieces[i].replace("\n", "\\n"), family="monospace", **text)
        axes.text(column + 0.5, 1.75, str(turn.token_ids[i]), **text)
    left, right = turn.context - first, turn.prompt - first
    axes.plot([left, right], [-0.15, -0.15], color=INK, linewidth=2, solid_capstyle="butt")
    axes.text((left + right) / 2, -0.25, f"Δ = {right - left} tokens", ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-0.1, end - first + 0.1), ylim=(2.6, -0.9), yticks=[0.7, 1.75], yticklabels=["text", "id"])
    axes.set_xticks([0.5, left + 0.5, right - 0.5], [str(first), str(turn.context), str(turn.prompt - 1)])
    axes.set_xlabel("position in the log (tokens)", fontsize=8)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=0, labelsize=8)
    _legend(figure, set(turn.kinds[first:end]))
    return figure


def timeline(passes: Sequence[Mapping[str, tuple[int, str]]], budget: int, names: Sequence[str], of: int = 0) -> Figure:
    """How many query tokens each forward pass takes, and from which session: the sum above, the shares below.

    passes  for each forward pass, by session: its query tokens, and what they are, "prefill" or "decode"
    of      leave room for so many passes, where `passes` are only the first of them
    """
    figure, _ = new_figure(width=9.6, height=2.6 + 0.32 * len(names))
    figure.clear()
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 0.35 * len(names)])
    columns = max(of, len(passes))
    for step, shares in enumerate(passes, 1):
        bottom = 0
        for row, name in enumerate(names):
            count, kind = shares.get(name, (0, ""))
            if not count:
                continue
            color = color_of(row)
            look = {"facecolor": (color, 0.35) if kind == "decode" else color, "edgecolor": PAPER}
            look |= {"hatch": "//"} if kind == "prefill" else {}
            upper.bar(step, count, 0.92, bottom=bottom, **look)
            bottom += count
            lower.add_patch(Rectangle((step - 0.46, row + 0.06), 0.92, 0.88, **look))
            box = paper_box() if kind == "prefill" else None
            lower.text(step, row + 0.5, str(count), ha="center", va="center", fontsize=8, color=INK, bbox=box)
    with mpl.rc_context(STYLE):
        upper.axhline(budget, color=INK, linestyle="--", linewidth=1)
        upper.text(columns + 0.5, budget * 1.02, f"token_budget = {budget}", ha="right", va="bottom", fontsize=8)
        upper.set(ylabel="query tokens", ylim=(0, budget * 1.25))
        upper.set_title("One forward pass after the other")
        upper.spines[["top", "right"]].set_visible(False)
        lower.set(xlabel="forward pass", xlim=(0.4, columns + 0.6), ylim=(len(names), 0))
        lower.set_yticks([row + 0.5 for row in range(len(names))], names)
        lower.set_xticks(range(1, columns + 1, 1 if columns < 25 else 2))
        lower.spines[:].set_visible(False)
        lower.tick_params(length=0)
        shown = {"hatched: prefill": {"facecolor": GREY, "hatch": "//"}, "pale: decode": {"facecolor": PALE}}
        swatches = [Patch(edgecolor=INK, linewidth=0.4, label=label, **look) for label, look in shown.items()]
        upper.legend(handles=swatches, loc="lower right", ncols=2, fontsize=8, bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return figure


def crossover_lines(panels: Mapping[str, tuple[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Two running totals in each panel, and where the second falls below the first for good.

    panels  by title: the unit, and by name the totals after 1, 2, ... turns
    """
    figure, charts = new_figure(len(panels), width=9.6, height=3.3)
    with mpl.rc_context(STYLE):
        for axes, (title, (unit, curves)) in zip(charts, panels.items(), strict=True):
            for (name, totals), (color, style) in zip(curves.items(), [(INK, "--"), (PURPLE, "-")], strict=True):
                axes.plot(range(1, len(totals) + 1), totals, style, color=color, linewidth=2, label=name)
            pairs = list(zip(*curves.values(), strict=True))
            behind = [turn for turn, (first, second) in enumerate(pairs, 1) if second >= first]
            crossing = behind[-1] + 1 if behind else 1
            if crossing <= len(pairs):
                height = pairs[crossing - 1][1]
                axes.plot(crossing, height, "o", color=GREEN, markersize=7, zorder=3)
                axes.annotate(
                    f"cheaper from\nturn {crossing} on", (crossing, height), (0.62, 0.08), fontsize=8,
                    textcoords="axes fraction", arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6},
                )  # fmt: skip
            axes.set(xlabel="turns from now", ylabel=unit, title=title, xlim=(1, None), ylim=(0, None))
        charts[0].legend(loc="upper left", fontsize=8, **LEGEND_ON_GRID)
    return figure


def turn_mix(rows: Sequence[Mapping[str, int]]) -> Figure:
    """A bar for each turn: which part of its prompt was kept, lost and recomputed, shared with others, or new."""
    figure, (axes,) = new_figure(width=9.6, height=3.4)
    parts = {
        "kept": (KEPT, LOOKS["kept"]),
        "recomputed": ("lost, recomputed", {**NAIVE, "edgecolor": PAPER}),
        "shared": ("new, shared with others", {"facecolor": SKY, "edgecolor": PAPER}),
        "new": ("new, computed", {"facecolor": BLUE, "edgecolor": PAPER}),
    }
    bottom = [0] * len(rows)
    with mpl.rc_context(STYLE):
        for part, (label, look) in parts.items():
            heights = [row[part] for row in rows]
            axes.bar(range(1, len(rows) + 1), heights, 0.9, bottom=bottom, label=label, linewidth=0.3, **look)
            bottom = [low + more for low, more in zip(bottom, heights, strict=True)]
        axes.set(xlabel="turn, of any session", ylabel="tokens of the prompt", xlim=(0.2, len(rows) + 0.8))
        axes.set_ylim(0, max(bottom) * 1.2)
        axes.legend(loc="upper left", ncols=4, fontsize=8)
    return figure


def _inside_messages(log: Sequence[int], tokenizer) -> list[bool]:
    """For each token, whether it is content of a ChatML message: after the header line, before `<|im_end|>`."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    place, inside = "between", []
    for token in log:
        place = {start: "header", end: "between"}.get(token, place)
        inside.append(place == "content")
        if place == "header" and "\n" in tokenizer.decode([token]):
            place = "content"
    return inside


def _legend(figure: Figure, kinds: set[str]) -> None:
    swatches = [Patch(label=label, **LOOKS[kind]) for kind, label in NAMES.items() if kind in kinds]
    figure.legend(handles=swatches, loc="outside lower left", ncols=5, fontsize=8, frameon=False)
