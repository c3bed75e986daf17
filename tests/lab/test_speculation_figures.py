"""What the pictures of speculation say: each token by who guessed it, each draft by its cost and its worth."""

import pandas as pd
import pytest
import tiny
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate import CostTable, Speculation
from minstate.lab.figures.speculation import (
    LINE,
    LOOKS,
    Column,
    Lookup,
    acceptance_figure,
    bands,
    break_even,
    columns,
    cost_figure,
    expected_tokens,
    forced_tokens,
    ledger_figure,
    lookup_figure,
    pass_strip,
    rate_figure,
    rates,
    rule_figure,
)
from minstate.prompt_lookup import LONGEST, NGRAM, NgramIndex
from minstate.speculation import LOG, Acceptance, band

pytestmark = pytest.mark.filterwarnings("error")
FREE = CostTable((1, 64), (0, 64), ((1.0, 1.0), (1.0, 1.0)))
DEAR = CostTable((1, 2, 64), (0, 64), ((10.0, 20.0, 640.0), (10.0, 20.0, 640.0)))
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def require_labels(figure: Figure) -> None:
    figure.canvas.draw()
    for axes in figure.axes:
        beside = axes.get_shared_y_axes().get_siblings(axes)
        assert axes.get_xlabel() and (any(each.get_ylabel() for each in beside) or not axes.get_yticks().size)


def boxes(figure: Figure, kind: str) -> list[Rectangle]:
    color = Rectangle((0, 0), 1, 1, **LOOKS[kind]).get_facecolor()
    drawn = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [patch for patch in drawn if patch.get_facecolor() == color]


@pytest.fixture
def turn():
    """A given answer that repeats its prompt at first, and then does not."""
    engine = tiny.engine(speculation=Speculation(FREE, max_draft=6))
    said = engine.tokenizer.encode("abcdefgh; abcdefXYZUVW")
    return engine, engine.open().send(token_ids=engine.tokenizer.encode("abcdefgh; "), replay=said)


def test_each_pass_has_the_columns_of_its_draft_and_of_what_was_said(turn):
    engine, turn = turn
    cells = columns(turn, engine.tokenizer)
    assert "".join(cell.said for cell in cells) == "abcdefgh;␣abcdefXYZUVW"
    assert sum(cell.first for cell in cells) == len(turn.verdicts) == cells[-1].number
    assert sum(cell.rejected for cell in cells) == turn.stats.drafted - turn.stats.accepted > 0
    assert sum(cell.kind == LOG and bool(cell.said) for cell in cells) == turn.stats.accepted > 0
    own = [cell.number for cell in cells if cell.said and cell.kind == "own"]
    assert own == list(range(1, len(turn.verdicts) + 1)), "each pass says one token of its own, its last"


def test_of_many_rejected_tokens_the_first_are_shown(turn):
    engine, turn = turn
    all_of_them, few = columns(turn, engine.tokenizer, most=99), columns(turn, engine.tokenizer, most=1)
    assert "".join(cell.said for cell in few) == "".join(cell.said for cell in all_of_them)
    assert sum(cell.rejected for cell in few) == sum(cell.rejected for cell in all_of_them)
    assert {cell.rejected for cell in all_of_them} == {0, 1}
    counted = [cell for cell in few if cell.rejected > 1]
    assert counted and all(cell.draft == f"+{cell.rejected}" for cell in counted)


def test_tokens_without_an_alternative_are_shown_as_such():
    engine = tiny.engine(positions=1024, num_pages=256, speculation=Speculation(FREE))
    session = engine.open(messages=[{"role": "user", "content": "Add."}], tools=[TOOL])
    turn = session.send([], tool_choice="required", max_new_tokens=120)
    constraint = engine.grammars.constraint([TOOL], "required", None)
    forced = forced_tokens(constraint, turn.token_ids)
    assert sum(forced) == turn.stats.forced and constraint.forced, "the constraint has stayed where it was"
    said = [cell for cell in columns(turn, engine.tokenizer, constraint) if cell.said]
    assert [cell.kind == "forced" for cell in said] == forced
    assert forced_tokens(constraint, [5, 6]) == forced_tokens(None, [5, 6]) == [False, False]


