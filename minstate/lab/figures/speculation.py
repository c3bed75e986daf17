"""Pictures of speculation: where a draft was read, what became of it, what it costs, and what it is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from operator import mul
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator

from minstate.chat.grammar import Constraint
from minstate.costs import CostTable
from minstate.lab.figures.drift import LINE, pieces
from minstate.lab.figures.turn_costs import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, STYLE, THOUSANDS, new_figure
from minstate.prompt_lookup import LONGEST, NGRAM, Match, NgramIndex
from minstate.speculation import CORPUS, GRAMMAR, LOG, SOURCES, Acceptance, band
from minstate.turn import Turn

LOOKS = {
    "log": {"facecolor": BLUE, "edgecolor": "white"},
    "corpus": {"facecolor": SKY, "edgecolor": "white", "hatch": ".."},
    "forced": {"facecolor": (GREEN, 0.4), "edgecolor": INK},
    "own": {"facecolor": "white", "edgecolor": INK, "linewidth": 1.4},
    "rejected": {"facecolor": (ORANGE, 0.35), "edgecolor": ORANGE, "linestyle": "--"},
}
NAMES = {
    "log": "draft from the session's log, accepted",
    "corpus": "draft from the tenant's corpus, accepted",
    "forced": "the grammar leaves no other",
    "own": "the model's own token",
    "rejected": "draft, rejected",
}
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # query tokens of which a pass is drawn
LINES = ((BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^:"), (PURPLE, "D-."))
SOURCE_LINES = {GRAMMAR: (GREEN, "^:"), LOG: (BLUE, "o-"), CORPUS: (SKY, "s--")}
BARS = (
    {"facecolor": BLUE},
    {"facecolor": SKY, "hatch": ".."},
    {"facecolor": ORANGE, "hatch": "//"},
    {"facecolor": PURPLE, "hatch": "xx"},
)


class Column(NamedTuple):
    """A place in a pass: what was said there, if anything, and what the draft had there, if anything."""

    number: int  # of the pass, from 1
    first: bool  # whether the pass begins here
    said: str
    kind: str  # of what was said: a key of LOOKS
    draft: str  # what was guessed instead: the rejected token, how many more of them there are, or ""
    rejected: int  # how many tokens `draft` stands for


def columns(turn: Turn, tokenizer, constraint: Constraint | None = None, most: int = 6) -> list[Column]:
    """The passes of a turn, place by place.

    constraint  the turn's, as at its beginning: shows what was forced
    most        rejected tokens of a pass that are shown one by one; the others are counted
    """
    forced, found = iter(forced_tokens(constraint, turn.token_ids)), []
    for number, verdict in enumerate(turn.verdicts, 1):
        draft, accepted = verdict.draft, verdict.accepted
        wrong = [(text, 1) for text in pieces(tokenizer, [guess.token_id for guess in draft[accepted:]])]
        if len(wrong) > most + 1:
            wrong[most:] = [(f"+{len(wrong) - most}", len(wrong) - most)]
        shown = zip_longest(pieces(tokenizer, verdict.said), [("", 0)] * accepted + wrong)
        for place, (text, guess) in enumerate(shown):
            must = text is not None and next(forced)
            source = draft[place].source if place < accepted else "own"
            kind = "forced" if must or source == GRAMMAR else source
            found.append(Column(number, place == 0, text or "", kind, *(guess or ("", 0))))
    return found


def forced_tokens(constraint: Constraint | None, token_ids: Sequence[int]) -> list[bool]:
    """For each token of a reply whether `constraint`, which stays as it is, left no alternative."""
    walk, forced = constraint.copy() if constraint else None, []
    for token in token_ids:
        if walk is not None and not walk.allows(token):
            walk = None
        forced.append(walk is not None and bool(walk.forced))
        if walk is not None:
            walk.advance(token)
    return forced


def pass_strip(cells: Sequence[Column], shown: int | None = None, title: str = "") -> Figure:
    """What a turn said, token by token, a bracket for each forward pass; under it what was guessed wrongly.

    shown  how many passes to draw, on axes with room for all of them; the last one is then marked
    """
    lines = _wrapped(cells)
    figure, (axes,) = new_figure(width=9.6, height=0.95 + 0.52 * len(lines))
    for row, line in enumerate(lines):
        top = 2.0 * row
        for left, cell in line:
            if shown is not None and cell.number > shown:
                continue
            for text, kind, y in [(cell.said, cell.kind, top), (cell.draft, "rejected", top + 0.74)]:
                if text:
                    axes.add_patch(Rectangle((left, y), _width(cell), 0.66, **{"linewidth": 0.8, **LOOKS[kind]}))
                    _write(axes, left + _width(cell) / 2, y + 0.33, text, kind)
            if cell.rejected == 1:
                axes.plot([left + 0.2, left + _width(cell) - 0.2], [top + 1.07] * 2, color=INK, linewidth=0.9)
            last = cell.number == shown
            axes.plot([left, left + _width(cell)], [top - 0.13] * 2, color=ORANGE if last else INK,
                      linewidth=3.5 if last else 1.5, solid_capstyle="butt")  # fmt: skip
            if cell.first:
                axes.text(left, top - 0.2, str(cell.number), fontsize=8, ha="left", va="bottom", color=INK)
    with mpl.rc_context(STYLE):
        axes.set_title(title)
    axes.set(xlim=(-0.5, LINE + 0.5), ylim=(2.0 * len(lines) - 0.4, -0.75), xticks=[], yticks=[])
    axes.set_xlabel("text, cut into tokens (a bracket is a forward pass, with its number; ␣ a space, ⏎ a line break)")
    axes.xaxis.label.set_fontsize(8)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    kinds = {cell.kind for cell in cells if cell.said} | {"rejected" for cell in cells if cell.draft}
    swatches = [Patch(**{"linewidth": 0.8, **LOOKS[kind]}, label=NAMES[kind]) for kind in LOOKS if kind in kinds]
    if shown is not None:
        swatches.append(Line2D([], [], color=ORANGE, linewidth=3.5, label="the last of the passes shown"))
    figure.legend(handles=swatches, loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    return figure


def _width(cell: Column) -> int:
    return max(len(cell.said), len(cell.draft), cell.first * len(str(cell.number)), 1)


def _wrapped(cells: Sequence[Column]) -> list[list[tuple[float, Column]]]:
    """The cells in lines, each with its left edge; a gap between two passes."""
    lines: list[list[tuple[float, Column]]] = [[]]
    left = 0.0
    for cell in cells:
        left += 0.9 * (cell.first and bool(lines[-1]))
        if left + _width(cell) > LINE and lines[-1]:
            lines.append([])
            left = 0.0
        lines[-1].append((left, cell))
        left += _width(cell)
    return lines


def _write(axes, x: float, y: float, text: str, kind: str) -> None:
    color = "white" if kind == "log" else INK
    paper = {"boxstyle": "square,pad=0.05", "facecolor": LOOKS[kind]["facecolor"], "edgecolor": "none"}
    axes.text(x, y, text.replace("$", r"\$"), ha="center", va="center", family="monospace", fontsize=8, color=color,
              bbox=paper if "hatch" in LOOKS[kind] else None)  # fmt: skip


@dataclass(frozen=True)
class Lookup:
    """A look-up behind the end of `tokens`: the occurrences in its chain, most recent first, and the one it chose."""

    tokens: tuple[int, ...]
    chain: tuple[Match, ...]
    best: Match

    @staticmethod
    def of(index: NgramIndex, tokens: Sequence[int]) -> "Lookup":
        """What `index`, which has taken up all of `tokens`, finds behind their end."""
        tokens, chain = list(tokens), []
        position = index._last.get(tuple(tokens[-NGRAM:]), 0)
        while position:
            agree = zip(reversed(tokens[:position]), reversed(tokens), strict=False)
            length = next((i for i, (a, b) in enumerate(agree) if a != b), position)
            chain.append(Match(length, position))
            position = index._before[position]
        return Lookup(tuple(tokens), tuple(chain), index.find(tokens, tokens))


def lookup_figure(lookup: Lookup, text: Callable[[int], str], draft: int) -> Figure:
    """The tokens in a row; under them each occurrence that was looked at; behind the end, the `draft` that is read."""
    count, best = len(lookup.tokens), lookup.best
    guessed = lookup.tokens[best.position : best.position + draft] if best.length else ()
    figure, (axes,) = new_figure(width=9.6, height=1.35 + 0.27 * len(lookup.chain))
    for place, token in enumerate([*lookup.tokens, *guessed]):
        look = {"facecolor": "white", "edgecolor": "#BBBBBB"}
        if place >= count:
            look = {"facecolor": (BLUE, 0.25), "edgecolor": INK, "linestyle": "--"}
        elif best.position <= place < best.position + len(guessed):
            look = {"facecolor": (BLUE, 0.25), "edgecolor": INK}
        axes.add_patch(Rectangle((place, 0), 1, 1, zorder=2 if place < count and "linewidth" in look else 1, **look))
        axes.text(place + 0.5, 0.5, text(token), ha="center", va="center", family="monospace", fontsize=10, zorder=3)
    for row, (length, position) in enumerate([Match(best.length, count), *lookup.chain]):
        y, mine = 1.55 + 0.85 * row, row and (length, position) == best
        color = INK if not row else BLUE if mine else "#888888"
        axes.plot([position - length, position], [y] * 2, color=color, linewidth=6 if mine or not row else 3,
                  solid_capstyle="butt", linestyle="-" if mine or not row else (0, (1, 0.6)))  # fmt: skip
        label = "the end: what follows?" if not row else f"{length} agree" + ": the longest" * bool(mine)
        axes.text(position + 0.4, y, label, fontsize=8, va="center", color=INK)
    axes.set(xlim=(-0.3, max(count + len(guessed), count + 9) + 0.3), ylim=(2.2 + 0.85 * len(lookup.chain), -0.25))
    axes.set(yticks=[], xlabel="position (tokens)")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=2, labelsize=8)
    return figure


def bands() -> dict[str, tuple[list[int], float]]:
    """Lengths of matches that `Acceptance` counts together, by name, each with what it assumes at the start."""
    lengths: dict[int, list[int]] = {}
    for match in range(NGRAM, LONGEST + 1):
        lengths.setdefault(band(match), []).append(match)
    names = {place: f"{each[0]}–{each[-1]}" if len(each) > 1 else str(each[0]) for place, each in lengths.items()}
    return {name: (lengths[place], Acceptance.PRIOR[place]) for place, name in names.items()}


def acceptance_figure(guesses: pd.DataFrame, fewest: int = 20) -> Figure:
    """How often a guess is right: left by its place in the draft, right by the length of the match before it.

    guesses  a row for each token of each draft up to the first wrong one: source, match, place, hit
    fewest   guesses that a point is made of, at least
    """
    figure, (left, right) = new_figure(2, width=8.4, height=2.8)
    sources = [source for source in SOURCES if (guesses["source"] == source).any()]
    with mpl.rc_context(STYLE):
        for source in sources:
            color, style = SOURCE_LINES[source]
            places = guesses[guesses["source"] == source].groupby("place")["hit"].agg(["mean", "size"])
            places = places[(places["size"] >= fewest).cummin()]  # up to the first of which there are too few
            if len(places):
                left.plot(places.index, 100 * places["mean"], style, color=color, label=source, markersize=5)
        looks = dict(zip([source for source in sources if source != GRAMMAR], BARS, strict=False))
        paper = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        for x, (lengths, _) in enumerate(bands().values()):
            alike = guesses[guesses["match"].clip(upper=LONGEST).isin(lengths)]
            hits = {source: alike[alike["source"] == source]["hit"] for source in looks}
            enough = [source for source in looks if len(hits[source]) >= fewest]
            for place, source in enumerate(enough):
                at = x + 0.4 * (place - (len(enough) - 1) / 2)
                right.bar(at, 100 * hits[source].mean(), 0.38, **looks[source])
                right.text(at, 4, f"{len(hits[source]):,}", ha="center", va="bottom", fontsize=8, bbox=paper)
        for source, look in looks.items():
            right.bar(0, 0, label=source, **look)
        assumed = [100 * prior for _, prior in bands().values()]
        right.plot(assumed, "D", color=INK, markersize=6, markerfacecolor="white", label="assumed at the start")
        left.set(xlabel="place in the draft (tokens)", ylabel="right, if all before it were (%)", ylim=(0, 108))
        left.set_title("By place in the draft")
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(xlabel="tokens that agree before it", ylabel="right, if all before it were (%)")
        right.set(yticks=range(0, 101, 20), ylim=(0, 125))  # room for the legend
        right.set_title("By length of the match")
        right.set_xticks(range(len(assumed)), list(bands()))
        left.legend(fontsize=8)
        right.legend(fontsize=8, ncols=3, loc="upper left")
    return figure


def expected_tokens(chances: Sequence[float]) -> float:
    """Tokens that a pass is expected to say, given the chance of each guess if those before it are right."""
    return 1 + sum(accumulate(chances, mul))


def break_even(cost: Callable[[int], float], guesses: int) -> float:
    """The chance of each of so many guesses at which a pass with them gives as much per cost as one without."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = expected_tokens([middle] * guesses) * cost(1) >= cost(1 + guesses)
        low, high = (low, middle) if enough else (middle, high)
    return high


