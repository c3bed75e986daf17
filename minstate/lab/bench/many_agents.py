"""Many agents on one engine: throughput and latency, what a shrinking pool costs, and a soak test with faults."""

import time
from functools import cache

import pandas as pd

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.bench.configurations import CONFIGURATIONS
from minstate.lab.engines.soak import soak
from minstate.lab.engines.stub_model import stub_engine
from minstate.lab.figures.agents import pressure_figure, throughput_figure
from minstate.lab.paths import RESULTS
from minstate.lab.serving.clocks import ModelledClock
from minstate.lab.serving.concurrent_replay import replay_concurrently
from minstate.lab.traces.scripted_trace import scripted_trace
from minstate.lab.traces.trace import Trace

AGENTS = (1, 4, 16)
TURNS = 3  # of each agent
PACE = 0.05  # factor on the delays in the traces: the measurement should not mostly wait for tools
TEAMS = 4  # of an orchestrator and three sub-agents, on the shrinking pool
PAGE_SIZE = 16


@cache
def agent_trace(seed: int) -> Trace:
    """The first turns of an agent that works on a code base of its own."""
    trace = scripted_trace("agentic", seed)
    return Trace(trace.header, trace.turns[:TURNS])


class StepTimer:
    """Times an engine's steps, each as a whole and its forward pass alone, until `end`."""

    def __init__(self, engine: Engine):
        self.rows: list[dict] = []
        self.engine, self.runner = engine, engine.core.runner
        self._step, self._forward, self._forward_s = engine.step, self.runner.logits, 0.0
        engine.step, self.runner.logits = self.step, self.forward

    def forward(self, batch):
        """In place of `ModelRunner.logits`."""
        start = time.perf_counter()
        logits = self._forward(batch)
        self._forward_s = time.perf_counter() - start
        self.rows.append({"sequences": len(batch.context_len), "context": int(batch.context_len.sum())})
        return logits

    def step(self):
        """In place of `Engine.step`."""
        start = time.perf_counter()
        ended = self._step()
        if self.rows and "step_s" not in self.rows[-1]:
            self.rows[-1] |= {"step_s": time.perf_counter() - start, "forward_s": self._forward_s}
        return ended

    def end(self) -> pd.DataFrame:
        """Leave the engine as it was. Returns a row for each step."""
        del self.engine.step
        del self.runner.logits
        return pd.DataFrame(self.rows)


def measure_throughput(agents: tuple[int, ...] = AGENTS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run each number of agents at once in each configuration. Returns a table of runs, and one of steps."""
    stateful = Engine.from_pretrained()
    rows, steps = [], []
    for number, count in enumerate(agents):
        names = list(CONFIGURATIONS)[:: 1 if number % 2 else -1]
        for name in names:
            kind, speculation = CONFIGURATIONS[name]
            engine = kind(stateful.model, stateful.tokenizer, eos_ids=stateful.eos_ids, speculation=speculation)
            engine.open().send("Are you there?", max_new_tokens=2)
            timer = StepTimer(engine)
            turns = replay_concurrently(engine, [agent_trace(seed) for seed in range(count)], pace=PACE)
            assert not turns["error"].any(), "a turn failed"
            steps.append(timer.end().assign(configuration=name, agents=count))
            total_s = turns["done_s"].max()
            rows.append(
                {
                    "agents": count,
                    "configuration": name,
                    "turns": len(turns),
                    "total s": total_s,
                    "turns a minute": 60 * len(turns) / total_s,
                    "tokens a second": turns["generated"].sum() / total_s,
                    "p50 s": turns["latency_s"].median(),
                    "p95 s": turns["latency_s"].quantile(0.95),
                    "forwarded": int(turns["forwarded"].sum()),
                    "passes": len(steps[-1]),
                }
            )
            print(pd.DataFrame(rows[-1:]).round(2).to_string(index=False, header=len(rows) == 1))
    return pd.DataFrame(rows), pd.concat(steps, ignore_index=True)


def time_outside_forward(steps: pd.DataFrame) -> pd.DataFrame:
    """Median milliseconds of a step outside its forward pass, and their share of it, by sequences in the batch."""
    own = steps[steps["configuration"] == "stateful"].assign(own_s=lambda rows: rows["step_s"] - rows["forward_s"])
    by_size = own.groupby(pd.cut(own["sequences"], [0, 1, 2, 4, 8, 16]), observed=True)
    table = pd.DataFrame(
        {
            "steps": by_size.size(),
            "own ms": 1000 * by_size["own_s"].median(),
            "share": by_size["own_s"].sum() / by_size["step_s"].sum(),
        }
    )
    table.index = [f"{int(sizes.left) + 1} to {int(sizes.right)}" for sizes in table.index]
    return table.rename_axis("sequences in the batch").reset_index()


def shrink_pool(shares: tuple[float, ...] = (2.0, 1.0, 0.75, 0.5, 0.375, 0.25), teams: int = TEAMS) -> pd.DataFrame:
    """The same teams on smaller and smaller pools: how much of their context is reused, and how much recomputed.

    The stub model and the modelled clock make the counts the same on any machine. `share` is the pool's share of the
    working set: of all pages that are in use at once if none has to be evicted.
    """
    traces = [scripted_trace("planning", seed) for seed in range(teams)]
    rows = []
    working_set = None
    for share in (None, *shares):
        for hints in (False, True) if share else (False,):
            num_pages = round(share * working_set) if share else 16384
            clock = ModelledClock(CostTable.default("float32"))
            engine = stub_engine(num_pages=num_pages, page_size=PAGE_SIZE, clock=clock.now)
            turns = replay_concurrently(engine, traces, clock=clock, hints=hints)
            assert not turns["error"].any(), "a turn failed"
            engine.check()
            if share is None:
                working_set = engine.pool.allocator.num_pages - engine.pool.allocator.num_free
                continue
            context = turns["context"].sum()
            rows.append(
                {
                    "share": share,
                    "hints": hints,
                    "pages": num_pages,
                    "hit rate": 1 - turns["recomputed"].sum() / context,
                    "recomputed": int(turns["recomputed"].sum()),
                    "forwarded": int(turns["forwarded"].sum()),
                    "preemptions": sum(event.what == "preempt" for event in engine.scheduler.timeline),
                    "total s": turns["done_s"].max(),
                    "p95 s": turns["latency_s"].quantile(0.95),
                }
            )
    return pd.DataFrame(rows)


def many_agents() -> pd.DataFrame:
    """1 to 16 agents in four configurations, a row each; then, by counts alone, a shrinking pool and a soak test."""
    table, steps = measure_throughput()
    own = time_outside_forward(steps)
    print(own.round(4).to_string(index=False))
    pressure = shrink_pool()
    print(pressure.round(3).to_string(index=False))
    soaked = soak(2000)
    for name, figure in [
        ("many_agents", throughput_figure(table)),
        ("pool_under_pressure", pressure_figure(pressure)),
    ]:
        figure.savefig(RESULTS / f"{name}.png", dpi=120)
    table.attrs = {
        "pool under pressure": pressure.round(4).to_dict("records"),
        "soak": soaked.counts(),
        "bookkeeping": own.round(4).to_dict("records"),
    }
    return table.set_index(["agents", "configuration"])
