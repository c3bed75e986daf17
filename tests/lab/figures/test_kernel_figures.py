"""Figures of kernels: every number that was passed, no program twice, and predictions called predictions."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from minstate.lab.figures.kernels import (
    ProgramWork,
    launch_figure,
    multiprocessor_grids,
    online_softmax_figure,
    predicted_times,
)
from minstate.lab.figures.palette import PAPER
from minstate.lab.machines.roofline import Roofline

H100 = Roofline(flops_per_s=1000e12, bytes_per_s=2e12)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_the_running_maximum_is_a_staircase_and_estimates_end_on_the_final_numbers():
    figure = online_softmax_figure(
        [0.0, 2.0, 1.0, 3.0, -1.0], 2, [2.0, 3.0, 3.0], np.array([[0.1], [0.4], [0.5]]), [0.5]
    )
    left, right = figure.axes
    (staircase,) = [line for line in left.lines if line.get_label().startswith("m, ")]
    assert list(staircase.get_ydata()) == [2.0, 2.0, 3.0, 3.0]
    goal, estimate = right.lines
    assert list(estimate.get_xdata()) == [2, 4, 5], "the last tile is not full"
    assert estimate.get_ydata()[-1] == goal.get_ydata()[0] == 0.5
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_a_launch_has_a_rectangle_for_each_program_in_its_sequences_plane():
    work = [
        ProgramWork((0, 0), 0, range(2), range(64)),
        ProgramWork((0, 1), 0, range(2), range(64, 100)),
        ProgramWork((1, 0), 1, range(32), range(40)),
    ]
    figure = launch_figure(work, {"decode": (2, 100), "chunk": (32, 40)}, idle=3)
    decode, chunk = figure.axes
    assert titles(figure) == ["decode: 2 programs", "chunk: 1 program"]
    assert texts(decode) == ["0, 0", "0, 1"] and texts(chunk) == ["1, 0"]
    assert [patch.get_width() for patch in decode.patches] == [100, 64, 36], "first the plane, then its parts"
    assert decode.get_ylim() == chunk.get_ylim() == (32, 0), "rows are read downwards, on one scale"
    assert "3 more programs" in figure.get_supxlabel()


def test_without_parts_a_program_is_named_by_its_tile_alone():
    (axes,) = launch_figure([ProgramWork((7, 0), 0, range(4), range(9))], {"decode": (4, 9)}, idle=0).axes
    assert texts(axes) == ["7"]


@pytest.mark.parametrize("programs, splits, idle", [(8, 16, (124, 4)), (8, 32, (124, 0)), (300, 1, (0, 0))])
def test_every_multiprocessor_is_there_and_all_programs_are_on_one(programs, splits, idle):
    figure = multiprocessor_grids(programs, splits, 132)
    for axes, parts, unused in zip(figure.axes, (1, splits), idle, strict=True):
        assert len(axes.patches) == 132
        assert sum(patch.get_facecolor() == to_rgba(PAPER) for patch in axes.patches) == unused
        assert sum(map(int, texts(axes))) == programs * parts
        assert axes.get_xlabel() == f"{unused} of 132 multiprocessors idle"


def test_predicted_times_are_called_so_and_gaps_are_left_out():
    micros, dense = {"decode": [1.0, 4.0], "chunk": [None, 9.0]}, {"decode": 4.0, "chunk": 900.0}
    figure = predicted_times([1024, 4096], micros, dense, H100, "H100")
    left, right = figure.axes
    assert "PREDICTION" in left.get_title(loc="left") and "data sheet" in right.get_title(loc="left")
    decode, chunk = left.lines
    assert list(decode.get_xdata()) == [1024, 4096] and list(chunk.get_xdata()) == [4096]
    points = {line.get_label(): float(line.get_ydata()[0]) for line in right.lines if line.get_label() in dense}
    assert points == {"decode": 8.0, "chunk": 1000.0}, "TFLOP/s: of the slope, and of the roof"
    assert [line.get_color() for line in left.lines] == [right.lines[i].get_color() for i in (1, 2)]
    assert texts(right) == ["decode", "chunk", "ridge: 500"]


def test_a_line_that_another_one_covers_is_broad():
    micros = {"decode": [10.0, 40.0], "verification": [10.5, None], "chunk": [20.0, 90.0]}
    widths = [line.get_linewidth() for line in predicted_times([1024, 4096], micros, {}, H100, "H100").axes[0].lines]
    assert widths[0] > 4 * widths[1] and widths[1] == widths[2]


def test_measurements_are_drawn_beside_predictions():
    micros = {"decode": [1.0, 4.0]}
    figure = predicted_times([1024, 4096], micros, {"decode": 4.0}, H100, "H100", {"decode": [2.0, None]})
    _, measured = figure.axes[0].lines
    assert measured.get_label() == "decode, measured" and list(measured.get_ydata()) == [2.0]


def test_the_rates_of_a_cpu_are_drawn_below_a_roof_of_its_own():
    cpu, reached = Roofline(flops_per_s=1e12, bytes_per_s=2e10), {"decode": (2.0, 3e10), "chunk": (100.0, 8e11)}
    figure = predicted_times([1024], {"decode": [1.0]}, {"decode": 4.0}, H100, "H100", cpu=cpu, reached=reached)
    right = figure.axes[1]
    points = {line.get_label(): float(line.get_ydata()[0]) for line in right.lines if "measured" in line.get_label()}
    assert points == {"decode, measured": 0.03, "chunk, measured": 0.8}, "TFLOP/s"
    assert texts(right) == ["decode", "ridge: 500", "decode", "chunk", "ridge: 50", "this CPU", "H100"]
    assert "CPU measured" in right.get_title(loc="left")
