"""The figure of a look-up: every occurrence that was looked at, and the draft behind the end."""

import pytest
from matplotlib.figure import Figure

from minstate.lab.figures.prompt_lookup import Lookup, lookup_figure
from minstate.prompt_lookup import NgramIndex

pytestmark = pytest.mark.filterwarnings("error")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def test_a_lookup_names_all_occurrences_and_the_one_that_was_chosen():
    tokens = [ord(letter) for letter in "xabcd; abcd yabcd; zabcd"]
    index = NgramIndex()
    index.extend(tokens)
    lookup = Lookup.of(index, tokens)
    assert lookup.best == index.find(tokens, tokens) and lookup.best in lookup.chain
    positions = [position for _, position in lookup.chain]
    assert positions == sorted(positions, reverse=True) and len(positions) == 3
    figure = lookup_figure(lookup, chr, draft=3)
    figure.canvas.draw()
    assert figure.axes[0].get_xlabel()
    shown = texts(figure)
    assert shown.count("4 agree: the longest") == 1 and shown.count("4 agree") == 2
    assert "".join(shown[: len(tokens) + 3]) == "xabcd; abcd yabcd; zabcd; z"
    nothing = Lookup.of(NgramIndex(), tokens)
    assert nothing.chain == () and len(texts(lookup_figure(nothing, chr, draft=3))) == len(tokens) + 1
