"""Eight agents on `small_engine` that wait for tools: quick ones, slow ones, and people. Time is modelled.

After each turn an agent's tool is out, so who comes next depends on the tools. A turn takes a second by a clock that
the replay sets by hand, so every run is the same.
"""

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

import pandas as pd

from minstate.engine import Engine
from minstate.lab.engines.small_engine import small_engine
from minstate.sampling import Sampling

TYPICAL_S = {"reads a file": 2.0, "runs the tests": 12.0, "asks a person": 60.0}
CROWD = [f"agent {number}" for number in range(8)]
LATER_TURNS = 5  # of each agent, after its first

Says = Callable[[str, str], float | None]  # the seconds that an agent expects a tool to take, by their names


def some_ids(count: int, seed: str) -> list[int]:
    """Random token ids, the same for the same seed."""
    return random.Random(seed).choices(range(20, 250), k=count)


def tools_of(agent: str) -> list[tuple[str, float]]:
    """After each turn of an agent: the tool that it calls, and the seconds that the tool really takes."""
    draw = random.Random(f"tools of {agent}")
    called = draw.choices(list(TYPICAL_S), k=LATER_TURNS)
    return [(tool, TYPICAL_S[tool] * draw.uniform(0.5, 1.5)) for tool in called]


def says_typical(_agent: str, tool: str) -> float:
    """An honest hint: the longest that such a tool takes."""
    return 1.5 * TYPICAL_S[tool]


def says_the_opposite(_agent: str, tool: str) -> float:
    """A mistaken hint: a person answers at once, and a file takes a minute."""
    return 1.5 * {2.0: 60.0, 12.0: 12.0, 60.0: 2.0}[TYPICAL_S[tool]]


def half_are_selfish(agent: str, _tool: str) -> float | None:
    """Four agents claim to be expected at some distant time, which never becomes late; the others say nothing."""
    return 1e6 if agent in CROWD[:4] else None


def at_work(
    num_pages: int, says: Says | None = None, prepare: Callable[[Engine], None] | None = None, **settings
) -> tuple[dict, pd.DataFrame, Engine]:
    """Let all agents do their turns on a pool of `num_pages`; `settings` are those of the engine.

    `prepare`, such as `small_engine.poison`, gets the engine before the first turn.

    Returns the answers by (agent, turn); a row for each turn with "agent", "at" (its end), "says" (a typical hint, in
    seconds), "context", "recomputed", "forwarded" and "promoted" (tokens); and the engine.
    """
    now = [0.0]
    engine = small_engine(num_pages=num_pages, clock=lambda: now[0], **settings)
    if prepare:
        prepare(engine)
    sessions, answers, rows = {agent: engine.open() for agent in CROWD}, {}, []
    due = [(float(place), agent, 0) for place, agent in enumerate(CROWD)]
    heapify(due)
    while due:
        at_s, agent, turn = heappop(due)
        now[0] = max(now[0], at_s)
        new = some_ids(16, f"{agent} {turn}") if turn else some_ids(40, "system") + some_ids(60, agent)
        answer = sessions[agent].send(token_ids=new, max_new_tokens=2, sampling=Sampling(ignore_eos=True))
        answers[agent, turn] = answer.token_ids
        now[0] += 1.0
        tool, takes_s = tools_of(agent)[turn] if turn < LATER_TURNS else ("", inf)
        if tool:
            heappush(due, (now[0] + takes_s, agent, turn + 1))
            if says and (seconds := says(agent, tool)):
                sessions[agent].expect(seconds)
        work = {name: getattr(answer.stats, name) for name in ("context", "recomputed", "forwarded", "promoted")}
        rows.append({"agent": agent, "at": now[0], "says": says_typical(agent, tool) if tool else inf, **work})
    engine.check()
    return answers, pd.DataFrame(rows), engine
