"""Figures of the KV cache: they draw at every position of their sliders, name their units, and raise no warning."""

import pytest
import torch

from minstate.lab.figures.kv_cache import (
    change_heat_maps,
    memory_lines,
    roofline_figure,
    work_grid,
)
from minstate.lab.machines.roofline import Roofline

pytestmark = pytest.mark.filterwarnings("error")

PIECES = ["The", " three", " states", "\n", " are"]
PASSES = {"naive": [2, 3, 4], "cached": [2, 1, 1]}


def require_labels(figure) -> None:
    """Every panel has labels on both axes; panels in a row share the y axis of the first."""
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert all(axes.get_xlabel() for axes in panels) and panels[0].get_ylabel()


@pytest.mark.parametrize("shown", [None, 0, 1, 3])
def test_the_work_grid_counts_what_it_shows(shown):
    figure = work_grid(PIECES, PASSES, shown)
    require_labels(figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"{name}: {sum(counts[:shown])} tokens forwarded" for name, counts in PASSES.items()]


def test_heat_maps_show_unchanged_cells_too():
    change = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.5, 0.01]])
    require_labels(change_heat_maps({"a": change, "b": change}, {"a": PIECES[:3], "b": PIECES[:3]}))


def test_forward_passes_lie_beside_their_floor_and_under_the_roofline():
    runs = [[0.1, 0.2, 0.1], [0.2, 0.3, 0.2]]
    machine = Roofline(flops_per_s=1e9, bytes_per_s=1e9)
    require_labels(roofline_figure([1, 2], [10**8, 2 * 10**8], [10**8, 10**8], runs, machine))


@pytest.mark.parametrize("agents", [1, 2, 16])
def test_memory_marks_the_crossing_where_there_is_one(agents):
    figure = memory_lines(46_080, 537_919_488, agents=agents, longest=8192)
    require_labels(figure)
    assert ("tokens each" in figure.axes[0].get_title(loc="left")) == (agents > 1)
