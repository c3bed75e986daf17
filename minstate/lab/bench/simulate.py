"""Simulate ten thousand sessions without a model; compare eviction policies; predict how many agents a GPU serves."""

import resource
import time

import pandas as pd

from minstate.lab.figures.simulation import agents_bars, eviction_curves
from minstate.lab.machines.data_sheets import LLAMA_8B, LLAMA_70B, SMOLLM2_135M, h100
from minstate.lab.paths import RESULTS
from minstate.lab.serving.capacity import MAX_AGENTS, TARGET, CapacityCase, agents_per_gpu
from minstate.lab.serving.compare_eviction import compare_eviction_policies
from minstate.lab.serving.reuse_modes import STATEFUL
from minstate.lab.serving.simulation import simulate_arrivals
from minstate.lab.serving.traffic import TrafficShape

LONGEST = 12_288  # tokens of the longest log among the ten thousand; all logs together have a hundred million
CASES = (
    CapacityCase("135M", SMOLLM2_135M, 8_192, 1, warmup_s=20, seconds=10),
    CapacityCase("8B", LLAMA_8B, 32_768, 1, warmup_s=60, seconds=60),
    CapacityCase("8B", LLAMA_8B, 131_072, 1, warmup_s=120, seconds=240),
    CapacityCase("70B", LLAMA_70B, 32_768, 4, warmup_s=60, seconds=60),
)


def many_sessions(count: int) -> dict:
    """`count` sessions of Llama 3.1 8B on an H100, of which some hundred are open at a time. Times are predictions."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    shape = TrafficShape.for_context(LONGEST)
    simulation = simulate_arrivals(LLAMA_8B, h100(), STATEFUL, shape, count=count, per_s=0.12, page_size=128)
    simulation.check()
    stats = simulation.stats
    return {
        "sessions": stats.sessions,
        "turns": stats.turns,
        "tokens in logs": stats.log_tokens,
        "tokens in prompts": stats.prompt_tokens,
        "tokens forwarded": stats.forwarded,
        "steps": stats.steps,
        "preempted": stats.preempted,
        "predicted hours": simulation.now_s / 3600,
        **stats.row(),
        "seconds taken": time.perf_counter() - started_s,
        "CPU seconds taken": time.process_time() - cpu_s,
        "MB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def simulate(sessions: int = 10_000, compared: int = 60) -> pd.DataFrame:
    """Tokens recomputed under each eviction policy, on `compared` sessions; the rest is in the table's `attrs`.

    With "hints, 9 in 10", agents announce nine tool calls in ten. Writes the figures beside the table.
    """
    many = many_sessions(int(sessions))
    print(pd.Series(many).to_string())
    started_s = time.perf_counter()
    traffic = {"count": int(compared), "per_s": 0.08}
    eviction = compare_eviction_policies(TrafficShape.for_context(8_192), **traffic)
    shape = TrafficShape.for_context(8_192, announced=0.9)
    fewer_hints = compare_eviction_policies(shape, **traffic, policies=("hints",))
    eviction_s = time.perf_counter() - started_s
    agents = agents_per_gpu(CASES)
    print(agents.round(3).to_string())
    RESULTS.mkdir(parents=True, exist_ok=True)
    eviction_curves(eviction).savefig(RESULTS / "simulate_eviction.png", dpi=120)
    agents_bars(agents).savefig(RESULTS / "simulate_agents.png", dpi=120)
    table = pd.concat([eviction, fewer_hints.rename(index={"hints": "hints, 9 in 10"})])
    table.attrs = {
        "many sessions": many,
        "eviction": {**eviction.attrs, "seconds taken": eviction_s},
        "agents per GPU, predicted": agents.reset_index().to_dict("records"),
        "served means": {
            "p95 to first token (s)": TARGET.first_s,
            "p95 between tokens (ms)": 1000 * TARGET.between_s,
            "recomputing little": "at most 2 % of the prompts",
            "agents that were tried": f"up to {MAX_AGENTS}",
        },
        "seconds taken": time.perf_counter() - started_s + many["seconds taken"],
    }
    return table
