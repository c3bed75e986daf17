"""The benchmark of many agents times an engine's steps, and counts what a smaller pool costs."""

from minstate.engine import Engine
from minstate.lab.bench.many_agents import StepTimer, shrink_pool, time_outside_forward
from minstate.lab.engines.small_engine import small_engine


def test_steps_are_timed_and_the_engine_is_left_as_it_was():
    engine = small_engine()
    timer = StepTimer(engine)
    engine.open().send(token_ids=[5] * 9, max_new_tokens=4)
    steps = timer.end()
    assert len(steps) == engine.scheduler.steps and (steps["step_s"] > steps["forward_s"]).all()
    assert engine.step.__func__ is Engine.step and not vars(engine.model).get("forward")
    table = time_outside_forward(steps.assign(configuration="stateful"))
    assert table["steps"].sum() == len(steps) and 0 < table["share"].iloc[0] < 1


def test_as_the_pool_shrinks_more_is_recomputed_and_nothing_fails():
    rows = shrink_pool((1.0, 0.6), teams=1).set_index(["share", "hints"])
    assert rows.loc[(1.0, False), "recomputed"] == 0 and rows.loc[(1.0, False), "hit rate"] == 1
    assert rows.loc[(0.6, False), "recomputed"] > 0 and rows.loc[(0.6, False), "hit rate"] < 1
