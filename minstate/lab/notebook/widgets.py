"""Widgets for notebooks. Each shows a figure that can also be drawn without the widget."""

import io
from collections.abc import Callable

import ipywidgets
from matplotlib.figure import Figure

DENSITY = 2  # pixels for each point of a screen, as for the figures of the notebook itself


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, which is sharp on a dense screen too."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DENSITY * figure.dpi)
    return buffer.getvalue()


def picture_of(figure: Figure) -> ipywidgets.Image:
    """A widget that shows the figure in its own size; by default a box stretches and blurs it."""
    width = f"min({figure.get_figwidth() * figure.dpi:.0f}px, 100%)"
    return ipywidgets.Image(value=png(figure), format="png", layout={"align_self": "flex-start", "width": width})


def stepper(draw: Callable[[int], Figure], steps: int, *, start: int = 0, label: str = "step") -> ipywidgets.VBox:
    """A slider and a play button over the figures `draw(0)` to `draw(steps - 1)`, each drawn when it is needed."""
    slider = ipywidgets.IntSlider(value=start, min=0, max=steps - 1, description=label, continuous_update=False)
    play = ipywidgets.Play(value=start, min=0, max=steps - 1, interval=600, show_repeat=False)
    ipywidgets.jslink((play, "value"), (slider, "value"))
    picture = picture_of(draw(start))
    slider.observe(lambda change: picture.set_trait("value", png(draw(change["new"]))), names="value")
    return ipywidgets.VBox([ipywidgets.HBox([play, slider]), picture])


def explorer(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """Controls by name, and the figure `draw(name=value, ...)`, which is drawn again whenever a control moves."""

    def now() -> Figure:
        return draw(**{name: control.value for name, control in controls.items()})

    picture = picture_of(now())
    for control in controls.values():
        control.style.description_width = "initial"  # else long descriptions are cut off
        control.layout.width = "min(32em, 100%)"
        control.observe(lambda _: picture.set_trait("value", png(now())), names="value")
    return ipywidgets.VBox([*controls.values(), picture])
