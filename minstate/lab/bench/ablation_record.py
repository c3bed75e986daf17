"""The ablation as `data/results/` holds it: clocks that were measured once, and counts that anyone can compute again.

A count (tokens, forward passes) does not depend on the machine. As the outputs are replayed, an engine around a stub
model makes the same decisions as the measured one, so `count_turns` checks the stored counts within seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.bench.ablation import COUNTS, MECHANISMS, configuration_name, engine_with, seconds_by_turn
from minstate.lab.bench.bootstrap import bootstrap_interval
from minstate.lab.bench.shapley import shapley, subsets
from minstate.lab.engines.stub_model import stub_engine
from minstate.lab.machines.cost_fit import CostFit
from minstate.lab.measure import turn_row
from minstate.lab.paths import RESULTS, TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace


@dataclass(frozen=True)
class AblationRecord:
    """One run of `python -m minstate.lab.bench ablation`.

    source     its command, date and machine, in three lines
    turns      by workload, a row for each repeat, turn and configuration, as `measure_turns` returns them
    table      a row for each workload and configuration, as `ladder` returns them
    fit        of the turns without drafts
    share_out  by workload, the rows of `shapley_shares`; empty if the run measured the ladder only
    """

    source: str
    turns: dict[str, pd.DataFrame]
    table: pd.DataFrame
    fit: CostFit
    share_out: dict[str, pd.DataFrame]


def read_ablation(dtype: str = "bfloat16") -> AblationRecord:
    """The stored run in this precision."""
    record = json.loads((RESULTS / f"ablation_{dtype}.json").read_text())
    return AblationRecord(
        source="\n".join(record[key] for key in ("command", "date", "machine")),
        turns={workload: pd.DataFrame(columns) for workload, columns in record["turns"].items()},
        table=pd.DataFrame(record["rows"]).set_index(["workload", "configuration"]),
        fit=CostFit(**record["fit"]),
        share_out={workload: pd.DataFrame(rows) for workload, rows in record["share_out"].items()},
    )


@cache
def _stub() -> Engine:
    return stub_engine(num_pages=1)


def count_turns(workload: str, mechanisms: frozenset[str], dtype: str = "bfloat16") -> pd.DataFrame:
    """Replay a trace on an engine with these mechanisms around a stub model: a row of counts for each turn.

    What a pass costs in this precision decides how many drafts there are. The columns `prefill_s`, `decode_s` and
    `total_s` are the seconds of everything but the model.
    """
    engine = engine_with(mechanisms, _stub(), CostTable.default(dtype))
    engine.grammars = _stub().grammars  # of the same tokenizer, so they are compiled once
    turns = [turn for _, turn in replay(engine, read_trace(TRACES / f"{workload}-0.jsonl"))]
    return pd.DataFrame(
        {"turn": number, **turn_row(turn), "passes": len(turn.verdicts)} for number, turn in enumerate(turns, 1)
    )


def same_counts(counted: pd.DataFrame, measured: pd.DataFrame, configuration: str) -> bool:
    """Whether the counts of `count_turns` are those of a configuration in the first repeat of a measured run."""
    stored = measured[(measured["configuration"] == configuration) & (measured["repeat"] == 0)]
    return all(list(counted[count]) == list(stored[count]) for count in ("n", *COUNTS, "passes"))


def times_faster(turns: pd.DataFrame, theirs: str, ours: str, column: str = "total_s") -> dict[str, float]:
    """How many times as long `theirs` takes as `ours`: `whole` by the sums over all turns, `median` by the median turn.

    The 95 % interval of the median turn is from `from` to `to`.
    """
    wide = seconds_by_turn(turns, column)
    a, b = wide[theirs].to_numpy(), wide[ours].to_numpy()
    low, high = bootstrap_interval(lambda at: np.median(a[at] / b[at]), len(wide))
    return {"whole": a.sum() / b.sum(), "median": np.median(a / b), "from": low, "to": high}


def twins(turns: pd.DataFrame) -> pd.DataFrame:
    """The four pairs of configurations that do the same work: with state, with and without prefix reuse.

    In a single session prefix reuse adds nothing to state, so the quotient of the seconds of a pair should be 1. A row
    for each pair: the quotient of all turns, and the 10th and 90th percentile of the quotients of single turns. Raises
    AssertionError if the counts of a pair differ.
    """
    rows, turns = {}, turns[turns["repeat"] == 0]
    for some in subsets(MECHANISMS):
        if "state" in some and "prefix reuse" not in some:
            names = configuration_name(some), configuration_name(some | {"prefix reuse"})
            one, other = (turns[turns["configuration"] == name].reset_index(drop=True) for name in names)
            counts = ["n", *COUNTS, "passes"]
            assert (one[counts] == other[counts]).all(axis=None), "the same work"
            low, high = (one["total_s"] / other["total_s"]).quantile([0.1, 0.9])
            whole = one["total_s"].sum() / other["total_s"].sum()
            rows[names[0]] = {"all turns": whole, "a turn: 10th percentile": low, "90th": high}
    return pd.DataFrame(rows).T


def seconds_of_subsets(turns: pd.DataFrame) -> dict[frozenset[str], float]:
    """Seconds of the whole conversation, for each of the sixteen combinations of mechanisms."""
    groups = turns.groupby("configuration")
    totals = groups["total_s"].sum() / groups["repeat"].nunique()
    return {some: float(totals[configuration_name(some)]) for some in subsets(MECHANISMS)}


def three_ways(cost: Mapping[frozenset[str], float]) -> pd.DataFrame:
    """What each mechanism saves, in % of the cost without any: a row for each mechanism, a column for each question.

    cost     of each combination of mechanisms, in seconds or tokens
    alone    saved by this mechanism where there is no other
    shapley  saved on average over all orders in which the mechanisms can be added
    last     saved by this mechanism where there are all others
    """
    nothing, everything = frozenset(), frozenset(MECHANISMS)
    saved = {some: cost[nothing] - cost[some] for some in cost}
    shares = shapley(MECHANISMS, saved)
    rows = {
        name: {
            "alone": saved[frozenset({name})],
            "shapley": shares[name],
            "last": saved[everything] - saved[everything - {name}],
        }
        for name in MECHANISMS
    }
    return 100 * pd.DataFrame(rows).T / cost[nothing]
