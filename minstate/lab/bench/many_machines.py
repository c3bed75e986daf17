"""A hundred machines on paper: how sessions spread, what routing does to reuse, and what load does to one machine.

Nothing is computed: the traffic is drawn, and seconds are predicted from data sheets (`minstate.lab.serving`).
"""

from collections import Counter

import pandas as pd

from minstate.lab.machines.data_sheets import LLAMA_8B, h100
from minstate.lab.serving.load_balance import sessions_per_machine
from minstate.lab.serving.reuse_modes import STATEFUL
from minstate.lab.serving.routing import Ring, anywhere, by_agent, by_session, moving, replay
from minstate.lab.serving.simulation import simulate_arrivals
from minstate.lab.serving.traffic import TrafficShape, draw_sessions

SHAPE = TrafficShape.for_context(12_288)  # the longest log, in tokens
PER_S = 0.12  # sessions that arrive a second at one machine, at its mean load
OPEN = 100  # sessions of a machine, among which `spread` looks for the fullest one
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)  # of the mean


def routed(machines: int, sessions: int) -> pd.DataFrame:
    """A row for each way to route: the hit rate, and the share of prompts whose K/V is on other machines only."""
    ways = {
        "each turn to any machine": anywhere(machines),
        "by agent": by_agent(machines),
        "by session": by_session(machines),
        "by session, which moves before 1 turn in 1,000": moving(machines, 0.001),
        "by session, which moves before 1 turn in 100": moving(machines, 0.01),
        "by session, which moves before 1 turn in 10": moving(machines, 0.1),
    }
    rows = []
    for name, route in ways.items():
        reuse = replay(draw_sessions(SHAPE, count=sessions), route)
        rows.append({"what": name, "hit rate": reuse.hit_rate, "computed again": reuse.elsewhere / reuse.prompts})
    return pd.DataFrame(rows)


def loaded(sessions: int) -> pd.DataFrame:
    """A row for each load of one machine, as its routing gives it: Llama 3.1 8B on an H100, by the simulator."""
    rows = []
    for load in LOADS:
        run = simulate_arrivals(LLAMA_8B, h100(), STATEFUL, SHAPE, count=sessions, per_s=load * PER_S, page_size=128)
        rows.append({"what": f"one machine, {load:g} × the mean load", **run.stats.row()})
    return pd.DataFrame(rows).rename(columns={"recomputed share": "computed again"})


def spread(machines: int, opened: int) -> dict[str, float]:
    """The fullest machine's sessions over the mean, `opened`; and which share of all moves if a machine is added."""
    names = [str(session) for session in range(machines * opened)]
    before, after = (list(map(Ring(count).machine, names)) for count in (machines, machines + 1))
    fullest = {"consistent hashing": max(Counter(before).values())}
    for choices, name in ((1, "a random machine"), (2, "the emptier of two")):
        fullest[name] = max(sessions_per_machine(len(names), machines, choices))
    moved = sum(a != b for a, b in zip(before, after, strict=True)) / len(names)
    return {**{name: most / opened for name, most in fullest.items()}, "moved": moved}


def many_machines(machines: int = 100, sessions: int = 2000, simulated: int = 400) -> pd.DataFrame:
    """Both tables in one; the spread of sessions is in its `attrs`."""
    table = pd.concat([routed(int(machines), int(sessions)), loaded(int(simulated))]).set_index("what")
    table.attrs = {"machines": int(machines), "spread of sessions": spread(int(machines), OPEN)}
    return table
