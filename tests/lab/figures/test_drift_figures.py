"""Figures of drift: each token by its origin, each history by what is kept, each cost above its floor."""

import pytest
import tiny
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minstate import BadMessage
from minstate.chat.conversation import Chat
from minstate.lab.engines.template_styles import STYLES, in_style
from minstate.lab.figures.drift import (
    LINE,
    LOOKS,
    Divergence,
    divergence_strip,
    habit_bars,
    pieces,
    template_cells,
    template_strips,
    turn_bars,
)
from minstate.weights import find_model, read_tokenizer

pytestmark = pytest.mark.filterwarnings("error")
CONTENTS = ["Be brief.", "Hi there", "Hello!", "Bye then"]
TALK = [
    {"role": role, "content": text}
    for role, text in zip(["system", "user", "assistant", "user"], CONTENTS, strict=True)
]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def cells_of(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def require_labels(figure: Figure) -> None:
    figure.canvas.draw()
    assert all(axes.get_xlabel() and (axes.get_ylabel() or axes.get_yticklabels()) for axes in figure.axes)


@pytest.fixture
def session():
    session = tiny.engine(num_pages=128).open(messages=[{"role": "system", "content": "Be kind."}])
    session.send("Hi", replay=[*tiny.tokenizer().encode("Ho"), 2])
    return session


def test_pieces_show_spaces_and_line_breaks():
    tokenizer = tiny.tokenizer()
    assert pieces(tokenizer, tokenizer.encode("a b\n")) == ["a", "␣", "b", "⏎"]


@pytest.mark.parametrize("style", STYLES)
def test_cells_tell_template_from_content_and_mark_the_delta(style):
    tokenizer = in_style(read_tokenizer(find_model()), style)
    chat = Chat(tokenizer)
    text = chat.render(TALK, reply=True)
    delta = chat.delta(chat.new_transcript(TALK[:3], []), TALK[3:], last_token=0)
    kinds = dict.fromkeys(CONTENTS, "content") | {CONTENTS[0]: "system"}
    cells = template_cells(tokenizer, text, kinds, len(delta))
    assert [piece for piece, _, _ in cells] == pieces(tokenizer, chat.encode(text))
    system, content = (
        "".join(piece for piece, kind, _ in cells if kind == want).replace("␣", "") for want in ("system", "content")
    )
    assert system == "Bebrief." and all(part.replace(" ", "") in content for part in CONTENTS[1:])
    assert {piece for piece, kind, _ in cells if kind == "special"} <= set(STYLES[style][1])
    assert [marked for _, _, marked in cells] == [False] * (len(cells) - len(delta)) + [True] * len(delta)


def test_a_style_adds_its_special_tokens_to_a_copy():
    tokenizer = read_tokenizer(find_model())
    before = len(tokenizer)
    styled = in_style(tokenizer, "llama3")
    assert len(tokenizer) == before and tokenizer.chat_template != styled.chat_template
    assert all(len(styled.encode(token, add_special_tokens=False)) == 1 for token in STYLES["llama3"][1])


def test_a_strip_has_a_cell_for_each_token_and_lines_that_fit():
    cells = [("token", "content", False)] * 50 + [("end", "special", True)]
    figure = template_strips({"one": cells, "two": cells[:3]})
    require_labels(figure)
    drawn = cells_of(figure)
    assert len(drawn) == len(cells) + 3 and max(cell.get_x() + cell.get_width() for cell in drawn) <= LINE
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one\n51 tokens", "two\n3 tokens"]


def test_special_tokens_have_short_names_in_a_strip_and_others_keep_theirs():
    cells = [("<|im_start|>", "special", False), ("[/INST]", "special", False), ("<b>", "content", False)]
    assert texts(template_strips({"one": cells})) == ["start", "/INST", "<b>"]


def test_a_divergence_holds_what_drift_compares(session):
    history = [session.messages[0], {"role": "user", "content": "Ha"}]
    divergence = Divergence.of(session, history)
    drift = divergence.drift
    assert len(divergence.log) == len(session.token_ids) == drift.at + drift.dropped
    assert len(divergence.history) == drift.at + drift.rest
    assert divergence.log[: drift.at] == divergence.history[: drift.at]
    assert (divergence.log[drift.at], divergence.history[drift.at]) == ("i", "a")
    with pytest.raises(BadMessage):
        Divergence.of(session, 5)


def test_a_divergence_strip_shows_what_is_the_same_dropped_and_to_be_forwarded(session):
    divergence = Divergence.of(session, [session.messages[0], {"role": "user", "content": "Ha"}])
    figure = divergence_strip(divergence, "a title", before=10)
    require_labels(figure)
    drift, drawn = divergence.drift, cells_of(figure)
    shown = texts(figure)
    assert f"position {drift.at}" in shown and figure.axes[0].get_title(loc="left") == "a title"
    tops = sorted({cell.get_y() for cell in drawn})
    for top, kind, rest in zip(tops, ["dropped", "forwarded"], [drift.dropped, drift.rest], strict=True):
        row = [cell for cell in drawn if cell.get_y() == top]
        right = [cell for cell in row if cell.get_x() >= 10]
        edges = {cell.get_edgecolor() for cell in row if cell.get_x() < 10}
        assert len(edges) == 1 and len(right) <= rest
        look = Rectangle((0, 0), 1, 1, **LOOKS[kind])
        assert {cell.get_facecolor() for cell in right} == {look.get_facecolor()}
    hidden = [int(text.removeprefix("+ ")) for text in shown if text.startswith("+ ")]
    assert len(drawn) + sum(hidden) >= drift.dropped + drift.rest


def test_a_history_that_extends_the_log_drops_nothing(session):
    figure = divergence_strip(Divergence.of(session, [*session.messages, {"role": "user", "content": "Ha"}]))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "log\n0 dropped" and figure.axes[0].get_title(loc="left") == "the history extends the log"


def test_each_server_has_a_bar_in_each_turn():
    figure = turn_bars({"session": [5, 2], "server": [5, 7]}, {2: "user"}, "tokens")
    require_labels(figure)
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    assert heights == [[5, 2], [5, 7]]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1\n", "2\nuser"]


def test_a_habit_costs_the_floor_and_more():
    figure = habit_bars({"none": 100, "bad": 250}, 100, "tokens")
    require_labels(figure)
    floor, extra = ([bar.get_width() for bar in bars] for bars in figure.axes[0].containers)
    assert floor == [100, 100] and extra == [0, 150]
    assert [text.strip() for text in texts(figure)] == ["100 (1.0 ×)", "250 (2.5 ×)"]