def cost_figure(tables: Mapping[str, CostTable], context: int) -> Figure:
    """Left, what a pass costs; right, how sure guesses must be to be worth it."""
    figure, (left, right) = new_figure(2, width=8.4, height=2.8)
    with mpl.rc_context(STYLE):
        for (name, table), (color, style) in zip(tables.items(), LINES, strict=False):
            cost, look = table.at(context), {"color": color, "label": name, "markersize": 5}
            left.plot(TOKENS, [cost(n) for n in TOKENS], style, **look)
            right.plot([n - 1 for n in TOKENS[1:]], [100 * break_even(cost, n - 1) for n in TOKENS[1:]], style, **look)
        left.set(xlabel="query tokens in the pass", ylabel="milliseconds of the pass", xscale="log", ylim=(0, None))
        left.set_title(f"A pass, {context:,} tokens of context")
        left.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        left.xaxis.set_minor_locator(NullLocator())
        right.set(xlabel="guesses in the draft (tokens)", ylabel="chance of each, at least (%)", ylim=(0, 105))
        right.set_title("Break-even")
        left.legend(fontsize=8)
    return figure


def rates(cost: Callable[[int], float], chance: float, longest: int = 31) -> list[float]:
    """For drafts of 0 to `longest` tokens: what is said in the time that a pass of one token takes."""
    return [expected_tokens([chance] * m) * cost(1) / cost(1 + m) for m in range(longest + 1)]


