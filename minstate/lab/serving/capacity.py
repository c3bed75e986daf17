"""How many agents a GPU serves at once: a prediction, by simulating more and more of them until they wait."""

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
from minstate.lab.serving.simulation import NAIVE, PREFIX_REUSE, STATEFUL, Policy, Simulation, Tally
from minstate.lab.serving.traffic import Shape, sessions
from minstate.model import ModelConfig


def serve_agents(
    config: ModelConfig,
    hardware: Hardware,
    policy: Policy,
    shape: Shape,
    agents: int,
    *,
    warmup_s: float = 90.0,
    seconds: float = 60.0,
    seed: int = 0,
    **settings,
) -> Tally:
    """A closed loop: so many sessions at any time, each at some point between its first and its last turn at the start.

    What was sent in the first `warmup_s` does not count, but whoever waits at the end does. Times are predictions.
    """
    random, stream = Random(f"agents {seed}"), sessions(shape, seed)
    simulation = Simulation(config, hardware, policy, since_s=warmup_s, **settings)
    for script in islice(stream, agents):
        simulation.begin(LiveSession.of(script, random.random()), at_s=0.3 * warmup_s * random.random())
    simulation.run(until_s=warmup_s + seconds, next_one=lambda: LiveSession.of(next(stream)))
    simulation.count_waiting()
    return simulation.tally


class Case(NamedTuple):
    """What is asked about."""

    model: str  # its name
    config: ModelConfig
    longest: int  # tokens of the longest log: how the traffic is scaled
    gpus: int  # that work as one
    warmup_s: float  # as for `serve_agents`
    seconds: float


@dataclass(frozen=True)
class Target:
    """What counts as served: predicted seconds that all but 5 % of first tokens, and of gaps between tokens, keep."""

    first_s: float = 2.0
    between_s: float = 0.050
    recomputed: float | None = None  # share of the prompts at most, where asked

    def met(self, row: dict) -> bool:
        """By a row of `Tally.row`. Where nothing was asked, nothing was late; an empty row meets nothing."""
        return bool(row) and not (
            row["p95 to first token (s)"] > self.first_s
            or row["p95 between tokens (ms)"] > 1000 * self.between_s
            or (self.recomputed is not None and row["recomputed share"] > self.recomputed)
        )


TARGET = Target()
MOST = 512  # agents that are tried: the time that a simulation takes grows faster than their number


def most_agents(
    serve: Callable[[int], dict], target: Target, *, steps: float = 1.2, most: int = MOST
) -> tuple[int, dict]:
    """The largest number of agents that meets `target`, and its row, to within a factor `steps`: growing, then halving.

    `serve` gives the row for a number of agents. Returns 0 and an empty row if not even one is served; where `most`
    are, there may be room for more.
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
    cases: Iterable[Case],
    *,
    policies: tuple[Policy, ...] = (NAIVE, PREFIX_REUSE, STATEFUL),
    target: Target = TARGET,
    little: float = 0.02,
    **settings,
) -> pd.DataFrame:
    """Predicted: how many agents a GPU serves at once, by model and policy. Their sub-agents come on top.

    Where it is `MOST`, there may be room for more.

    little    besides, the number at which no larger share of the prompts is recomputed than this
    settings  of `serve_agents`
    """
    cases, rows = list(cases), []
    with tqdm(total=len(cases) * len(policies), unit="case", mininterval=1) as bar:
        for case, policy in product(cases, policies):
            bar.set_description(f"{case.model}, {policy.name}")
            serve = cache(partial(_served, case, policy, settings))
            most, row = most_agents(serve, target)
            unspoilt = None if policy is NAIVE else most_agents(serve, replace(target, recomputed=little))[0]
            rows.append(
                {
                    "model": case.model,
                    "longest log": case.longest,
                    "GPUs": case.gpus,
                    "policy": policy.name,
                    "agents": most,
                    "agents per GPU": most / case.gpus,
                    "agents, recomputing little": unspoilt,
                    **row,
                }
            )
            bar.update()
    return pd.DataFrame(rows).set_index(["model", "longest log", "GPUs", "policy"])


def _served(case: Case, policy: Policy, settings: dict, agents: int) -> dict:
    """A row of `Tally.row`; empty if the pool is too small for a single turn."""
    shape, pace = Shape.for_context(case.longest), {"warmup_s": case.warmup_s, "seconds": case.seconds}
    with suppress(OutOfPages, BadValue):
        return serve_agents(case.config, h100(case.gpus), policy, shape, agents, **pace, **settings).row()
    return {}
