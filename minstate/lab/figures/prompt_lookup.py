"""A figure of a prompt look-up: the earlier places that agree with the end of a text, and the draft read there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate.lab.figures.palette import BLUE, DIM, FAINT, INK, PAPER, new_figure
from minstate.prompt_lookup import NGRAM, Match, NgramIndex


@dataclass(frozen=True)
class Lookup:
    """A look-up at the end of `tokens`: the occurrences in its chain, most recent first, and the one it chose."""

    tokens: tuple[int, ...]
    chain: tuple[Match, ...]
    best: Match

    @staticmethod
    def of(index: NgramIndex, tokens: Sequence[int]) -> "Lookup":
        """The look-up of the end of `tokens` in `index`, which is an index of all of them."""
        tokens, chain = list(tokens), []
        position = index._last.get(tuple(tokens[-NGRAM:]), 0)
        while position:
            agree = zip(reversed(tokens[:position]), reversed(tokens), strict=False)
            length = next((i for i, (a, b) in enumerate(agree) if a != b), position)
            chain.append(Match(length, position))
            position = index._before[position]
        return Lookup(tuple(tokens), tuple(chain), index.find(tokens, tokens))


def lookup_figure(lookup: Lookup, text: Callable[[int], str], draft: int) -> Figure:
    """The tokens and the `draft` behind them in a row; below it a bar for each occurrence that was looked at."""
    count, best = len(lookup.tokens), lookup.best
    guessed = lookup.tokens[best.position : best.position + draft] if best.length else ()
    figure, (axes,) = new_figure(width=9.6, height=1.35 + 0.27 * len(lookup.chain))
    for place, token in enumerate([*lookup.tokens, *guessed]):
        look, source = {"facecolor": PAPER, "edgecolor": FAINT}, range(best.position, best.position + len(guessed))
        if place in source or place >= count:
            look = {"facecolor": (BLUE, 0.25), "edgecolor": INK, "linestyle": "-" if place < count else "--"}
        axes.add_patch(Rectangle((place, 0), 1, 1, **look))
        axes.text(place + 0.5, 0.5, text(token), ha="center", va="center", family="monospace", fontsize=10, zorder=3)
    for row, match in enumerate([Match(best.length, count), *lookup.chain]):
        is_end, is_best = row == 0, row > 0 and match == best
        color = INK if is_end else BLUE if is_best else DIM
        label = "the end: what follows?" if is_end else f"{match.length} agree{': the longest' if is_best else ''}"
        look = {"linewidth": 6} if is_end or is_best else {"linewidth": 3, "linestyle": (0, (1, 0.6))}
        y = 1.55 + 0.85 * row
        ends = [match.position - match.length, match.position]
        axes.plot(ends, [y] * 2, color=color, solid_capstyle="butt", **look)
        axes.text(match.position + 0.4, y, label, fontsize=8, va="center", color=INK)
    axes.set(xlim=(-0.3, max(count + len(guessed), count + 9) + 0.3), ylim=(2.2 + 0.85 * len(lookup.chain), -0.25))
    axes.set(yticks=[], xlabel="position (tokens)")
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=2, labelsize=8)
    return figure
