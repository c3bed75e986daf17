"""The picture of the stack: every part is there once, and the place of a notebook is marked, not by colour alone."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minstate.lab.figures.stack import PARTS, stack_picture


def drawn(*here: str):
    (axes,) = stack_picture(*here).axes
    frames = {round(patch.get_linewidth(), 1) for patch in axes.patches}
    return [text.get_text() for text in axes.texts], frames


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_here_has_a_flag_and_a_thicker_frame(part):
    texts, frames = drawn(part)
    assert set(PARTS) <= set(texts) and texts.count("you are here") == 1 and len(frames) == 2


def test_there_may_be_none_or_several():
    assert "you are here" not in drawn()[0]
    assert drawn("model", "pages")[0].count("you are here") == 2


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no part of the engine is called cache; there are server, "):
        stack_picture("cache")


def test_no_text_leaves_its_box():
    figure = stack_picture("pages")
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [patch.get_window_extent(renderer) for patch in axes.patches]
    for text in axes.texts:
        place = text.get_window_extent(renderer)
        inside = [box for box in boxes if box.x0 <= place.x0 and place.x1 <= box.x1 and box.y0 <= place.y0 <= box.y1]
        assert inside or text.get_style() == "italic", text.get_text()
