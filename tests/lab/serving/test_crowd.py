"""Agents that wait for tools: the same answers on any pool, work that hints save, and a clock that nobody waits for."""

import pytest
import torch

from minstate.lab.engines.small_engine import poison
from minstate.lab.serving.crowd import CROWD, LATER_TURNS, TYPICAL_S, at_work, half_are_selfish, says_typical, tools_of


@pytest.fixture(scope="module")
def roomy():
    return at_work(num_pages=1000)


def test_every_agent_has_all_its_turns_in_the_order_of_the_modelled_clock(roomy):
    answers, turns, _ = roomy
    assert answers.keys() == {(agent, turn) for agent in CROWD for turn in range(1 + LATER_TURNS)}
    assert turns["at"].is_monotonic_increasing and turns["recomputed"].sum() == 0


def test_a_small_pool_costs_work_and_no_answer_and_a_hint_saves_some(roomy):
    answers, _, engine = roomy
    pages = (engine.pool.allocator.num_pages - engine.pool.allocator.num_free) // 2
    again = {}
    for says in (None, says_typical):
        same, turns, poisoned = at_work(pages, says, prepare=poison)
        assert same == answers and torch.isnan(poisoned.pool.kv).any()
        again[says] = turns["recomputed"].sum()
    assert 0 < again[says_typical] < again[None]


def test_tools_take_about_as_long_as_they_typically_do():
    for agent in CROWD:
        for tool, seconds in tools_of(agent):
            assert 0.5 <= seconds / TYPICAL_S[tool] <= 1.5 and seconds <= says_typical(agent, tool)
    assert [half_are_selfish(agent, "") is None for agent in CROWD] == [False] * 4 + [True] * 4
