"""Figures of turns: every token of the log by its origin, every forward pass by its shares."""

import pytest
import tiny
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate.lab.figures.turns import TurnTokens, crossover_lines, delta_cells, timeline, turn_mix, turn_strips

pytestmark = pytest.mark.filterwarnings("error")
MIX = [{"kept": 0, "recomputed": 0, "shared": 4, "new": 6}, {"kept": 7, "recomputed": 5, "shared": 0, "new": 3}]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def require_labels(figure: Figure) -> None:
    figure.canvas.draw()
    assert figure.axes[-1].get_xlabel() and all(axes.get_ylabel() or axes.get_yticklabels() for axes in figure.axes)


@pytest.fixture
def turns() -> list[TurnTokens]:
    """Two turns of a session: the first is cut off after 4 tokens, the second after 1."""
    session = tiny.engine().open()
    first = TurnTokens.of(session, session.send("Hi", max_new_tokens=4))
    return [first, TurnTokens.of(session, session.send("So?", max_new_tokens=1))]


def test_the_first_turn_is_all_new_and_ends_in_a_token_without_k_and_v(turns):
    kinds = turns[0].kinds
    assert turns[0].context == 0 and "kept" not in kinds
    assert kinds[-4:] == ("generated",) * 3 + ("sampled",)


def test_a_later_turn_begins_with_the_token_that_was_sampled_last(turns):
    first, second = turns
    assert second.context == len(first.token_ids) - 1
    assert second.kinds[: second.context] == ("kept",) * second.context
    assert second.kinds[second.context] == first.kinds[-1] == "sampled"
    assert second.token_ids[second.context] == first.token_ids[-1]


def test_only_the_content_counts_as_the_message(turns):
    for turn, content in zip(turns, ["Hi", "So?"], strict=True):
        new = zip(turn.token_ids[: turn.prompt], turn.kinds, strict=False)
        message = [token for token, kind in new if kind == "message"]
        assert tiny.tokenizer().decode(message).endswith(content)
        assert "<|im_" not in tiny.tokenizer().decode(message)


def test_strips_have_a_cell_for_each_token_and_name_each_delta(turns):
    figure = turn_strips(turns)
    require_labels(figure)
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(cells) == sum(len(turn.token_ids) for turn in turns)
    assert texts(figure) == [f"Δ = {turn.prompt - turn.context}" for turn in turns]


def test_delta_cells_show_text_and_id_of_each_token_of_the_delta(turns):
    pieces = [tiny.tokenizer().decode([token]) for token in turns[1].token_ids]
    figure = delta_cells(turns[1], pieces, around=0)
    require_labels(figure)
    shown = texts(figure)
    new = range(turns[1].context, turns[1].prompt)
    assert shown[0:-1:2] == [pieces[i].replace("\n", "\\n") for i in new]
    assert shown[1:-1:2] == [str(turns[1].token_ids[i]) for i in new]
    assert shown[-1] == f"Δ = {len(new)} tokens"


def test_the_timeline_shows_each_share_and_keeps_room_for_later_passes():
    passes = [{"A": (7, "prefill")}, {"A": (1, "decode"), "B": (6, "prefill")}]
    for shown in (0, 1, 2):
        figure = timeline(passes[:shown], 7, ["A", "B"], of=2)
        require_labels(figure)
        assert texts(figure) == ["token_budget = 7", *["7", "1", "6"][: max(0, 2 * shown - 1)]]
        assert figure.axes[1].get_xlim()[1] == pytest.approx(2.6)


@pytest.mark.parametrize(
    ("second", "marked"),
    [([5, 6, 7], ["cheaper from\nturn 3 on"]), ([5, 6, 9], []), ([0, 0, 0], ["cheaper from\nturn 1 on"])],
)
def test_a_crossover_is_where_the_second_line_becomes_cheaper_for_good(second, marked):
    figure = crossover_lines({"title": ("tokens", {"keep": [3, 6, 8], "go on": second})})
    require_labels(figure)
    assert texts(figure) == marked


def test_a_bar_of_the_mix_is_the_whole_prompt():
    figure = turn_mix(MIX)
    require_labels(figure)
    tops = [
        max(bar.get_y() + bar.get_height() for bar in bars) for bars in zip(*figure.axes[0].containers, strict=True)
    ]
    assert tops == [sum(row.values()) for row in MIX]
