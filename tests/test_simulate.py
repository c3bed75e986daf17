"""Simulated serving: it counts what an engine counts, and passing over steps changes nothing."""

import itertools
from dataclasses import dataclass, replace
from functools import cache
from math import inf

import pandas as pd
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minstate import BadValue, OutOfPages, Sampling
from minstate.lab.figures.simulation import agents_bars
from minstate.lab.machines.data_sheets import DTYPE, LLAMA_8B, LLAMA_70B, MODELS, SMOLLM2_135M, h100, weight_bytes
from minstate.lab.serving.capacity import MOST, Target, most_agents, serve_agents
from minstate.lab.serving.eviction import POLICIES, Access, Accesses, compare_eviction, in_order, replay
from minstate.lab.serving.live_session import LiveSession
from minstate.lab.serving.simulation import NAIVE, PREFIX_REUSE, STATEFUL, Simulation
from minstate.lab.serving.traffic import AgentTurn, Shape, sessions

SMALL = Shape.for_context(1_500, turns=6, subagent_turns=3, with_subagents=0.7, applications=2)


def served(policy, *, shape=SMALL, count=12, per_s=1.0, seed=0, leaps=True, **settings):
    simulation = Simulation(LLAMA_8B, h100(), policy, leaps=leaps, **settings)
    simulation.run(sessions(shape, seed, count=count, per_s=per_s))
    return simulation


@given(
    seed=st.integers(0, 999),
    policy=st.sampled_from([NAIVE, PREFIX_REUSE, STATEFUL]),
    num_pages=st.integers(100, 300),
    page_size=st.sampled_from([16, 32]),
    token_budget=st.sampled_from([4, 64, 512]),
    per_s=st.sampled_from([0.3, 30.0]),
)
def test_passing_over_steps_that_are_alike_changes_nothing(seed, policy, num_pages, page_size, token_budget, per_s):
    settings = {
        "shape": replace(SMALL, scale=SMALL.scale * 2),
        "count": 5,
        "seed": seed,
        "num_pages": num_pages,
        "page_size": page_size,
        "token_budget": token_budget,
        "per_s": per_s,
    }
    quick, single = (served(policy, leaps=leaps, **settings) for leaps in (True, False))
    assert quick.tally == single.tally, "counts, and predicted times to the last digit"
    assert quick.now_s == single.now_s and quick.scheduler.steps == single.scheduler.steps
    decisions = [
        [event for event in one.scheduler.timeline if event.what not in ("decode", "prefill")]
        for one in (quick, single)
    ]
    assert decisions[0] == decisions[1], "who waits, is admitted, put back, done, and at which step"
    trees = [
        [(node.start, bytes(node.key), node.pages, node.last_used, node.expected) for node in one.cache.tree.nodes()]
        for one in (quick, single)
    ]
    assert [node[:2] for node in trees[0]] == [node[:2] for node in trees[1]], "what was evicted and what is left"
    quick.check()


def test_it_counts_what_an_engine_counts():
    """The same sessions on a tiny model, one after the other: all tokens, and what eviction costs."""
    shape = Shape.for_context(240, turns=4, with_subagents=0.0, applications=2)
    scripts = list(sessions(shape, 2, count=6, per_s=0.0001))
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
    tally = simulation.run(iter(scripts))
    assert (tally.reused, tally.forwarded, tally.recomputed) == (reused, forwarded, recomputed)
    assert tally.turns == sum(len(script.turns) for script in scripts) and tally.sessions == 6


@pytest.mark.parametrize("policy", [NAIVE, PREFIX_REUSE, STATEFUL], ids=lambda policy: policy.name)
def test_everything_is_served_and_nothing_is_left_locked(policy):
    simulation = served(policy, num_pages=120, page_size=16)
    scripts = list(sessions(SMALL, 0, count=12))
    tally = simulation.tally
    assert tally.turns == sum(len(script.turns) for script in scripts) and tally.sessions == 12
    assert tally.log_tokens == sum(turn.new + turn.output for script in scripts for turn in script.turns)
    assert tally.generated == len(tally.first_s) + len(tally.between_s)
    assert not simulation.live and simulation.cache.num_available == 120
    assert simulation.cache.tree.num_locked == 0
    simulation.check()
    assert min(tally.first_s) > 0 and min(tally.between_s) > 0