def test_a_strip_fits_its_lines_and_shows_the_passes_asked_for(turn):
    engine, turn = turn
    cells = columns(turn, engine.tokenizer) * 8
    figure = pass_strip(cells, title="a title")
    require_labels(figure)
    drawn = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(drawn) == sum(bool(cell.said) + bool(cell.draft) for cell in cells)
    assert max(patch.get_x() + patch.get_width() for patch in drawn) <= LINE
    assert len(boxes(figure, "rejected")) == sum(bool(cell.draft) for cell in cells)
    assert not any("last" in text.get_text() for text in figure.legends[0].get_texts())
    first = pass_strip(cells[: len(cells) // 8], shown=1)
    assert "the last of the passes shown" in [text.get_text() for text in first.legends[0].get_texts()]
    assert len(boxes(first, "own")) == 1 and first.axes[0].get_xlim() == figure.axes[0].get_xlim()
    assert not pass_strip(cells, shown=0).axes[0].patches, "before the first pass, nothing is said"


def test_a_dollar_is_no_formula():
    require_labels(pass_strip([Column(1, True, "$a_b$", "own", "", 0)]))


def test_a_lookup_names_all_occurrences_and_the_one_that_was_chosen():
    tokens = [ord(letter) for letter in "xabcd; abcd yabcd; zabcd"]
    index = NgramIndex()
    index.extend(tokens)
    lookup = Lookup.of(index, tokens)
    assert lookup.best == index.find(tokens, tokens) and lookup.best in lookup.chain
    positions = [position for _, position in lookup.chain]
    assert positions == sorted(positions, reverse=True) and len(positions) == 3
    figure = lookup_figure(lookup, chr, draft=3)
    require_labels(figure)
    shown = texts(figure)
    assert shown.count("4 agree: the longest") == 1 and shown.count("4 agree") == 2
    assert "".join(shown[: len(tokens) + 3]) == "xabcd; abcd yabcd; zabcd; z"
    nothing = Lookup.of(NgramIndex(), tokens)
    assert nothing.chain == () and len(texts(lookup_figure(nothing, chr, draft=3))) == len(tokens) + 1


def test_classes_of_matches_are_those_of_the_estimate():
    assert [length for lengths, _ in bands().values() for length in lengths] == list(range(NGRAM, LONGEST + 1))
    assert all(
        Acceptance().chances(LOG)[band(length)] == prior for lengths, prior in bands().values() for length in lengths
    )


def test_acceptance_is_drawn_where_there_is_enough_of_it():
    rows = [("log", NGRAM, 1, i % 2 == 0) for i in range(30)] + [("log", LONGEST + 9, 2, True)] * 30
    rows += [("grammar", 0, 1, True)] * 30 + [("corpus", NGRAM, 1, True)] * 3
    figure = acceptance_figure(pd.DataFrame(rows, columns=["source", "match", "place", "hit"]))
    require_labels(figure)
    left, right = figure.axes
    points = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert points == {"grammar": [100], "log": [50, 100]}
    heights = [bar.get_height() for bars in right.containers for bar in bars]
    assert sorted(filter(None, heights)) == [50, 100] and texts(figure) == ["30", "30"]
    centres = [bar.get_x() + bar.get_width() / 2 for bars in right.containers for bar in bars if bar.get_height()]
    assert centres == pytest.approx([0, len(bands()) - 1]), "a bar by itself stands above its name"


def test_expected_tokens_and_break_even_are_what_one_counts_by_hand():
    assert expected_tokens([]) == 1 and expected_tokens([0.5, 0.5]) == 1.75
    assert break_even(DEAR.at(0), 1) == pytest.approx(1) and break_even(FREE.at(0), 1) == pytest.approx(0, abs=1e-9)
    assert break_even(lambda tokens: 10 + 4 * (tokens - 1), 1) == pytest.approx(0.4)
    assert rates(FREE.at(0), 0.5, 2) == [1, 1.5, 1.75] and rates(DEAR.at(0), 0.5, 1) == [1, 0.75]


def test_costs_and_rates_have_a_line_for_each_table_and_chance():
    figure = cost_figure({"free": FREE, "dear": DEAR}, 10)
    require_labels(figure)
    assert [line.get_label() for line in figure.axes[0].lines] == ["free", "dear"]
    assert {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines} == {("o", "-"), ("s", "--")}
    figure = rate_figure({"free": FREE, "dear": DEAR}, 10, [0.5, 0.9], longest=7)
    require_labels(figure)
    assert texts(figure) == ["7", "7", "0", "0"], "the best number of guesses, at each curve"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["free", "dear"]


def test_a_ledger_has_its_bound_and_rules_their_target():
    figure = ledger_figure({"gains": {"one": ([1, 2], [0.01, -0.5])}, "losses": {"two": ([1, 2], [0, 0.02])}}, 0.03)
    require_labels(figure)
    assert all("3 %" in text for text in texts(figure))
    assert [list(axes.lines[0].get_ydata()) for axes in figure.axes] == [[1, -50], [0, 2]]
    figure = rule_figure([0.75, 0.25], {"right": [0.75, 0.25], "wrong": [0.5, 0.5]}, draft=1)
    require_labels(figure)
    (axes,) = figure.axes
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[75, 25], [50, 50]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["token 0", "token 1\n(drafted)"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[75, 75], [25, 25]]
