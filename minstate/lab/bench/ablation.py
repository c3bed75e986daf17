"""What each mechanism is worth: the same turns with every combination of them, interleaved on one machine."""

from dataclasses import asdict

import numpy as np
import pandas as pd
from tqdm import tqdm

from minstate.costs import CostTable
from minstate.engine import Engine
from minstate.lab.bench.shapley import bootstrap, shapley, subsets
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.lab.figures import headline as headline_figures
from minstate.lab.machines.cost_fit import CostFit
from minstate.lab.measure import turn_row
from minstate.lab.paths import RESULTS, TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.speculation import CORPUS, GRAMMAR, LOG, Speculation

PREFIX, STATE, LOOKUP, FORCED = MECHANISMS = ("prefix reuse", "state", "prompt lookup", "grammar")
LADDER = {  # what a configuration is called where mechanisms are added one by one
    "naive": frozenset(),
    "prefix reuse": frozenset({PREFIX}),
    "stateful": frozenset({PREFIX, STATE}),
    "+ prompt lookup": frozenset({PREFIX, STATE, LOOKUP}),
    "+ grammar": frozenset(MECHANISMS),
}
COUNTS = ("delta", "forwarded", "reused", "recomputed", "prefilled", "generated", "drafted", "accepted", "forced")
KEPT = ("repeat", "turn", "configuration", "n", *COUNTS, "passes", "prefill_s", "decode_s", "total_s")


def name_of(mechanisms: frozenset[str]) -> str:
    """The ladder's name for it; else the mechanisms, in their order."""
    named = {some: name for name, some in LADDER.items()}
    return named.get(mechanisms) or ", ".join(name for name in MECHANISMS if name in mechanisms)


def engine_with(mechanisms: frozenset[str], first: Engine, costs: CostTable) -> Engine:
    """An engine around the model of `first` that has these mechanisms and no other.

    State without prefix reuse is a session that keeps what it has, and shares it with nobody.
    """
    kind = Engine if STATE in mechanisms else PrefixReuseEngine if PREFIX in mechanisms else NaiveEngine
    sources = (GRAMMAR,) * (FORCED in mechanisms) + (LOG, CORPUS) * (LOOKUP in mechanisms)
    return kind(
        first.model,
        first.tokenizer,
        eos_ids=first.eos_ids,
        num_pages=640,
        prefix_cache=PREFIX in mechanisms,
        speculation=Speculation(costs, sources=sources) if sources else False,
    )


def measure(engines: dict[str, Engine], workload: str, repeats: int, *, same: bool) -> pd.DataFrame:
    """One row for each repeat, turn and configuration, which take each turn one after the other, in changing order.

    Each repeat is a tenant of its own: nothing in it has been seen. `same`: raises AssertionError where in a
    turn two configurations say different tokens, or the model's own choices agree with them in different numbers.
    """
    trace = read_trace(TRACES / f"{workload}-0.jsonl")
    order, rows = np.random.default_rng(0), []
    for engine in engines.values():
        engine.open(tenant="warm-up").send("Are you there?", max_new_tokens=4)
    with tqdm(total=repeats * trace.header.turns * len(engines), unit="turn", mininterval=1) as bar:
        for repeat in range(repeats):
            plays = {name: replay(engine, trace, tenant=f"{repeat}") for name, engine in engines.items()}
            for number in range(1, trace.header.turns + 1):
                turns = {}
                for name in order.permutation(list(plays)):
                    bar.set_description(f"turn {number}, {name}")
                    _, turn = next(plays[name])
                    turns[name] = turn_row(turn) | {"passes": len(turn.verdicts)}
                    bar.update()
                said = {(turn["n"], turn["token_ids"], turn["agreed"]) for turn in turns.values()}
                assert len(said) == 1 or not same, f"turn {number} of {workload} differs between configurations"
                rows += [{"repeat": repeat, "turn": number, "configuration": name, **turns[name]} for name in engines]
            for played in plays.values():
                played.close()
    return pd.DataFrame(rows)[list(KEPT)]