def test_what_is_remembered_saves_what_it_should():
    naive, reuse, stateful = (
        served(policy, num_pages=3000, page_size=16).tally for policy in (NAIVE, PREFIX_REUSE, STATEFUL)
    )
    assert naive.reused == 0 and naive.forwarded == naive.prompt_tokens + naive.generated - naive.turns
    assert stateful.recomputed == 0, "there is room for all"
    assert 0 < reuse.recomputed < 16 * reuse.turns, "no more than a page's tail each turn"
    assert stateful.forwarded < reuse.forwarded < naive.forwarded / 3


def test_a_turn_that_can_never_fit_is_refused():
    with pytest.raises(OutOfPages, match="the whole pool has 10"):
        served(STATEFUL, num_pages=10, page_size=4)


def test_a_session_can_be_met_half_way():
    script = next(sessions(Shape.for_context(3_000), 0))
    live = LiveSession.of(script, begin=0.5)
    first = live.turns[0]
    own = [turn for turn in script.turns if turn.agent == 0]
    assert first.start == 0 and first.new == own[len(own) // 2].start + own[len(own) // 2].new and not first.after
    new, _ = script.ids(first)
    assert new[: script.shape.prompts[1]] == script.prompt_ids(0) and len(new) == first.new
    assert live.left == len(live.turns) < len(script.turns)


def test_a_closed_loop_keeps_the_number_of_agents():
    tally = serve_agents(LLAMA_8B, h100(), STATEFUL, SMALL, 5, warmup_s=5, seconds=60, page_size=16)
    again = serve_agents(LLAMA_8B, h100(), STATEFUL, SMALL, 5, warmup_s=5, seconds=60, page_size=16)
    assert tally == again and tally.turns > 10
    row = tally.row()
    assert 0.5 < row["hit rate"] < 1 and row["p95 between tokens (ms)"] > 1000 * weight_bytes(LLAMA_8B) / 3.35e12


def test_data_sheets_are_read_as_they_stand():
    assert weight_bytes(LLAMA_8B) == pytest.approx(2 * 8.03e9, rel=0.01)
    assert weight_bytes(LLAMA_70B) == pytest.approx(2 * 70.6e9, rel=0.01)
    assert weight_bytes(SMOLLM2_135M) == pytest.approx(2 * 134.5e6, rel=0.01)
    assert LLAMA_8B.kv_bytes_per_token(DTYPE) == 131_072
    assert h100(4).num_pages(LLAMA_70B, 64) > 0
    with pytest.raises(BadValue, match="141 GB of weights do not fit into H100"):
        h100().num_pages(LLAMA_70B, 64)
    one = h100()
    assert one.seconds(989e12, 0) == pytest.approx(1 / one.efficiency + one.overhead_s)
    assert one.seconds(0, 3.35e12) == one.seconds(989e12, 3.35e12)
    assert set(MODELS) == {"135M", "8B", "70B"}


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


PROMPT, ANSWER = [0, 1], 2  # every session begins and is answered like this


@dataclass
class Script:
    """A session by hand: one application, one kind of agent."""

    new: list[int]
    application: int = 0

    def ids(self, turn):
        return self.new, [ANSWER]

    def prompt_ids(self, kind):
        return PROMPT


def hand_made(logs: list[tuple[int, list[int]]]) -> tuple[Accesses, list[tuple[int, ...]]]:
    """Turns (session, what is new in it), one a second; and the log of each with its input."""
    turns, paths, full = [], [], {}
    first_s = {session: at_s for at_s, (session, _) in reversed(list(enumerate(logs)))}
    for at_s, (session, new) in enumerate(logs):
        before, new = full.get(session, []), new if session in full else PROMPT + new
        used_s = min((when for when, (other, _) in enumerate(logs) if other == session and when > at_s), default=inf)
        opened_s = min((when for when in first_s.values() if when > at_s), default=inf)
        turn = AgentTurn(
            session, 0, int(bool(before)), 0, (), 0.0, None, len(before), len(new), 1, None, last=used_s == inf
        )  # fmt: skip
        turns.append(Access(float(at_s), Script(new), turn, used_s, inf, opened_s))
        paths.append(tuple(before + new))
        full[session] = [*before, *new, ANSWER]
    return Accesses(turns, 0), paths


def fewest_computed(paths: list[tuple[int, ...]], num_pages: int) -> int:
    """Over all ways to evict, from leaves on; a page has one token."""

    def shrunk(pages: frozenset, needed: set, excess: int) -> set[frozenset]:
        found = {pages}
        for _ in range(excess):
            found = {
                kept - {page}
                for kept in found
                for page in kept - needed
                if not any(other[:-1] == page for other in kept)
            }
        return found

    @cache
    def fewest(at: int, pages: frozenset) -> int:
        if at == len(paths):
            return 0
        needed = {paths[at][:end] for end in range(1, len(paths[at]) + 1)}
        options = shrunk(pages | needed, needed, max(0, len(pages | needed) - num_pages))
        return len(needed - pages) + min(fewest(at + 1, kept) for kept in options)

    return fewest(0, frozenset())


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=2)), min_size=4, max_size=8),
    st.integers(0, 4),
)
def test_clairvoyance_computes_as_little_as_any_way_to_evict(logs, spare):
    """Sessions with the same prompt that then differ, against all choices there are."""
    logs = [(session, [3 + session * 2 + token for token in new]) for session, new in logs]
    accesses, paths = hand_made(logs)
    num_pages = max(len(path) for path in paths) + spare
    best = fewest_computed(paths, num_pages)
    assert replay(accesses, num_pages, "clairvoyance", page_size=1).computed == best
    assert replay(accesses, num_pages, "LRU", page_size=1).computed >= best


