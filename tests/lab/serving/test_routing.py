"""Routing on paper: what turns find where they are sent."""

import json
import re
from collections import Counter

from minstate.lab.bench.many_machines import spread
from minstate.lab.paths import CLONE, RESULTS
from minstate.lab.serving.routing import Ring, anywhere, by_agent, by_session, moving, replay
from minstate.lab.serving.traffic import TrafficShape, draw_sessions

SHAPE = TrafficShape.for_context(4096)


def hit_rate(route):
    return replay(draw_sessions(SHAPE, count=40), route)


def test_one_machine_finds_all_that_any_turn_has_computed():
    alone, routed = hit_rate(by_session(1)), hit_rate(by_session(20))
    assert alone.elsewhere == routed.elsewhere == 0
    assert hit_rate(anywhere(1)) == alone == hit_rate(by_agent(1)) == hit_rate(moving(1, 0.5))
    assert alone.hit_rate > routed.hit_rate > 0.9  # on another machine a system prompt is computed once more


def test_the_less_a_session_moves_the_more_is_found():
    rates = [hit_rate(route).hit_rate for route in (by_session(20), moving(20, 0.05), moving(20, 0.5), anywhere(20))]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.6
    assert hit_rate(by_session(20)).hit_rate > hit_rate(by_agent(20)).hit_rate  # forks do not find their parent's log


def test_a_machine_that_joins_takes_its_share_and_moves_no_other_session():
    before, after = Ring(10), Ring(11)
    moved = Counter((before.machine(f"{key}"), after.machine(f"{key}")) for key in range(2000))
    taken = sum(count for (old, new), count in moved.items() if old != new)
    assert all(new in (old, 10) for old, new in moved) and 0.05 < taken / 2000 < 0.14


def test_the_emptier_of_two_machines_spreads_sessions_best():
    seen = spread(20, 50)
    assert 1 < seen["the emptier of two"] < seen["a random machine"] and seen["consistent hashing"] < 2


def test_the_plan_quotes_what_was_counted():
    plan = (CLONE / "docs" / "many_machines.md").read_text()
    rows = json.loads((RESULTS / "many_machines.json").read_text())["rows"]
    for row in rows:
        found = re.search(
            rf"^\| {re.escape(row['what'].removeprefix('one machine, '))} \| (.*) \|$", plan, re.MULTILINE
        )
        shares = [f"{100 * row[name]:.1f} %" for name in ("hit rate", "computed again")]
        assert found and found[1].split(" | ")[:2] == shares, row