def rate_figure(tables: Mapping[str, CostTable], context: int, chances: Sequence[float], longest: int = 31) -> Figure:
    """Expected tokens per cost against the length of the draft, a curve for each chance, its maximum marked."""
    figure, panels = new_figure(len(tables), width=8.4, height=3.2, sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (name, table) in zip(panels, tables.items(), strict=True):
            axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            for chance, (color, style) in zip(chances, LINES, strict=False):
                curve = rates(table.at(context), chance, longest)
                best = max(range(len(curve)), key=curve.__getitem__)
                label = f"chance {100 * chance:.0f} %"
                axes.plot(range(len(curve)), curve, style[1:], color=color, linewidth=2, label=label)
                axes.plot(best, curve[best], style[0], color=color, markersize=8, markeredgecolor=INK, zorder=3)
                axes.annotate(f"{best}", (best, curve[best]), (0, 7), textcoords="offset points", ha="center",
                              fontsize=8)  # fmt: skip
            axes.set(xlabel="guesses in the draft (tokens)", title=name, xlim=(-1, longest + 1), ylim=(0, None))
        panels[0].set_ylabel("tokens said in the time\nof a pass of one (tokens)")
        top = max(axes.get_ylim()[1] for axes in panels)
        for axes in panels:
            axes.set_ylim(0, 1.05 * top)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(chances), fontsize=8.5, frameon=False)
    return figure


