"""Ten thousand sessions without a model; what eviction costs; and a prediction of how many agents a GPU serves."""

import resource
import time

import pandas as pd

from minstate.lab.figures.simulation import agents_bars, eviction_curves
from minstate.lab.machines.data_sheets import LLAMA_8B, LLAMA_70B, SMOLLM2_135M, h100
from minstate.lab.paths import RESULTS
from minstate.lab.serving.capacity import MOST, TARGET, Case, agents_per_gpu
from minstate.lab.serving.eviction import compare_eviction
from minstate.lab.serving.simulation import STATEFUL, serve_arrivals
from minstate.lab.serving.traffic import Shape

LONGEST = 12_288  # tokens of the longest log among the ten thousand: together they are a hundred million
CASES = (
    Case("135M", SMOLLM2_135M, 8_192, 1, warmup_s=20, seconds=10),
    Case("8B", LLAMA_8B, 32_768, 1, warmup_s=60, seconds=60),
    Case("8B", LLAMA_8B, 131_072, 1, warmup_s=120, seconds=240),
    Case("70B", LLAMA_70B, 32_768, 4, warmup_s=60, seconds=60),
)


def many_sessions(count: int) -> dict:
    """`count` sessions on an H100 and Llama 3.1 8B, some hundred under way at any time. Times are predictions."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    one = serve_arrivals(LLAMA_8B, h100(), STATEFUL, Shape.for_context(LONGEST), count=count, per_s=0.12, page_size=128)
    one.check()
    tally = one.tally
    return {
        "sessions": tally.sessions,
        "turns": tally.turns,
        "tokens in logs": tally.log_tokens,
        "tokens in prompts": tally.prompt_tokens,
        "tokens forwarded": tally.forwarded,
        "steps": tally.steps,
        "preempted": tally.preempted,
        "predicted hours": one.now_s / 3600,
        **tally.row(),
        "seconds taken": time.perf_counter() - started_s,
        "CPU seconds taken": time.process_time() - cpu_s,
        "MB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def simulate(sessions: int = 10_000, compared: int = 60) -> pd.DataFrame:
    """Tokens recomputed by each eviction policy, on `compared` sessions; the rest is in the table's `attrs`.

    "hints, 9 in 10" are given by nine agents in ten only. Leaves the figures beside the table.
    """
    many = many_sessions(int(sessions))
    print(pd.Series(many).to_string())
    started_s = time.perf_counter()
    shape = Shape.for_context(8_192)
    eviction = compare_eviction(shape, count=int(compared), per_s=0.08)
    some = compare_eviction(
        Shape.for_context(8_192, announced=0.9), count=int(compared), per_s=0.08, policies=("hints",)
    )
    eviction_s = time.perf_counter() - started_s
    agents = agents_per_gpu(CASES)
    print(agents.round(3).to_string())
    RESULTS.mkdir(parents=True, exist_ok=True)
    eviction_curves(eviction).savefig(RESULTS / "simulate_eviction.png", dpi=120)
    agents_bars(agents).savefig(RESULTS / "simulate_agents.png", dpi=120)
    table = pd.concat([eviction, some.rename(index={"hints": "hints, 9 in 10"})])
    table.attrs = {
        "many sessions": many,
        "eviction": {**eviction.attrs, "seconds taken": eviction_s},
        "agents per GPU, predicted": agents.reset_index().to_dict("records"),
        "served means": {
            "p95 to first token (s)": TARGET.first_s,
            "p95 between tokens (ms)": 1000 * TARGET.between_s,
            "recomputing little": "at most 2 % of the prompts",
            "agents that were tried": f"up to {MOST}",
        },
        "seconds taken": time.perf_counter() - started_s + many["seconds taken"],
    }
    return table
