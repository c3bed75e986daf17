"""Concurrent traces keep their order and their times, and generate the same tokens as alone."""

from dataclasses import replace

import pytest

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.engines.baselines import NaiveEngine
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.serving.clocks import ModelledClock, WallClock
from minstate.lab.serving.concurrent_replay import replay_concurrently
from minstate.lab.traces.trace import Fork, Opening, Trace, TraceHeader, TraceTurn
from minstate.output import OutputProcessor

COSTS = CostTable((1, 64), (0, 10000), ((10.0, 73.0), (10.0, 73.0)))  # 9 ms and 1 ms a token
SYSTEM = Opening(({"role": "system", "content": "sys"},))


def turn(session, number, output="ok", delay_s=0.0, **more):
    messages = ({"role": "user", "content": f"{session} {number}"},)
    return TraceTurn(session, number, messages, {"role": "assistant", "content": output}, delay_s, **more)


TEAM = Trace(
    TraceHeader("team", {"main": SYSTEM}),
    (
        turn("main", 1, delay_s=1.0),
        turn("a", 1, "aaaa", fork_of=Fork("main", 1)),
        turn("b", 1, "bb", delay_s=5.0, fork_of=Fork("main", 1)),
        turn("a", 2, delay_s=0.5),
        turn("main", 2, delay_s=2.0, waits_for=("a", "b")),
    ),
)


def played(kind=Engine, traces=(TEAM,), **options):
    clock = ModelledClock(COSTS)
    engine = small_engine(kind, clock=clock.now, num_pages=512)
    rows = replay_concurrently(engine, traces, clock=clock, **options)
    engine.check()
    assert not engine.scheduler.running and all(session.closed for session in engine._sessions)
    return rows


def test_a_turn_is_due_when_its_tools_and_the_reports_that_it_waits_for_are_done():
    rows = played().set_index(["session", "turn"])
    due, done = rows["due_s"], rows["done_s"]
    assert due["main", 1] == 1.0
    assert due["a", 1] == done["main", 1] and due["b", 1] == pytest.approx(done["main", 1] + 5)
    assert due["a", 2] == pytest.approx(done["a", 1] + 0.5)
    assert due["main", 2] == done["b", 1] > done["main", 1] + 2, "the slowest report, later than its own delay"
    assert (rows["latency_s"] > 0).all() and (done >= due).all()


def test_a_fork_begins_with_its_parents_log():
    rows = played().set_index(["session", "turn"])
    assert rows.loc[("a", 1), "context"] == rows.loc[("b", 1), "context"] > 0
    assert (rows["recomputed"] == 0).all() and rows.loc[("a", 1), "reused"] >= rows.loc[("a", 1), "context"]


def test_concurrent_teams_share_forward_passes_and_generate_what_each_generates_alone():
    alone, together = played(), played(traces=(TEAM, TEAM, TEAM))
    for _, rows in together.groupby("team"):
        output = rows.set_index(["session", "turn"])["token_ids"]
        assert output.equals(alone.set_index(["session", "turn"])["token_ids"].reindex(output.index))
    assert together["done_s"].max() < 1.5 * alone["done_s"].max()


def test_modelled_time_is_the_same_every_time_and_pace_scales_the_delays():
    assert played()["done_s"].tolist() == played()["done_s"].tolist()
    assert played(pace=0.0)["done_s"].max() < played(pace=0.1)["done_s"].max() < played()["done_s"].max()


def test_the_modelled_clock_adds_the_prices_of_the_cost_table():
    one = Trace(TraceHeader("one", {"main": Opening()}), (turn("main", 1, "a"),))
    rows = played(traces=(one,))
    prompt = rows.loc[0, "delta"]
    assert rows.loc[0, "done_s"] == pytest.approx((9 + prompt + (rows.loc[0, "generated"] - 1) * 10) / 1000)


def test_a_naive_engine_replays_the_same_trace_and_forwards_more():
    assert played(NaiveEngine)["forwarded"].sum() > 1.5 * played()["forwarded"].sum()


LONG = {"role": "user", "content": "x" * 1024}  # more than the model has positions


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ("main 1", []),
        ("a 1", [("main", 1), ("b", 1)]),
        ("a 2", [("main", 1), ("a", 1), ("b", 1)]),
        ("main 2", [("main", 1), ("a", 1), ("b", 1), ("a", 2)]),
    ],
)
def test_a_turn_that_is_refused_ends_its_own_conversation_and_the_others_go_on(fails, left):
    broken = [
        replace(each, messages=(LONG,)) if f"{each.session} {each.turn}" == fails else each for each in TEAM.turns
    ]
    rows = played(traces=(TEAM, Trace(TEAM.header, tuple(broken)), TEAM))
    for _, team in rows[rows["team"] != 1].groupby("team"):
        alone = played().set_index(["session", "turn"])["token_ids"]
        assert team.set_index(["session", "turn"])["token_ids"].reindex(alone.index).equals(alone)
    own = rows[rows["team"] == 1].set_index(["session", "turn"])
    failed = own[own["error"] != ""]
    assert [" ".join(map(str, name)) for name in failed.index] == [fails]
    assert failed["error"].iloc[0].startswith("ContextOverflow: ") and failed["token_ids"].isna().all()
    assert {name for name, error in own["error"].items() if not error} == set(left)


def test_a_turn_that_fails_on_its_way_ends_its_own_conversation_and_the_others_go_on(monkeypatch):
    class Broken(Exception):
        pass

    process = OutputProcessor.process

    def fails_once(self, request, scores, draft):
        if request.number == 1:
            raise Broken("half-way")
        return process(self, request, scores, draft)

    monkeypatch.setattr(OutputProcessor, "process", fails_once)
    one = Trace(TraceHeader("one", {"main": SYSTEM}), (turn("main", 1), turn("main", 2)))
    rows = played(traces=(one, one)).sort_values(["team", "turn"])
    assert rows["error"].tolist() == ["", "", "Broken: half-way"]


def test_turns_that_find_no_room_are_rows_and_all_sessions_are_closed():
    clock = ModelledClock(COSTS)
    engine = small_engine(clock=clock.now, num_pages=4)
    rows = replay_concurrently(engine, [TEAM], clock=clock)
    assert len(rows) == 1 and rows["error"].str.startswith("OutOfPages: ").all()
    engine.check()
    assert all(session.closed for session in engine._sessions) and not engine.scheduler.running


def test_sessions_are_closed_when_a_step_fails():
    clock = ModelledClock(COSTS)
    engine = small_engine(clock=clock.now, num_pages=512)
    engine.scheduler.next_step = lambda build: 1 / 0
    with pytest.raises(ZeroDivisionError):
        replay_concurrently(engine, [TEAM], clock=clock)
    engine.check()
    assert all(session.closed for session in engine._sessions) and not engine.scheduler.running


def test_on_a_wall_clock_no_turn_is_done_before_it_is_due():
    rows = replay_concurrently(small_engine(num_pages=512), [TEAM], clock=WallClock(), pace=0.01)
    assert (rows["done_s"] > rows["due_s"]).all() and rows["done_s"].max() > 0.05
