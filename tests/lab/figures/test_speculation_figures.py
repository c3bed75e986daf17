"""Figures of speculation: each token by the source of its guess, how often guesses are right, what rules sample."""

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
    acceptance_figure,
    draft_columns,
    draft_strip,
    forced_tokens,
    match_bands,
    rule_figure,
)
from minstate.prompt_lookup import LONGEST_MATCH, NGRAM
from minstate.speculation import LOG, Acceptance, band

pytestmark = pytest.mark.filterwarnings("error")
FREE = CostTable((1, 64), (0, 64), ((1.0, 1.0), (1.0, 1.0)))
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
    """A replayed answer that repeats its prompt at first, and then does not."""
    engine = tiny.engine(speculation=Speculation(FREE, max_draft=6))
    answer = engine.tokenizer.encode("abcdefgh; abcdefXYZUVW")
    return engine, engine.open().send(token_ids=engine.tokenizer.encode("abcdefgh; "), replay=answer)


def test_each_pass_has_the_columns_of_its_draft_and_of_its_sampled_tokens(turn):
    engine, turn = turn
    cells = draft_columns(turn, engine.tokenizer)
    assert "".join(cell.sampled for cell in cells) == "abcdefgh;␣abcdefXYZUVW"
    assert sum(cell.first for cell in cells) == len(turn.verdicts) == cells[-1].number
    assert sum(cell.rejected for cell in cells) == turn.stats.drafted - turn.stats.accepted > 0
    assert sum(cell.kind == LOG and bool(cell.sampled) for cell in cells) == turn.stats.accepted > 0
    own = [cell.number for cell in cells if cell.sampled and cell.kind == "own"]
    assert own == list(range(1, len(turn.verdicts) + 1)), "each pass samples one token of its own, its last"


def test_of_many_rejected_tokens_the_first_are_shown(turn):
    engine, turn = turn
    all_of_them, few = draft_columns(turn, engine.tokenizer, most=99), draft_columns(turn, engine.tokenizer, most=1)
    assert "".join(cell.sampled for cell in few) == "".join(cell.sampled for cell in all_of_them)
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
    sampled = [cell for cell in draft_columns(turn, engine.tokenizer, constraint) if cell.sampled]
    assert [cell.kind == "forced" for cell in sampled] == forced
    assert forced_tokens(constraint, [5, 6]) == forced_tokens(None, [5, 6]) == [False, False]


def test_a_strip_fits_its_lines_and_shows_the_passes_asked_for(turn):
    engine, turn = turn
    cells = draft_columns(turn, engine.tokenizer) * 8
    figure = draft_strip(cells, title="a title")
    require_labels(figure)
    drawn = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(drawn) == sum(bool(cell.sampled) + bool(cell.draft) for cell in cells)
    assert max(patch.get_x() + patch.get_width() for patch in drawn) <= LINE
    assert len(boxes(figure, "rejected")) == sum(bool(cell.draft) for cell in cells)
    assert not any("last" in text.get_text() for text in figure.legends[0].get_texts())
    first = draft_strip(cells[: len(cells) // 8], shown=1)
    assert "the last pass shown" in [text.get_text() for text in first.legends[0].get_texts()]
    assert len(boxes(first, "own")) == 1 and first.axes[0].get_xlim() == figure.axes[0].get_xlim()
    assert not draft_strip(cells, shown=0).axes[0].patches, "before the first pass there is no token"


def test_a_dollar_is_no_formula():
    require_labels(draft_strip([Column(1, True, "$a_b$", "own", "", 0)]))


def test_bands_of_matches_are_those_of_the_estimate():
    assert [length for lengths, _ in match_bands().values() for length in lengths] == list(
        range(NGRAM, LONGEST_MATCH + 1)
    )
    assert all(
        Acceptance().chances(LOG)[band(length)] == prior
        for lengths, prior in match_bands().values()
        for length in lengths
    )


def test_acceptance_is_drawn_where_there_is_enough_of_it():
    rows = [("log", NGRAM, 1, i % 2 == 0) for i in range(30)] + [("log", LONGEST_MATCH + 9, 2, True)] * 30
    rows += [("grammar", 0, 1, True)] * 30 + [("corpus", NGRAM, 1, True)] * 3
    figure = acceptance_figure(pd.DataFrame(rows, columns=["source", "match", "place", "hit"]))
    require_labels(figure)
    left, right = figure.axes
    points = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert points == {"grammar": [100], "log": [50, 100]}
    heights = [bar.get_height() for bars in right.containers for bar in bars]
    assert sorted(filter(None, heights)) == [50, 100] and texts(figure) == ["30", "30"]
    centres = [bar.get_x() + bar.get_width() / 2 for bars in right.containers for bar in bars if bar.get_height()]
    assert centres == pytest.approx([0, len(match_bands()) - 1]), "a bar by itself stands above its name"


def test_rules_are_drawn_beside_their_target():
    figure = rule_figure([0.75, 0.25], {"right": [0.75, 0.25], "wrong": [0.5, 0.5]}, draft=1)
    require_labels(figure)
    (axes,) = figure.axes
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[75, 25], [50, 50]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["token 0", "token 1\n(drafted)"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[75, 75], [25, 25]]
