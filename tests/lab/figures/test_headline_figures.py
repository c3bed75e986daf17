"""Figures of the headline and of predictions: they show the numbers that they are passed."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from minstate.draft_budget import CostTable
from minstate.lab.bench.ablation import COUNTS, ladder
from minstate.lab.bench.shapley import subsets
from minstate.lab.figures.headline import LOOK, fit_curves, ladder_figure, old_share_figure, peer_factors
from minstate.lab.figures.machines import (
    gain_figure,
    predicted_seconds,
    price_figure,
    transfer_figure,
    turn_figure,
    waiting_figure,
)
from minstate.lab.figures.merit import QUESTIONS, attribution_figure, waterfall
from minstate.lab.machines.cost_fit import CostFit
from minstate.lab.machines.data_sheets import SMOLLM2_135M
from minstate.lab.machines.kv_transfer import LINKS
from minstate.lab.machines.turn_seconds import DataSheetMachine, FittedMachine

pytestmark = pytest.mark.filterwarnings("error")
ONE = DataSheetMachine.of_h100(1)
FIT = CostFit(0.05, 0.003, 1e-7, 0.07, 1e-5, 0.99, 0.9)
CORES = FittedMachine(FIT, SMOLLM2_135M, CostTable.default("float32"))
MECHANISMS = ("prefix reuse", "state", "prompt lookup", "grammar")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def require_labels(figure: Figure) -> None:
    figure.canvas.draw()
    assert all(axes.get_xlabel() or axes.get_xticklabels() for axes in figure.axes)
    assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()


@pytest.fixture
def turns() -> pd.DataFrame:
    """Five turns of a session on two configurations."""
    rows = []
    for name in ("naive", "stateful"):
        for turn, n in enumerate((1_000, 1_200, 1_500, 1_700, 2_000), 1):
            delta = 1_000 if turn == 1 else 150
            prefill, decode = 0.003 * (n if name == "naive" else delta), 2.0
            row = {"configuration": name, "turn": turn, "n": n, "delta": delta, "reused": n - delta, "generated": 30}
            rows.append(row | {"prefill_s": prefill, "decode_s": decode, "total_s": prefill + decode})
    return pd.DataFrame(rows)


def test_old_shares_are_drawn_from_the_second_turn_on(turns):
    session = turns[turns["configuration"] == "stateful"]
    figure = old_share_figure({"a": session}, (0.85, 0.95))
    require_labels(figure)
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [2, 3, 4, 5] and line.get_ydata()[-1] == pytest.approx(100 * 1_850 / 2_000)


def test_the_fit_is_drawn_over_the_turns_that_it_was_fitted_to(turns):
    figure = fit_curves(turns, FIT)
    require_labels(figure)
    assert len(figure.axes[0].lines) == 4 and len(figure.axes[1].lines) == 3


def test_each_step_of_the_ladder_has_a_chart_with_the_seconds_before_and_after(turns):
    rows = []
    for place, name in enumerate(LOOK):
        mine = turns[turns["configuration"] == "stateful"].assign(configuration=name, repeat=0, passes=30)
        rows.append(mine.assign(total_s=mine["total_s"] / (place + 1), **dict.fromkeys(set(COUNTS) - {*mine}, 0)))
    measured = pd.concat(rows)
    table = ladder(measured)
    figure = ladder_figure({"a": measured, "b": measured}, {"a": table, "b": table})
    figure.canvas.draw()
    *steps, totals, _ = figure.axes
    assert len(steps) == 2 * (len(LOOK) - 1)
    for axis, (place, name) in zip(steps, list(enumerate(LOOK))[1:] * 2, strict=True):
        before, after = (list(line.get_ydata()) for line in axis.lines)
        assert before == pytest.approx([seconds * (place + 1) / place for seconds in after])
        assert axis.get_title(loc="left").endswith(f"→ {table.loc[name, 'total s']:,.0f} s")
    assert [text.get_text() for text in totals.texts][-1].endswith(f"{len(LOOK):.1f} ×")


def test_three_answers_stand_on_one_line_for_each_mechanism():
    table = pd.DataFrame(
        {"alone": [60.0, 60.0, 10.0, 5.0], "shapley": [30.0, 30.0, 8.0, 4.0], "last": [0.0, 0.0, 6.0, -1.0]},
        index=list(MECHANISMS),
    ).assign(**{"from": lambda rows: rows["shapley"] - 1, "to": lambda rows: rows["shapley"] + 2})
    figure = attribution_figure({"a": table, "b": table})
    require_labels(figure)
    for axis in figure.axes:
        marks = {line.get_marker(): [] for line in axis.lines if line.get_marker() != "None"}
        for line in axis.lines:
            if line.get_marker() != "None":
                marks[line.get_marker()] += list(line.get_xdata())
        assert marks == {look["marker"]: list(table[column]) for column, (_, look) in QUESTIONS.items()}
    assert texts(figure)[:2] == ["60 · 30 · 0 %", "60 · 30 · 0 %"]


def test_the_steps_of_a_waterfall_lead_from_nothing_to_everything():
    seconds = {some: 100.0 - 10 * len(some) for some in subsets(MECHANISMS)}
    seconds[frozenset(MECHANISMS)] = 75.0  # the last one makes it slower
    figure = waterfall(MECHANISMS, seconds, "a")
    require_labels(figure)
    steps = ["−10 s\n40 % of the gain"] * 3 + ["+5 s\n−20 % of the gain"]
    assert texts(figure) == ["100", "75", *steps]


def test_peers_stand_in_groups_each_with_the_median_of_its_factors():
    seconds = {
        "minstate, stateful": [2.0, 4, 8],
        "vllm, stateless": [8.0, 8, 8],
        "vllm, ngram": [1.0, 1, 8],
        "llama_cpp, kept": [2.0, 2, 2],
    }
    rows = [
        {"repeat": 0, "turn": turn, "configuration": name, "seconds": each}
        for name, column in seconds.items()
        for turn, each in enumerate(column, 1)
    ]
    first, second = pd.DataFrame(rows), pd.DataFrame([row for row in rows if row["configuration"] != "vllm, ngram"])
    claimed = {"a": 2.0, "b": 4.0}
    figure = peer_factors({"a": first, "b": second}, "minstate, stateful", ["vllm, stateless"], claimed)
    require_labels(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "keeps its prefix, and drafts", "vLLM, ngram",
        "keeps its prefix", "llama.cpp, kept", "minstate, stateful",
        "keeps nothing between turns", "vLLM, stateless",
    ]  # fmt: skip
    medians = {"D": [0.5], "o": [0.5, 1.0], "X": [2.0]}
    for axis, drafting in zip(figure.axes, (True, False), strict=True):
        found = {mark: [] for mark in medians}
        for line in axis.lines:
            if line.get_marker() not in ("None", ""):
                found[line.get_marker()] += list(line.get_xdata())
        assert {mark: sorted(found[mark]) for mark in medians} == medians | ({} if drafting else {"D": []})
    assert {" paper: 2.0 ×", "2.0 ×", "0.5 ×"} <= set(texts(figure))


def test_a_turn_on_a_machine_is_drawn_in_three_modes_with_its_factors():
    for machine in (ONE, CORES):
        parts = predicted_seconds(machine, "135M", 4_000, 100, 50, 0.7)
        whole = {mode: sum(seconds) for mode, seconds in parts.items()}
        assert whole["naive"] > whole["stateful"] > whole["with drafts"]
        figure = turn_figure(machine, "a machine", "135M", 4_000, 100, 50, 0.7)
        require_labels(figure)
        assert texts(figure)[:2] == [" 1.0 ×", f" {whole['naive'] / whole['stateful']:.1f} ×"]


def test_a_prompt_that_is_all_new_gains_nothing_from_state():
    parts = predicted_seconds(ONE, "8B", 4_000, 9_000, 50, 0.0)
    assert parts["naive"] == parts["stateful"] == parts["with drafts"]


def test_gains_stay_below_the_ratio_of_tokens():
    figure = gain_figure({"8B": ONE}, 1_000, (1, 50))
    require_labels(figure)
    promised, *lines = figure.axes[0].lines
    assert len(lines) == 2
    for line in lines:
        assert (line.get_ydata() <= np.asarray(promised.get_ydata()) * (1 + 1e-9)).all()


def test_prices_waiting_times_and_transfers_are_drawn():
    modes = {"naive": 2.0, "stateful": 1.0, "with drafts": 0.5}
    index = pd.MultiIndex.from_product([["8B", "70B"], [8_000, 32_000]], names=["model", "n"])
    prices = pd.DataFrame([modes] * 4, index=index)
    require_labels(price_figure(prices, 2.0))
    row = {"p95 to first token (s)": 0.3, "recomputed share": 0.5}
    policies = [(policy, agents) for policy in ("naive", "prefix reuse", "stateful") for agents in (4, 8)]
    require_labels(waiting_figure(pd.DataFrame(dict.fromkeys(policies, row)).T, 2.0))
    figure = transfer_figure({"8B": ONE})
    require_labels(figure)
    assert len(figure.axes[0].lines) == 1 + len(LINKS)
