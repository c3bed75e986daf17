"""The headline in small: a tool-calling conversation, naive and stateful, turn by turn."""

import pandas as pd

from minstate.engine import Engine
from minstate.lab import figures
from minstate.lab.baseline import NaiveEngine
from minstate.lab.bench import RESULTS
from minstate.lab.measure import per_turn, run_side_by_side
from minstate.lab.workload import AgenticWorkload
from minstate.sampling import Sampling


def agentic_turns(repeats: int = 3) -> pd.DataFrame:
    """The six turns of the tool-calling workflow, naive and stateful: counts, and medians over the repeats.

    Leaves the figure beside the table. Raises AssertionError if the two engines differ in a single token.
    """
    stateful = Engine.from_pretrained()
    engines = {"naive": NaiveEngine(stateful.model, stateful.tokenizer, eos_ids=stateful.eos_ids), "stateful": stateful}
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=7)
    with AgenticWorkload(seed=0, turns=6) as workload:
        rows = run_side_by_side(engines, workload, max_new_tokens=24, sampling=sampling, repeats=repeats)
    assert (rows.groupby(["repeat", "turn"])["token_ids"].nunique() == 1).all()
    RESULTS.mkdir(parents=True, exist_ok=True)
    figures.turn_costs(rows).savefig(RESULTS / "agentic_turns.png", dpi=120)
    return per_turn(rows, "naive", "stateful")