def ladder(turns: pd.DataFrame) -> pd.DataFrame:
    """Each configuration in one row: sums over a conversation, and how many times faster it is than naive, with 95 %.

    Ratios are paired: the same turn, measured within the same minute. Intervals say what other turns might have given.
    """
    counts = [*COUNTS, "passes"]
    wide = turns.pivot(index=["repeat", "turn"], columns="configuration", values="total_s")
    repeats = turns["repeat"].nunique()
    rows = []
    for name in turns["configuration"].unique():
        mine = turns[turns["configuration"] == name]
        theirs, ours = wide["naive"].to_numpy(), wide[name].to_numpy()
        low, high = bootstrap(lambda at, a=theirs, b=ours: np.median(a[at] / b[at]), len(wide))
        whole = bootstrap(lambda at, a=theirs, b=ours: a[at].sum() / b[at].sum(), len(wide))
        rows.append(
            {
                "configuration": name,
                **(mine[counts].sum() / repeats).astype(int),
                "prefill s": mine["prefill_s"].sum() / repeats,
                "decode s": mine["decode_s"].sum() / repeats,
                "total s": mine["total_s"].sum() / repeats,
                "times faster": theirs.sum() / ours.sum(),
                "times faster, from": whole[0],
                "times faster, to": whole[1],
                "median turn": np.median(theirs / ours),
                "median turn, from": low,
                "median turn, to": high,
                "last turn": np.median((wide["naive"] / wide[name]).xs(wide.index[-1][1], level="turn")),
            }
        )
    return pd.DataFrame(rows).set_index("configuration")


def shares(turns: pd.DataFrame) -> list[dict]:
    """For seconds, tokens forwarded and passes: what each mechanism saves of naive's in a conversation, with 95 %."""
    names, repeats = {some: name_of(some) for some in subsets(MECHANISMS)}, turns["repeat"].nunique()
    rows = []
    for unit in ("total_s", "forwarded", "passes"):
        wide = turns.pivot(index=["repeat", "turn"], columns="configuration", values=unit)

        def saved(at, wide=wide):
            sums = wide.to_numpy()[at].sum(axis=0) / repeats
            worth = {some: -sums[wide.columns.get_loc(name)] for some, name in names.items()}
            return np.array(list(shapley(MECHANISMS, worth).values()))

        found, (low, high) = saved(np.arange(len(wide))), bootstrap(saved, len(wide), resamples=500)
        naive = wide["naive"].sum() / repeats
        rows += [
            {
                "unit": unit,
                "mechanism": name,
                "saved": found[i],
                "from": low[i],
                "to": high[i],
                "share": found[i] / naive,
            }
            for i, name in enumerate(MECHANISMS)
        ]
    return rows


def ablation(
    dtype: str = "float32", workloads: str = "agentic,coding", repeats: str = "1", only: str = ""
) -> pd.DataFrame:
    """The replayed turns of these traces with all combinations of mechanisms; `only=ladder` adds them one by one.

    Leaves a figure for each trace beside the table.
    """
    costs, first = CostTable.default(dtype), Engine.from_pretrained(dtype=dtype, num_pages=1)
    chosen = list(LADDER.values()) if only == "ladder" else subsets(MECHANISMS)
    measured = {}
    for workload in workloads.split(","):
        measured[workload] = measure(
            {name_of(some): engine_with(some, first, costs) for some in chosen},
            workload,
            int(repeats),
            same=dtype == "float32",
        )
    tables = {workload: ladder(turns) for workload, turns in measured.items()}
    table = pd.concat(tables, names=["workload"])
    undrafted = pd.concat(turns[turns["configuration"].isin(list(LADDER)[:3])] for turns in measured.values())
    table.attrs = {
        "share_out": {workload: shares(turns) for workload, turns in measured.items()} if not only else {},
        "fit": asdict(CostFit.of(undrafted)),
        "turns": {workload: turns.round(4).to_dict("list") for workload, turns in measured.items()},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    for workload, turns in measured.items():
        figure = headline_figures.ladders({workload: turns}, {workload: tables[workload]})
        figure.savefig(RESULTS / f"ablation_{workload}_{dtype}.png", dpi=110)
    return table