@pytest.mark.parametrize("seed", range(6))
def test_clairvoyance_is_never_worse_on_traffic_and_hints_help_on_average(seed):
    shape = Shape.for_context(1_000, turns=12, with_subagents=0.6, applications=2)
    accesses = in_order(sessions(shape, seed, count=14, per_s=0.2))
    longest = max(turn.start + turn.new + turn.output for _, _, turn, *_ in accesses.turns)
    for share in (1.0, 0.5, 0.3):
        num_pages = max(longest, int(share * accesses.working_set))
        costs = {policy: replay(accesses, num_pages, policy, page_size=1).computed for policy in POLICIES}
        assert costs["clairvoyance"] <= min(costs.values()), costs


def test_hints_lie_between_recency_and_clairvoyance_on_average():
    shape = Shape.for_context(1_500, turns=15)
    tables = [compare_eviction(shape, count=16, per_s=0.15, seed=seed, pools=(0.7, 0.35)) for seed in range(3)]
    mean = sum(table["recomputed"] for table in tables).groupby("policy").sum()
    assert mean["clairvoyance"] < mean["hints"] < mean["LRU"]
    assert all((table["recomputed"] >= 0).all() for table in tables)


def test_the_order_of_turns_respects_who_waits_for_whom():
    accesses = in_order(sessions(SMALL, 4, count=10, per_s=0.3))
    ended: dict[tuple, float] = {}
    for (at_s, _, turn, *_), (after_s, *_) in itertools.pairwise([*accesses.turns, accesses.turns[-1]]):
        assert at_s <= after_s
        assert all(ended[turn.session, *name] <= at_s for name in turn.after)
        ended[turn.session, *turn.name] = at_s + 5.0
    assert accesses.working_set > 0


def test_the_figure_says_where_there_may_be_room_for_more_agents():
    rows = [
        {
            "model": "8B",
            "longest log": 8192,
            "GPUs": 2,
            "policy": policy,
            "agents": agents,
            "agents per GPU": agents / 2,
        }
        for policy, agents in [("naive", 0), ("prefix reuse", 20), ("stateful", MOST)]
    ]
    (axes,) = agents_bars(pd.DataFrame(rows).set_index(["model", "longest log", "GPUs", "policy"])).axes
    assert [text.get_text() for text in axes.texts] == ["0", "10", f"≥ {MOST // 2}"]