def ledger_figure(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], bound: float) -> Figure:
    """Modelled cost above that of no speculation (%), against tokens said.

    panels  by title: by name, numbers of tokens, and what they have cost more until then, as a share like `bound`
    """
    figure, charts = new_figure(len(panels), width=8.4, height=2.8)
    with mpl.rc_context(STYLE):
        for axes, (title, curves) in zip(charts, panels.items(), strict=True):
            for (name, (said, extra)), (color, style) in zip(curves.items(), LINES, strict=False):
                axes.plot(said, [100 * share for share in extra], style[1:], color=color, linewidth=1.4, label=name)
                axes.plot(said[-1], 100 * extra[-1], style[0], color=color, markeredgecolor=INK)
            axes.axhline(100 * bound, color=INK, linewidth=1)
            axes.axhline(0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.text(1, 100 * bound, f"the ledger's bound, {100 * bound:.0f} %", ha="right", va="bottom", fontsize=8,
                      transform=axes.get_yaxis_transform())  # fmt: skip
            axes.set(xlabel="tokens said", ylabel="modelled cost above that\nwithout drafts (%)", title=title)
            axes.margins(y=0.1)
            axes.xaxis.set_major_formatter(THOUSANDS)
        charts[-1].legend(fontsize=8)
    return figure


def rule_figure(target: Sequence[float], drawn: Mapping[str, Sequence[float]], draft: int) -> Figure:
    """How often each token was said under each rule (%), beside the distribution that it should have."""
    figure, (axes,) = new_figure(width=8.4, height=2.6)
    width = 0.84 / len(drawn)
    with mpl.rc_context(STYLE):
        for number, (name, shares) in enumerate(drawn.items()):
            at = [token + (number - (len(drawn) - 1) / 2) * width for token in range(len(target))]
            axes.bar(at, [100 * share for share in shares], width * 0.92, label=name, **BARS[number])
        for token, share in enumerate(target):
            label = "the model's distribution" if not token else None
            axes.plot([token - 0.46, token + 0.46], [100 * share] * 2, color=INK, linewidth=2, label=label)
        names = [f"token {token}" + "\n(drafted)" * (token == draft) for token in range(len(target))]
        axes.set_xticks(range(len(target)), names)
        axes.set(xlabel="token", ylabel="share of the samples (%)", title="Four rules, one draft")
        axes.legend(fontsize=8)
    return figure
