"""Weka traces are read, written and replayed; no eviction policy hits more than the hashes of a trace allow."""

import json
import random

import pytest

from minstate.lab.machines.data_sheets import LLAMA_8B, h100
from minstate.lab.serving.reuse_modes import PREFIX_REUSE
from minstate.lab.serving.simulation import Simulation
from minstate.lab.serving.traffic import TrafficShape, draw_sessions
from minstate.lab.serving.weka import RecordedSession, WekaRequest, WekaTrace, read_weka, write_weka
from minstate.lab.serving.weka_eviction import allowed_hits, block_accesses, compare_on_weka, replay_blocks
from minstate.lab.traces.records import TraceError

SMALL = TrafficShape.for_context(4_000, turns=5, subagent_turns=3, with_subagents=1.0)


def request(t, ids, tokens=None, **more):
    return {"t": t, "type": "n", "in": tokens or 64 * len(ids) + 3, "out": 5, "hash_ids": ids, "api_time": 1.0} | more


def write(path, *requests, **about):
    path.write_text(json.dumps({"id": "a", "block_size": 64, "hash_id_scope": "local", "requests": requests} | about))
    return path


@pytest.mark.parametrize("inner", [0.5, 10.5], ids=["relative", "absolute"])
def test_a_sub_agents_times_count_from_its_marker_or_from_the_beginning(tmp_path, inner):
    below = {"t": 10.0, "type": "subagent", "agent_id": "x", "requests": [request(inner, [1, 9])]}
    trace = read_weka(write(tmp_path / "t.json", request(0.0, [1, 2]), below, request(20.0, [1, 2, 3])))
    assert [(r.at_s, r.agent) for r in trace.requests] == [(0.0, ""), (10.5, "x"), (20.0, "")]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hash_ids": "no"}, '"hash_ids" of request 1'),
        ({"in": None}, '"in" and "out" in request 1'),
        ({"t": "x"}, '"t"'),
    ],
)
def test_an_error_names_file_and_request(tmp_path, change, problem):
    with pytest.raises(TraceError, match=r"t\.json: expected") as raised:
        read_weka(write(tmp_path / "t.json", request(0.0, [1]) | change))
    assert problem in str(raised.value)


def test_the_simulator_finds_what_the_hashes_allow(tmp_path):
    below = {"t": 10.0, "type": "subagent", "agent_id": "x", "requests": [request(10.5, [1, 9])]}
    trace = read_weka(
        write(tmp_path / "t.json", request(0.0, [1, 2]), below, request(20.0, [1, 2, 3]), request(30.0, [1, 4]))
    )
    simulation = Simulation(LLAMA_8B, h100(), PREFIX_REUSE, num_pages=200, page_size=64)
    simulation.run([RecordedSession(0, trace)])
    simulation.check()
    assert simulation.stats.turns == 4 and simulation.now_s > 25
    assert simulation.stats.reused == allowed_hits(block_accesses([trace])) == 64 * (0 + 1 + 2 + 1)


@pytest.mark.parametrize("number", range(3))
def test_written_traffic_comes_back(tmp_path, number):
    session = list(draw_sessions(SMALL, 3, count=3))[number]
    write_weka(tmp_path / "t.json", session, block_size=16)
    trace = read_weka(tmp_path / "t.json")
    assert len(trace.requests) == len(session.turns) and len({r.agent for r in trace.requests}) > 1
    assert sorted(r.tokens for r in trace.requests) == sorted(turn.start + turn.new for turn in session.turns)
    assert sum(r.output for r in trace.requests) == sum(turn.output for turn in session.turns)
    prompts = {turn.name: turn.start + turn.new for turn in session.turns}
    again = sum(prompts[turn.agent, turn.turn - 1] // 16 for turn in session.turns if turn.turn)
    assert allowed_hits(block_accesses([trace])) >= 16 * again, "a turn repeats the prompt of the turn before it"


def random_trace(seed: int) -> WekaTrace:
    draw, requests, latest = random.Random(seed), [], [[0]]
    for number in range(60):
        begin = draw.choice(latest)
        blocks = begin[: draw.randint(1, len(begin))] if draw.random() < 0.3 else list(begin)
        blocks += [1000 * number + k for k in range(draw.randint(1, 8))]
        latest = [*latest[-12:], blocks]
        requests.append(WekaRequest(float(number), "", 16 * len(blocks) + 1, 1, tuple(blocks)))
    return WekaTrace("random", 16, tuple(requests))


@pytest.mark.parametrize("seed", range(5))
def test_no_policy_hits_more_than_is_allowed_and_clairvoyance_most(seed):
    table = compare_on_weka([random_trace(seed)], pools=(2, 1 / 4, 1 / 8))
    rates = table["hit rate"].unstack()
    assert (rates["clairvoyance"] >= rates["LRU"]).all() and (table["hit rate"] <= table["allowed"]).all()
    assert rates.loc[2, "LRU"] == table["allowed"].iloc[0], "a pool with room for everything evicts nothing"
    assert rates.loc[1 / 8, "LRU"] < table["allowed"].iloc[0]


def test_ids_of_the_scope_global_mean_the_same_in_all_traces():
    one = WekaTrace("a", 64, (WekaRequest(0.0, "", 130, 1, (1, 2)),))
    assert allowed_hits(block_accesses([one, one])) == 0
    everywhere = WekaTrace("a", 64, one.requests, "global")
    assert allowed_hits(block_accesses([everywhere, everywhere])) == 128
    assert replay_blocks(block_accesses([everywhere, everywhere]), 4, "LRU") == 128
