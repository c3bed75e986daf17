"""The search for the most agents that a GPU serves finds them, and a closed loop is the same every time."""

import pandas as pd
import pytest

from minstate.lab.figures.simulation import agents_bars
from minstate.lab.machines.data_sheets import LLAMA_8B, h100, weight_bytes
from minstate.lab.serving.capacity import MAX_AGENTS, Target, most_agents, simulate_agents
from minstate.lab.serving.reuse_modes import STATEFUL
from minstate.lab.serving.traffic import TrafficShape

SMALL = TrafficShape.for_context(1_500, turns=6, subagent_turns=3, with_subagents=0.7, applications=2)


def test_a_closed_loop_keeps_the_number_of_agents():
    stats = simulate_agents(LLAMA_8B, h100(), STATEFUL, SMALL, 5, warmup_s=5, seconds=60, page_size=16)
    again = simulate_agents(LLAMA_8B, h100(), STATEFUL, SMALL, 5, warmup_s=5, seconds=60, page_size=16)
    assert stats == again and stats.turns > 10
    row = stats.row()
    assert 0.5 < row["hit rate"] < 1 and row["p95 between tokens (ms)"] > 1000 * weight_bytes(LLAMA_8B) / 3.35e12


@pytest.mark.parametrize("limit", [0, 1, 7, 100])
def test_the_search_finds_the_most_agents(limit):
    def serve(agents):
        return {
            "p95 to first token (s)": 1.0,
            "p95 between tokens (ms)": 10.0 if agents <= limit else 100.0,
            "recomputed share": 0.0,
            "agents": agents,
        }

    most, row = most_agents(serve, Target(), steps=1.0)
    assert most == limit and (not limit or row["agents"] == limit)
    assert most_agents(serve, Target(), steps=1.0, most=50)[0] == min(limit, 50)
    assert most_agents(lambda agents: {}, Target()) == (0, {})


def test_the_figure_says_where_there_may_be_room_for_more_agents():
    rows = [
        {
            "model": "8B",
            "longest log": 8192,
            "GPUs": 2,
            "policy": mode,
            "agents": agents,
            "agents per GPU": agents / 2,
        }
        for mode, agents in [("naive", 0), ("prefix reuse", 20), ("stateful", 30), ("stateful, host tier", MAX_AGENTS)]
    ]
    (axes,) = agents_bars(pd.DataFrame(rows).set_index(["model", "longest log", "GPUs", "policy"])).axes
    assert [text.get_text() for text in axes.texts] == ["0", "10", "15", f"≥ {MAX_AGENTS // 2}"]
