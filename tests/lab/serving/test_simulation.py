"""A simulation counts what an engine counts, and fast-forwarding over steps changes no outcome."""

from dataclasses import replace

import pytest
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

from minstate import OutOfPages, Sampling
from minstate.lab.machines.data_sheets import LLAMA_8B, h100
from minstate.lab.serving.live_session import LiveSession
from minstate.lab.serving.reuse_modes import NAIVE, PREFIX_REUSE, STATEFUL, TIERED
from minstate.lab.serving.simulation import Simulation
from minstate.lab.serving.traffic import TrafficShape, draw_sessions

SMALL = TrafficShape.for_context(1_500, turns=6, subagent_turns=3, with_subagents=0.7, applications=2)


def served(mode, *, shape=SMALL, count=12, per_s=1.0, seed=0, fast_forward=True, **settings):
    simulation = Simulation(LLAMA_8B, h100(), mode, fast_forward=fast_forward, **settings)
    simulation.run(draw_sessions(shape, seed, count=count, per_s=per_s))
    return simulation


@given(
    seed=st.integers(0, 999),
    mode=st.sampled_from([NAIVE, PREFIX_REUSE, STATEFUL, TIERED]),
    num_pages=st.integers(100, 300),
    page_size=st.sampled_from([16, 32]),
    token_budget=st.sampled_from([4, 64, 512]),
    per_s=st.sampled_from([0.3, 30.0]),
)
@example(13, PREFIX_REUSE, 100, 16, 512, 0.3)  # two turns end in one step, the later one of which began to decode first
def test_fast_forwarding_changes_nothing(seed, mode, num_pages, page_size, token_budget, per_s):
    settings = {
        "shape": replace(SMALL, scale=SMALL.scale * 2),
        "count": 5,
        "seed": seed,
        "num_pages": num_pages,
        "page_size": page_size,
        "token_budget": token_budget,
        "per_s": per_s,
    }
    fast, single = (served(mode, fast_forward=fast_forward, **settings) for fast_forward in (True, False))
    assert fast.stats == single.stats, "counts, and predicted times to the last digit"
    assert fast.now_s == single.now_s and fast.scheduler.steps == single.scheduler.steps
    decisions = [
        [event for event in simulation.scheduler.timeline if event.what not in ("decode", "prefill")]
        for simulation in (fast, single)
    ]
    kept = min(map(len, decisions))  # a timeline forgets its oldest events, and single steps make more
    assert decisions[0][-kept:] == decisions[1][-kept:], "which turn waits, is admitted, preempted or done, and when"
    trees = [
        [
            (node.start, bytes(node.key), node.pages, node.last_used, node.expected)
            for node in simulation.cache.tree.nodes()
        ]
        for simulation in (fast, single)
    ]
    assert [node[:2] for node in trees[0]] == [node[:2] for node in trees[1]], "the same pages are evicted"
    fast.check()


def test_it_counts_what_an_engine_counts():
    """The same sessions on a tiny model, one after the other: all tokens, and what eviction costs."""
    shape = TrafficShape.for_context(240, turns=4, with_subagents=0.0, applications=2)
    scripts = list(draw_sessions(shape, 2, count=6, per_s=0.0001))
    e = tiny.engine(num_pages=40, page_size=4, positions=300, token_budget=1024)
    reused = forwarded = recomputed = 0
    for script in scripts:
        session = e.open(tenant=str(script.application))
        for turn in script.turns:
            new, output = ([3 + token for token in ids] for ids in script.ids(turn))
            stats = session.send(token_ids=new, replay=output, sampling=Sampling(ignore_eos=True)).stats
            reused, forwarded = reused + stats.reused, forwarded + stats.forwarded
            recomputed += stats.recomputed
        session.close()
    simulation = Simulation(LLAMA_8B, h100(), replace(STATEFUL, trust=0), num_pages=40, page_size=4)
    stats = simulation.run(iter(scripts))
    assert (stats.reused, stats.forwarded, stats.recomputed) == (reused, forwarded, recomputed)
    assert stats.turns == sum(len(script.turns) for script in scripts) and stats.sessions == 6


@pytest.mark.parametrize("mode", [NAIVE, PREFIX_REUSE, STATEFUL, TIERED], ids=lambda mode: mode.name)
def test_everything_is_served_and_nothing_is_left_locked(mode):
    simulation = served(mode, num_pages=120, page_size=16)
    scripts = list(draw_sessions(SMALL, 0, count=12))
    stats = simulation.stats
    assert stats.turns == sum(len(script.turns) for script in scripts) and stats.sessions == 12
    assert stats.log_tokens == sum(turn.new + turn.output for script in scripts for turn in script.turns)
    assert stats.generated == len(stats.first_s) + len(stats.between_s)
    assert not simulation.live and simulation.cache.num_available == 120
    assert simulation.cache.tree.num_locked == 0
    simulation.check()
    assert min(stats.first_s) > 0 and min(stats.between_s) > 0


def test_each_reuse_mode_saves_what_it_should():
    naive, reuse, stateful = (
        served(mode, num_pages=3000, page_size=16).stats for mode in (NAIVE, PREFIX_REUSE, STATEFUL)
    )
    assert naive.reused == 0 and naive.forwarded == naive.prompt_tokens + naive.generated - naive.turns
    assert stateful.recomputed == 0, "there is room for all sessions"
    assert 0 < reuse.recomputed < 16 * reuse.turns, "no more than a page's tail each turn"
    assert stateful.forwarded < reuse.forwarded < naive.forwarded / 3


def test_a_host_tier_keeps_what_eviction_takes():
    settings = {"shape": replace(SMALL, scale=3 * SMALL.scale), "num_pages": 150, "page_size": 16, "per_s": 30.0}
    runs = {mode.name: served(mode, **settings) for mode in (STATEFUL, TIERED)}
    alone, tiered = (run.stats for run in runs.values())
    assert tiered.recomputed < 0.5 * alone.recomputed and tiered.generated == alone.generated
    tiers = runs[TIERED.name].tiers
    assert tiers.take_seconds() == 0, "all copies have taken their time"
    assert tiers.tiers[0].store.names, "what was evicted last is still there"


def test_copies_to_a_slow_host_are_not_worth_their_time():
    slow = replace(h100(), host_bytes_per_s=1e6)
    simulation = Simulation(LLAMA_8B, slow, TIERED, num_pages=150, page_size=16)
    simulation.run(draw_sessions(replace(SMALL, scale=3 * SMALL.scale), 0, count=12, per_s=30.0))
    assert simulation.stats.recomputed > 0
    whats = {event.what for event in simulation.scheduler.timeline}
    assert "compute" in whats and "promote" not in whats


def test_a_turn_that_can_never_fit_is_refused():
    with pytest.raises(OutOfPages, match="the whole pool has 10"):
        served(STATEFUL, num_pages=10, page_size=4)


def test_a_session_can_begin_half_way():
    script = next(draw_sessions(TrafficShape.for_context(3_000), 0))
    live = LiveSession.of(script, begin=0.5)
    first = live.turns[0]
    own = [turn for turn in script.turns if turn.agent == 0]
    assert first.start == 0 and first.new == own[len(own) // 2].start + own[len(own) // 2].new and not first.after
    new, _ = script.ids(first)
    assert new[: script.shape.prompts[1]] == script.prompt_ids(0) and len(new) == first.new
    assert live.turns_left == len(live.turns) < len(script.turns)
