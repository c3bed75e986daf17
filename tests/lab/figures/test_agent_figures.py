"""Figures of many agents: the rows that they are passed, and which session holds which pages."""

import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from minstate import CostTable, Sampling
from minstate.lab.engines.small_engine import CONFIG, small_engine
from minstate.lab.figures.agents import (
    Holding,
    batched_decode,
    batching_figure,
    pass_ms,
    pressure_figure,
    sharing_figure,
    throughput_figure,
    waiting_turns,
)
from minstate.lab.figures.palette import color_of

COSTS = CostTable((1, 101), (0, 1000), ((10.0, 110.0), (20.0, 1120.0)))
SIZE = 4


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_throughput_and_latency_have_a_line_for_each_configuration():
    rows = [
        {"agents": many, "configuration": name, "turns a minute": many + 1, "p50 s": many, "p95 s": 2 * many}
        for name in ("naive", "stateful")
        for many in (1, 2, 4)
    ]
    left, right = throughput_figure(pd.DataFrame(rows)).axes
    turns = {line.get_label(): list(line.get_ydata()) for line in left.lines}
    assert turns == {"naive": [2, 3, 5], "stateful": [2, 3, 5]}
    medians = {line.get_label(): list(line.get_ydata()) for line in right.lines if "median" in line.get_label()}
    assert medians == {"naive, median": [1, 2, 4], "stateful, median": [1, 2, 4]}
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "4"]
    assert "minute" in left.get_ylabel() and "seconds" in right.get_ylabel()


def test_a_pool_under_pressure_has_a_line_with_hints_and_one_without():
    rows = [
        {"share": share, "hints": hints, "hit rate": share / 2, "forwarded": 1000 + (500 if hints else 0)}
        for hints in (False, True)
        for share in (2.0, 1.0, 0.5)
    ]
    left, right = pressure_figure(pd.DataFrame(rows)).axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[1.0, 0.5, 0.25]] * 2
    assert [list(line.get_ydata()) for line in right.lines[:2]] == [[1.0] * 3, [1.5] * 3]
    assert left.xaxis_inverted() and "share of the working set" in left.get_xlabel()
    below, above = left.lines[:2]
    assert below.get_markersize() > above.get_markersize(), "both are seen where they lie on each other"


@pytest.fixture
def family():
    """A parent, a fork that has gone on, one that has not, a session that diverges inside a page, another tenant."""
    engine = small_engine(num_pages=64, page_size=SIZE)
    take = {"max_new_tokens": 1, "sampling": Sampling(ignore_eos=True)}
    ids = list(range(20, 30))  # 10 tokens: two pages and a half
    parent = engine.open()
    parent.send(token_ids=ids, **take)
    sessions = {"parent": parent, "busy": parent.fork(), "silent": parent.fork(), "newcomer": engine.open()}
    sessions["stranger"] = engine.open(tenant="other")
    sessions["busy"].send(token_ids=[99] * 4, **take)
    sessions["newcomer"].send(token_ids=[*ids[:7], 98, 98, 98], **take)
    sessions["stranger"].send(token_ids=ids, **take)
    return engine, sessions


def test_a_holding_tells_shared_copied_and_private_pages_apart(family):
    engine, sessions = family
    held = Holding.of(sessions)
    assert {name: (each.from_others, each.copied) for name, each in held.items()} == {
        "parent": (0, 0),
        "busy": (2, 2),
        "silent": (3, 0),
        "newcomer": (1, 3),
        "stranger": (0, 0),
    }
    assert held["silent"].pages == held["parent"].pages and held["busy"].pages[:2] == held["parent"].pages[:2]
    assert held["busy"].pages[2] != held["parent"].pages[2]
    assert all(len(each.pages) - each.published == (each.kv_len % SIZE > 0) for each in held.values())
    in_use = set().union(*(each.pages for each in held.values()))
    assert len(in_use) == engine.pool.allocator.num_pages - engine.pool.allocator.num_free


def test_pages_are_numbered_and_coloured_by_the_session_that_computed_them(family):
    _, sessions = family
    held = Holding.of(sessions)
    figure = sharing_figure(held, SIZE)
    assert texts(figure) == [str(page) for each in held.values() for page in each.pages]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(sessions)
    colored = [patch for patch in axes.patches if patch.get_fill() and not patch.get_hatch()]
    owners = [to_hex(patch.get_facecolor()) for patch in colored]
    rows = [int(patch.get_y()) for patch in colored]
    parent = to_hex(to_rgba(color_of(0), 0.55))
    assert [owner for owner, row in zip(owners, rows, strict=True) if row == 2] == [parent] * 3, "the silent fork"
    assert parent not in [owner for owner, row in zip(owners, rows, strict=True) if row == 4], "another tenant"
    copies = [(int(patch.get_y()), patch.get_width()) for patch in axes.patches if patch.get_hatch()]
    assert copies == [(1, 2), (3, 3)]
    told = ["computed by parent", "computed by busy", "computed by newcomer", "computed by stranger"]
    assert legend(figure) == [*told, "common prefix, copied", "tail: not in the tree yet"]


def test_a_pass_over_several_costs_their_tokens_together_and_each_its_own_context():
    assert pass_ms(COSTS, [(1, 0)]) == 10.0 and pass_ms(COSTS, [(1, 1000)]) == 20.0
    assert pass_ms(COSTS, [(1, 0)] * 11) == pytest.approx(20.0), "the weights are read once"
    assert pass_ms(COSTS, [(1, 1000)] * 11) == pytest.approx(20.0 + 11 * 10.0), "keys and values by each"
    assert pass_ms(COSTS, [(101, 1000), (1, 0)]) == pytest.approx(111.0 + 1010.0)


def test_in_a_batch_the_weights_are_shared_and_keys_and_values_are_not():
    rows = batched_decode(CONFIG, COSTS, context=100, dtype=torch.float32, most=4)
    assert list(rows.index) == [1, 2, 4]
    for many, row in rows.iterrows():
        read = CONFIG.bytes_read(100 * many, torch.float32)
        assert (row["weights MB"] + row["K/V MB"]) * many * 1e6 == pytest.approx(read)
        assert row["tokens a second"] == pytest.approx(many * row["for each"]) == pytest.approx(1000 * many / row["ms"])
    left, right = batching_figure(rows).axes
    assert [bar.get_height() for bar in left.containers[0]] == list(rows["weights MB"])
    assert [bar.get_y() for bar in left.containers[1]] == list(rows["weights MB"]), "one on the other"
    assert [list(line.get_ydata()) for line in right.lines] == [list(rows["tokens a second"]), list(rows["for each"])]
    assert [label.get_text() for label in right.get_xticklabels()] == ["1", "2", "4"]
    assert left.get_ylabel().startswith("MB") and "modelled" in right.get_ylabel()


def test_waiting_is_a_line_from_arrival_to_admission_and_one_is_marked():
    rows = pd.DataFrame({"name": ["a", "b", "c"], "came": [0, 3, 5], "waited": [2, 9, 1]})
    figure = waiting_turns({"fair": rows, "not": rows}, "b")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["fair", "not"]
    for axes in figure.axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
        assert [list(line.get_xdata()) for line in lines] == [[0, 2], [3, 12], [5, 6]]
        assert [line.get_label() for line in lines].count("b") == 1 and len(
            {line.get_linewidth() for line in lines}
        ) == 2
        assert axes.yaxis_inverted() and axes.get_xlabel() == "step"
