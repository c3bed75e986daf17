"""Synthetic traffic has the distributions that its shape names, and is the same for the same seed."""

import statistics
import tracemalloc
from itertools import islice

import pytest

from minstate.lab.serving.traffic import LONGEST_LOG, NUM_IDS, TOOL_KINDS, TrafficShape, draw_sessions, token_ids


def everything(shape: TrafficShape, count: int, seed: int = 0):
    scripts = list(draw_sessions(shape, seed, count=count))
    return scripts, [turn for script in scripts for turn in script.turns]


@pytest.mark.parametrize("positions", [LONGEST_LOG, 131_072, 8_192])
def test_medians_and_shares_are_the_published_ones(positions):
    shape = TrafficShape.for_context(positions)
    scripts, turns = everything(shape, 900)
    own = [sum(turn.agent == 0 for turn in script.turns) for script in scripts]
    assert statistics.median(own) == pytest.approx(43, rel=0.05)
    inputs = [turn.start + turn.new for turn in turns]
    assert statistics.median(inputs) == pytest.approx(142_000 * shape.scale, rel=0.05)
    assert statistics.median(turn.output for turn in turns) == pytest.approx(444 * shape.scale, rel=0.05)
    with_subagents = sum(any(turn.agent for turn in script.turns) for script in scripts) / len(scripts)
    assert with_subagents == pytest.approx(0.44, abs=0.03)
    prompts = sum(shape.prompts[1] for turn in turns if turn.turn == 0 and turn.fork_of is None)
    assert 1 - (sum(turn.new for turn in turns) - prompts) / sum(inputs) > 0.96, "cached, once prompts are known"
    assert max(turn.start + turn.new + turn.output for turn in turns) <= positions


def test_tool_calls_have_a_heavy_tail_and_most_say_how_long_they_typically_take():
    _, turns = everything(TrafficShape.for_context(8_192, announced=0.9), 300)
    delays = [turn.delay_s for turn in turns if turn.turn and len(turn.after) == 1]
    assert statistics.median(delays) < 1 < 5 < statistics.mean(delays)
    hints = [turn.hint_s for turn in turns if not turn.last]
    assert sum(hint is not None for hint in hints) / len(hints) == pytest.approx(0.9, abs=0.03)
    assert set(hints) <= {None, TrafficShape().subagent_s, *(kind.typical_s for kind in TOOL_KINDS)}
    assert sum(kind.share for kind in TOOL_KINDS) == pytest.approx(1)


def test_the_same_seed_gives_the_same_and_another_one_does_not():
    def drawn(seed):
        scripts, turns = everything(TrafficShape.for_context(2_000), 5, seed)
        return [(s.application, s.arrival_s) for s in scripts], turns, [scripts[t.session].ids(t) for t in turns]

    first = drawn(0)
    assert first == drawn(0)
    for one, other in zip(first, drawn(1), strict=True):
        assert one != other


def test_a_session_does_not_depend_on_the_sessions_before_it():
    shape = TrafficShape.for_context(2_000)
    late = list(draw_sessions(shape, 3, count=8))[-1]
    assert late.turns == next(islice(draw_sessions(shape, 3), 7, None)).turns


def test_causes_come_before_effects_and_lengths_add_up():
    scripts, _ = everything(TrafficShape.for_context(8_192), 60)
    for script in scripts:
        ended, lengths = set(), {}
        for turn in script.turns:
            assert set(turn.after) <= ended, "sent after the turns that it waits for"
            if turn.turn:
                assert turn.start == lengths[turn.agent] and (turn.agent, turn.turn - 1) in turn.after
            elif turn.fork_of is not None:
                assert turn.start == lengths[turn.fork_of], "a fork has its parent's log"
            else:
                assert turn.start == 0 and turn.new > script.shape.prompts[1]
            assert turn.new > 0 and turn.output > 0 and turn.delay_s >= 0
            ended.add(turn.name)
            lengths[turn.agent] = turn.start + turn.new + turn.output
        agents = {turn.agent for turn in script.turns}
        assert {turn.agent for turn in script.turns if turn.last} == agents, "each agent has a last turn"
    arrivals = [script.arrival_s for script in scripts]
    assert arrivals == sorted(arrivals)


def test_an_orchestrator_waits_for_its_subagents_and_reads_their_reports():
    scripts, _ = everything(TrafficShape.for_context(8_192), 60)
    waited = 0
    for script in scripts:
        by_name = {turn.name: turn for turn in script.turns}
        subagents = {turn.name for turn in script.turns if turn.agent and turn.last}
        for turn in script.turns:
            reports = [by_name[name] for name in turn.after if name[0] != turn.agent and turn.turn]
            assert all(report.last for report in reports)
            if reports:
                waited += 1
                assert turn.agent == 0 and turn.new == sum(report.output for report in reports)
                subagents -= {report.name for report in reports}
        assert not subagents, "no report is lost"
    assert waited > 20


def test_agents_share_what_they_should_and_nothing_else():
    def common(one, two):
        return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))

    shape = TrafficShape.for_context(100_000, applications=2)
    common_to_all, kind = shape.prompts
    scripts, _ = everything(shape, 30)
    openings = [
        (script.application, turn.kind, script.ids(turn)[0])
        for script in scripts
        for turn in script.turns
        if turn.start == 0
    ]
    assert len({(application, kind) for application, kind, _ in openings}) == 6
    for i, (application, which, ids) in enumerate(openings):
        for other_application, other, other_ids in openings[:i]:
            expected = 0 if application != other_application else kind if which == other else common_to_all
            assert expected <= common(ids, other_ids) <= expected + 3, "beyond it, agreement is chance"
    script = scripts[0]
    assert script.prompt_ids(1) == next(ids for a, k, ids in openings if (a, k) == (script.application, 1))[:kind]


def test_a_log_is_made_of_its_turns():
    script = next(draw_sessions(TrafficShape.for_context(4_000), 1))
    log = []
    for turn in (turn for turn in script.turns if turn.agent == 0):
        new, output = script.ids(turn)
        assert (len(log), len(new), len(output)) == (turn.start, turn.new, turn.output)
        log += new + output
    kind = script.shape.prompts[1]
    own = token_ids((1, script.number, 1, 0), 0, len(log))
    assert log[kind:] == own[kind:] and log[:kind] == script.prompt_ids(0) and set(log) <= set(range(NUM_IDS))


def test_ten_thousand_sessions_are_not_kept():
    tracemalloc.start()
    for script in draw_sessions(TrafficShape.for_context(8_192), count=10_000):
        if script.number % 100 == 0:
            assert script.turns
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


def test_it_fits_a_notebook():
    _, turns = everything(TrafficShape.for_context(2_048, turns=5, with_subagents=1.0, applications=1), 6)
    assert max(turn.start + turn.new + turn.output for turn in turns) <= 2_048 and len(turns) < 500
