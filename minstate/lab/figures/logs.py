"""Figures of examined logs: for each request which of its tokens are old, lost and new."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from minstate.lab.doctor.findings import Examined
from minstate.lab.figures.palette import BLUE, REUSED, THOUSANDS, VERMILION, new_figure

LOOKS = {
    "old": REUSED,
    "lost": {"facecolor": VERMILION, "hatch": "//"},
    "new": {"facecolor": BLUE},
}


def request_bars(logs: Mapping[str, Sequence[Examined]]) -> Figure:
    """A panel for each log, with its name; in it a bar for each request, whose parts are counted in tokens."""
    figure, axes = new_figure(len(logs), height=3.0, sharey=True)
    for axis, (name, requests) in zip(axes, logs.items(), strict=True):
        places, bottoms = range(1, len(requests) + 1), [0] * len(requests)
        for part, look in LOOKS.items():
            heights = [getattr(request, part) for request in requests]
            axis.bar(places, heights, bottom=bottoms, label=part, width=0.9, **look)
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
        axis.set(title=name, xlabel="request, in the order of the log")
        axis.yaxis.set_major_formatter(THOUSANDS)
    axes[0].set_ylabel("tokens of the prompt")
    axes[0].legend(loc="upper left", ncols=len(LOOKS), fontsize=8)
    top = max(request.tokens for requests in logs.values() for request in requests)
    axes[0].set_ylim(0, 1.25 * top)
    return figure
