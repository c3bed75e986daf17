"""How many agents a GPU serves at once: a prediction, by simulating more and more agents until they wait too long."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, product
from random import Random
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from minstate.errors import BadValue, OutOfPages
from minstate.lab.machines.data_sheets import Hardware, h100
from minstate.lab.serving.live_session import LiveSession
from minstate.lab.serving.reuse_modes import NAIVE, PREFIX_REUSE, STATEFUL, TIERED, ReuseMode
from minstate.lab.serving.serving_stats import ServingStats
from minstate.lab.serving.simulation import Simulation
from minstate.lab.serving.traffic import TrafficShape, draw_sessions
from minstate.model_config import ModelConfig


def simulate_agents(
    config: ModelConfig,
    hardware: Hardware,
    mode: ReuseMode,
    shape: TrafficShape,
    agents: int,
    *,
    warmup_s: float = 90.0,
    seconds: float = 60.0,
    seed: int = 0,
    **settings,
) -> ServingStats:
    """A closed loop: there are `agents` sessions at any time, at first each somewhere between its first and last turn.

    Turns sent in the first `warmup_s` do not count; turns that still wait at the end do. Times are predictions.

    settings  of `Simulation`
    """
    random, stream = Random(f"agents {seed}"), draw_sessions(shape, seed)
    simulation = Simulation(config, hardware, mode, count_from_s=warmup_s, **settings)
    for script in islice(stream, agents):
        simulation.begin(LiveSession.of(script, random.random()), at_s=0.3 * warmup_s * random.random())
    simulation.run(until_s=warmup_s + seconds, replacement=lambda: LiveSession.of(next(stream)))
    simulation.count_waiting()
    return simulation.stats


class CapacityCase(NamedTuple):
    """A model on some GPUs, and the traffic that it serves."""

    model: str  # its name
    config: ModelConfig
    longest: int  # tokens of the longest log, to which the traffic is scaled
    gpus: int  # that work as one
    warmup_s: float  # as for `simulate_agents`
    seconds: float


@dataclass(frozen=True)
class Target:
    """The service level that agents are promised. Seconds are predicted, and met by all but 5 % of the tokens."""

    first_s: float = 2.0  # from sending a turn to its first token, at most
    between_s: float = 0.050  # from one token to the next, at most
    recomputed: float | None = None  # share of the prompts that may be recomputed; None: any

    def met(self, row: dict) -> bool:
        """Whether a row of `ServingStats.row` meets it. An empty row does not; a row without turns was never late."""
        return bool(row) and not (
            row["p95 to first token (s)"] > self.first_s
            or row["p95 between tokens (ms)"] > 1000 * self.between_s
            or (self.recomputed is not None and row["recomputed share"] > self.recomputed)
        )


TARGET = Target()
MAX_AGENTS = 512  # agents to try: a simulation's duration grows faster than their number


def most_agents(
    serve: Callable[[int], dict], target: Target, *, steps: float = 1.2, most: int = MAX_AGENTS
) -> tuple[int, dict]:
    """The largest number of agents that meets `target`, to within a factor `steps`, and its row.

    First the number doubles until the target is missed; then the interval is halved. `serve` gives the row for a number
    of agents. Returns 0 and an empty row if not even one agent is served. If the result is `most`, there may be room
    for more.
    """
    good, row, bad = 0, {}, 1
    while target.met(found := serve(bad)):
        good, row, bad = bad, found, min(2 * bad, most)
        if good == most:
            break
    while good and bad > good + 1 and bad > steps * good:
        middle = round((good * bad) ** 0.5)
        middle = min(max(middle, good + 1), bad - 1)
        if target.met(found := serve(middle)):
            good, row = middle, found
        else:
            bad = middle
    return good, row


def agents_per_gpu(
    cases: Iterable[CapacityCase],
    *,
    modes: tuple[ReuseMode, ...] = (NAIVE, PREFIX_REUSE, STATEFUL, TIERED),
    target: Target = TARGET,
    little: float = 0.02,
    **settings,
) -> pd.DataFrame:
    """Predicted: how many agents a GPU serves at once, by model and by what is reused. Sub-agents are not counted.

    Where it is `MAX_AGENTS`, there may be room for more.

    little    the table also has the number of agents at which at most this share of the prompts is recomputed
    settings  of `simulate_agents`
    """
    cases, rows = list(cases), []
    with tqdm(total=len(cases) * len(modes), unit="case", mininterval=1) as bar:
        for case, mode in product(cases, modes):
            bar.set_description(f"{case.model}, {mode.name}")
            serve = cache(partial(_serve, case, mode, settings))
            most, row = most_agents(serve, target)
            recomputing_little = None if mode is NAIVE else most_agents(serve, replace(target, recomputed=little))[0]
            rows.append(
                {
                    "model": case.model,
                    "longest log": case.longest,
                    "GPUs": case.gpus,
                    "policy": mode.name,
                    "agents": most,
                    "agents per GPU": most / case.gpus,
                    "agents, recomputing little": recomputing_little,
                    "GPU seconds a turn": case.gpus * case.seconds / row["turns"] if row else None,
                    **row,
                }
            )
            bar.update()
    return pd.DataFrame(rows).set_index(["model", "longest log", "GPUs", "policy"])


def _serve(case: CapacityCase, mode: ReuseMode, settings: dict, agents: int) -> dict:
    """A row of `ServingStats.row`; empty if the pool is too small for a single turn."""
    shape, pace = TrafficShape.for_context(case.longest), {"warmup_s": case.warmup_s, "seconds": case.seconds}
    with suppress(OutOfPages, BadValue):
        return simulate_agents(case.config, h100(case.gpus), mode, shape, agents, **pace, **settings).row()
    return {}
