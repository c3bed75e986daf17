"""Figures of speculation: what became of the drafts of a turn, how often guesses are right, and what rules sample."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from minstate.chat.grammar import Constraint
from minstate.lab.figures.drift import pieces
from minstate.lab.figures.palette import (
    BLUE,
    GREEN,
    INK,
    NAIVE,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    STATEFUL,
    STYLE,
    new_figure,
    paper_box,
)
from minstate.prompt_lookup import LONGEST_MATCH, NGRAM
from minstate.speculation import CORPUS, GRAMMAR, LOG, SOURCES, Acceptance, band
from minstate.turn import Turn

LOOKS = {
    "log": {"facecolor": BLUE, "edgecolor": PAPER},
    "corpus": {"facecolor": SKY, "edgecolor": PAPER, "hatch": ".."},
    "forced": {"facecolor": (GREEN, 0.4), "edgecolor": INK},
    "own": {"facecolor": PAPER, "edgecolor": INK, "linewidth": 1.4},
    "rejected": {"facecolor": (ORANGE, 0.35), "edgecolor": ORANGE, "linestyle": "--"},
}
NAMES = {
    "log": "draft from the session's log, accepted",
    "corpus": "draft from the tenant's corpus, accepted",
    "forced": "the grammar leaves no alternative",
    "own": "the model's own token",
    "rejected": "second row: draft, rejected",
}
SOURCE_LINES = {GRAMMAR: (GREEN, "^:"), LOG: (BLUE, "o-"), CORPUS: (SKY, "s--")}
BARS = (STATEFUL, {"facecolor": SKY, "hatch": ".."}, NAIVE, {"facecolor": PURPLE, "hatch": "xx"})


LINE = 82  # characters that fit into a figure's width


class Column(NamedTuple):
    """A place in a forward pass: the token that was sampled there, if any, and the guess that was rejected, if any."""

    number: int  # of the forward pass, from 1
    first: bool  # whether the forward pass begins here
    sampled: str
    kind: str  # of the sampled token: a key of LOOKS
    draft: str  # the rejected guess, or "+3" for three more of them, or ""
    rejected: int  # how many tokens `draft` stands for


def draft_columns(turn: Turn, tokenizer, constraint: Constraint | None = None, most: int = 1) -> list[Column]:
    """The forward passes of a turn, place by place.

    constraint  the turn's, as at its beginning: it tells which tokens were forced
    most        rejected tokens of a forward pass that are shown one by one; the others are counted
    """
    forced, found = iter(forced_tokens(constraint, turn.token_ids)), []
    for number, verdict in enumerate(turn.verdicts, 1):
        draft, accepted = verdict.draft, verdict.accepted
        wrong = [(text, 1) for text in pieces(tokenizer, [guess.token_id for guess in draft[accepted:]])]
        if len(wrong) > most + 1:
            wrong[most:] = [(f"+{len(wrong) - most}", len(wrong) - most)]
        shown = zip_longest(pieces(tokenizer, verdict.sampled), [("", 0)] * accepted + wrong)
        for place, (text, guess) in enumerate(shown):
            must = text is not None and next(forced)
            source = draft[place].source if place < accepted else "own"
            kind = "forced" if must or source == GRAMMAR else source
            found.append(Column(number, place == 0, text or "", kind, *(guess or ("", 0))))
    return found


def forced_tokens(constraint: Constraint | None, token_ids: Sequence[int]) -> list[bool]:
    """For each token of a reply, whether `constraint`, which stays as it is, left no alternative."""
    walk, forced = constraint.copy() if constraint else None, []
    for token in token_ids:
        if walk is not None and not walk.allows(token):
            walk = None
        forced.append(walk is not None and bool(walk.forced))
        if walk is not None:
            walk.advance(token)
    return forced


def draft_strip(cells: Sequence[Column], shown: int | None = None, title: str = "") -> Figure:
    """The tokens of a turn, with a bracket for each forward pass; in a second row the guesses that were rejected.

    cells  of `draft_columns`
    shown  how many forward passes to draw, on axes with room for all of them; the last one is then marked
    """
    lines, pitch = _wrapped(cells), 2.35 if any(cell.draft for cell in cells) else 1.5
    figure, (axes,) = new_figure(width=9.6, height=0.95 + 0.31 * pitch * len(lines))
    for row, line in enumerate(lines):
        top = pitch * row
        for left, cell in line:
            if shown is not None and cell.number > shown:
                continue
            for text, kind, y in [(cell.sampled, cell.kind, top), (cell.draft, "rejected", top + 0.74)]:
                if text:
                    axes.add_patch(Rectangle((left, y), _width(cell), 0.66, **{"linewidth": 0.8, **LOOKS[kind]}))
                    _write(axes, left + _width(cell) / 2, y + 0.33, text, kind)
            last = cell.number == shown
            axes.plot([left, left + _width(cell)], [top - 0.13] * 2, color=ORANGE if last else INK,
                      linewidth=3.5 if last else 1.5, solid_capstyle="butt")  # fmt: skip
            if cell.first:
                axes.text(left, top - 0.2, str(cell.number), fontsize=9, ha="left", va="bottom", color=INK)
    with mpl.rc_context(STYLE):
        axes.set_title(title)
    axes.set(xlim=(-0.5, LINE + 0.5), ylim=(pitch * len(lines) - 0.6, -0.75), xticks=[], yticks=[])
    axes.set_xlabel("text, cut into tokens (a bracket is a forward pass, with its number; ␣ a space, ⏎ a line break)")
    axes.xaxis.label.set_fontsize(8)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    kinds = {cell.kind for cell in cells if cell.sampled} | {"rejected" for cell in cells if cell.draft}
    swatches = [Patch(**{"linewidth": 0.8, **LOOKS[kind]}, label=NAMES[kind]) for kind in LOOKS if kind in kinds]
    if shown is not None:
        swatches.append(Line2D([], [], color=ORANGE, linewidth=3.5, label="the last pass shown"))
    figure.legend(handles=swatches, loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    return figure


def _width(cell: Column) -> int:
    number = str(cell.number) if cell.first else ""
    return max(len(cell.sampled), len(cell.draft), len(number), 1)


def _wrapped(cells: Sequence[Column]) -> list[list[tuple[float, Column]]]:
    """The cells in lines, each with its left edge, and a gap between two forward passes."""
    lines: list[list[tuple[float, Column]]] = [[]]
    left = 0.0
    for cell in cells:
        left += 0.9 if cell.first and lines[-1] else 0
        if left + _width(cell) > LINE and lines[-1]:
            lines.append([])
            left = 0.0
        lines[-1].append((left, cell))
        left += _width(cell)
    return lines


def _write(axes, x: float, y: float, text: str, kind: str) -> None:
    color = PAPER if kind == "log" else INK
    box = {"boxstyle": "square,pad=0.05", "facecolor": LOOKS[kind]["facecolor"], "edgecolor": "none"}
    axes.text(x, y, text.replace("$", r"\$"), ha="center", va="center", family="monospace", fontsize=10, color=color,
              bbox=box if "hatch" in LOOKS[kind] else None)  # fmt: skip


def match_bands() -> dict[str, tuple[list[int], float]]:
    """The lengths of matches that `Acceptance` counts together, by name, and the chance that it assumes at first."""
    lengths: dict[int, list[int]] = {}
    for match in range(NGRAM, LONGEST_MATCH + 1):
        lengths.setdefault(band(match), []).append(match)
    names = {place: f"{each[0]}–{each[-1]}" if len(each) > 1 else str(each[0]) for place, each in lengths.items()}
    return {name: (lengths[place], Acceptance.PRIOR[place]) for place, name in names.items()}


def acceptance_figure(guesses: pd.DataFrame, fewest: int = 20) -> Figure:
    """How often a guess is right: left by its place in the draft, right by the length of the match before it.

    guesses  a row for each token of each draft, up to the first wrong one: source, match, place, hit
    fewest   the least number of guesses that a point stands for
    """
    figure, (left, right) = new_figure(2, width=8.4, height=2.8)
    sources = [source for source in SOURCES if (guesses["source"] == source).any()]
    with mpl.rc_context(STYLE):
        for source in sources:
            color, style = SOURCE_LINES[source]
            places = guesses[guesses["source"] == source].groupby("place")["hit"].agg(["mean", "size"])
            places = places[(places["size"] >= fewest).cummin()]  # up to the first place with too few guesses
            if len(places):
                left.plot(places.index, 100 * places["mean"], style, color=color, label=source, markersize=5)
        looks = dict(zip([source for source in sources if source != GRAMMAR], BARS, strict=False))
        for x, (lengths, _) in enumerate(match_bands().values()):
            alike = guesses[guesses["match"].clip(upper=LONGEST_MATCH).isin(lengths)]
            hits = {source: alike[alike["source"] == source]["hit"] for source in looks}
            enough = [source for source in looks if len(hits[source]) >= fewest]
            for place, source in enumerate(enough):
                at = x + 0.4 * (place - (len(enough) - 1) / 2)
                right.bar(at, 100 * hits[source].mean(), 0.38, **looks[source])
                right.text(at, 4, f"{len(hits[source]):,}", ha="center", va="bottom", fontsize=8, bbox=paper_box())
        for source, look in looks.items():
            right.bar(0, 0, label=source, **look)
        assumed = [100 * prior for _, prior in match_bands().values()]
        right.plot(assumed, "D", color=INK, markersize=6, markerfacecolor=PAPER, label="assumed at first")
        left.set(xlabel="place in the draft (tokens)", ylabel="right, if all before it were (%)", ylim=(0, 108))
        left.set_title("By place in the draft")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="length of the match (tokens)", ylabel="right, if all before it were (%)")
        right.set(yticks=range(0, 101, 20), ylim=(0, 125))  # room for the legend
        right.set_title("By length of the match")
        right.set_xticks(range(len(assumed)), list(match_bands()))
        left.legend(fontsize=8)
        right.legend(fontsize=8, ncols=3, loc="upper left")
    return figure


def rule_figure(target: Sequence[float], drawn: Mapping[str, Sequence[float]], draft: int) -> Figure:
    """How often each token is sampled under each rule (%), beside the distribution that it should have."""
    figure, (axes,) = new_figure(width=8.4, height=2.6)
    width = 0.84 / len(drawn)
    with mpl.rc_context(STYLE):
        for number, (name, shares) in enumerate(drawn.items()):
            at = [token + (number - (len(drawn) - 1) / 2) * width for token in range(len(target))]
            axes.bar(at, [100 * share for share in shares], width * 0.92, label=name, **BARS[number])
        for token, share in enumerate(target):
            label = "the model's distribution" if not token else None
            axes.plot([token - 0.46, token + 0.46], [100 * share] * 2, color=INK, linewidth=2, label=label)
        names = [f"token {token}" + ("\n(drafted)" if token == draft else "") for token in range(len(target))]
        axes.set_xticks(range(len(target)), names)
        axes.set(xlabel="token", ylabel="share of the samples (%)", title="Four rules, one draft")
        axes.legend(fontsize=8)
    return figure
