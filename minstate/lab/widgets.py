"""Things to move in a notebook. What a widget shows is always a figure that can also be drawn without it."""

import io
from collections.abc import Callable

import ipywidgets
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def stepper(draw: Callable[[int], Figure], steps: int, *, start: int = 0, label: str = "step") -> ipywidgets.VBox:
    """A slider and a play button over the pictures `draw(0)` to `draw(steps - 1)`, each drawn when it is needed."""
    slider = ipywidgets.IntSlider(value=start, min=0, max=steps - 1, description=label, continuous_update=False)
    play = ipywidgets.Play(value=start, min=0, max=steps - 1, interval=600, show_repeat=False)
    ipywidgets.jslink((play, "value"), (slider, "value"))
    picture = ipywidgets.Image(value=png(draw(start)), format="png")
    slider.observe(lambda change: picture.set_trait("value", png(draw(change["new"]))), names="value")
    return ipywidgets.VBox([ipywidgets.HBox([play, slider]), picture])


def explorer(draw: Callable[..., Figure], **controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """Controls by name, and the picture `draw(name=value, ...)`, drawn anew whenever one of them moves."""

    def now() -> bytes:
        return png(draw(**{name: control.value for name, control in controls.items()}))

    picture = ipywidgets.Image(value=now(), format="png")
    for control in controls.values():
        control.observe(lambda _: picture.set_trait("value", now()), names="value")
    return ipywidgets.VBox([*controls.values(), picture])
