"""Write a trace without a model: the agents call the tools of a scenario, and write filler instead of prose."""

from random import Random

from minstate.lab.agent.code_base import WORDS
from minstate.lab.traces.scenarios import SCENARIOS, PlannedTurn
from minstate.lab.traces.trace import Trace, TraceHeader
from minstate.lab.traces.write import written_turns


def scripted_trace(name: str, seed: int) -> Trace:
    """A trace of the scenario `name`, one of `SCENARIOS`. Outputs without a tool call are words drawn from the seed."""
    scenario, draw = SCENARIOS[name](seed), Random(f"words of {name} {seed}")
    vocabulary = [*WORDS["people"], *WORDS["towns"], *WORDS["companies"]]

    def filler(planned: PlannedTurn) -> str:
        return "" if planned.calls else " ".join(draw.choices(vocabulary, k=planned.tokens // 3))

    header = TraceHeader(name, scenario.sessions, seed, scenario.about, len(scenario.turns))
    return Trace(header, tuple(written_turns(scenario, filler)))
