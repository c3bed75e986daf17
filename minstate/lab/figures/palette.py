"""The one palette of all figures: colours, hatches, line styles, and the style that axes share.

No other file of the lab, and no notebook, names a colour of its own, so this file alone decides how figures look. The
colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which survive colour blindness. Hatches, markers
and dashes tell things apart on a grey printer.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure

ORANGE, BLUE, SKY, GREEN, PURPLE, YELLOW, VERMILION = (
    "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00",
)  # fmt: skip
INK, DIM, FAINT, GREY, PALE, PAPER = "#222222", "#8C8C8C", "#BBBBBB", "#D9D9D9", "#ECECEC", "#FFFFFF"  # dark to light


def tint(color: str, strength: float) -> tuple[float, ...]:
    """`color` mixed with the paper, so that ink on it can be read: 1 is the colour itself, 0 is the paper."""
    return tuple(below + strength * (above - below) for above, below in zip(to_rgb(color), to_rgb(PAPER), strict=True))


# How an engine, and what it keeps, looks wherever it appears.
NAIVE = {"facecolor": ORANGE, "hatch": "//"}
PREFIX_REUSE = {"facecolor": GREEN, "hatch": ".."}
STATEFUL = {"facecolor": BLUE}
DRAFTING = {"facecolor": SKY, "hatch": "\\\\"}
REUSED = {"facecolor": PAPER, "edgecolor": DIM, "hatch": ".."}
KEPT = "kept from earlier turns"  # the label of `REUSED`
ENGINE_LINES = {"naive": (ORANGE, "s--"), "prefix reuse": (GREEN, "^-."), "stateful": (BLUE, "o-")}

# For things without a look of their own, such as sessions or rules: the first gets the first look. See `color_of`.
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
HATCHES = ("", "//", "..", "\\\\", "xx", "--")
LINES = ("o-", "s--", "^:", "D-.", "v-", "p--")
SHADES = (tint(VERMILION, 0.45), VERMILION, "#7A3600")  # one quantity at a low, a middle and a high setting

THOUSANDS = "{x:,g}"  # a format of ticks, as the text writes numbers: 14,000
LEGEND_ON_GRID = {"frameon": True, "framealpha": 1, "edgecolor": PAPER}  # hides the lines behind it

STYLE = {
    "figure.dpi": 90,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALE,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}


def new_figure(columns: int = 1, *, width: float = 9.0, height: float = 3.4, **options) -> tuple[Figure, list]:
    """A figure in the course's style with `columns` axes in a row. It is shown by being a cell's last expression."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, **options)
    plt.close(figure)  # else a notebook shows it twice
    return figure, list(axes[0])


def color_of(place: int) -> str:
    """The colour of the thing at this place in a list. Colours repeat after the last."""
    return COLORS[place % len(COLORS)]


def fill_of(place: int) -> dict:
    """The colour and the hatch of an area, by the thing's place in a list."""
    return {"facecolor": color_of(place), "hatch": HATCHES[place % len(HATCHES)]}


def line_of(place: int) -> tuple[str, str]:
    """The colour of a line, and its marker and dashes (a format string), by the thing's place in a list."""
    return color_of(place), LINES[place % len(LINES)]


def paper_box(pad: float = 0.1) -> dict:
    """The `bbox` of a text that stands on a hatch or on a line: a piece of paper below it."""
    return {"boxstyle": f"round,pad={pad}", "facecolor": PAPER, "edgecolor": "none"}


def heat_map() -> Colormap:
    """From pale to dark as values rise. What lies below the scale looks like paper."""
    return mpl.colormaps["YlOrBr"].with_extremes(under=PAPER)
