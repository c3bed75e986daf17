"""Widgets show, at each of their positions, the figure that can also be drawn without them."""

import io

import ipywidgets
from PIL import Image

from minstate.lab.figures.palette import new_figure
from minstate.lab.notebook import widgets


def numbered(value: int):
    figure, (axes,) = new_figure(width=1, height=1)
    axes.set_title(str(value))
    return figure


def find(box, kind):
    if isinstance(box, kind):
        return box
    return next((found for child in getattr(box, "children", ()) if (found := find(child, kind))), None)


def test_a_stepper_draws_the_step_that_it_is_moved_to():
    drawn = []
    box = widgets.stepper(lambda step: drawn.append(step) or numbered(step), 4, start=1)
    slider, image = find(box, ipywidgets.IntSlider), find(box, ipywidgets.Image)
    first = image.value
    slider.value = 3
    assert drawn == [1, 3] and image.value != first and bytes(image.value).startswith(b"\x89PNG")
    assert (slider.min, slider.max) == (0, 3)


def test_a_picture_is_sharp_and_as_wide_as_the_figure():
    figure = numbered(1)
    picture = widgets.picture_of(figure)
    width, height = figure.get_size_inches() * figure.dpi
    assert Image.open(io.BytesIO(picture.value)).size == (2 * round(width), 2 * round(height))
    assert picture.layout.width == f"min({width:.0f}px, 100%)"


def test_an_explorer_draws_with_all_its_controls():
    seen = []

    def draw(a, b):
        seen.append((a, b))
        return numbered(a + b)

    a, b = ipywidgets.IntSlider(value=1), ipywidgets.IntSlider(value=2)
    widgets.explorer(draw, a=a, b=b)
    b.value = 5
    assert seen == [(1, 2), (1, 5)]
