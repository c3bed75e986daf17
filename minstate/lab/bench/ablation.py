"""What each mechanism is worth: the same turns with every combination of them, interleaved on one machine."""

from dataclasses import asdict

import numpy as np
import pandas as pd
from tqdm import tqdm

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.bench.bootstrap import bootstrap_interval
from minstate.lab.bench.repeats import measure_repeats
from minstate.lab.bench.shapley import shapley, subsets
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.lab.figures.headline import ladder_figure
from minstate.lab.machines.cost_fit import CostFit
from minstate.lab.measure import turn_row
from minstate.lab.paths import RESULTS, TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.speculation import CORPUS, GRAMMAR, LOG, Speculation

PREFIX, STATE, LOOKUP, FORCED = MECHANISMS = ("prefix reuse", "state", "prompt lookup", "grammar")
NAIVE, INT8 = "naive", "8-bit K/V"
LADDER = {  # mechanisms added one by one: the name of each step, and which mechanisms it has
    NAIVE: frozenset(),
    "prefix reuse": frozenset({PREFIX}),
    "stateful": frozenset({PREFIX, STATE}),
    "+ prompt lookup": frozenset({PREFIX, STATE, LOOKUP}),
    "+ grammar": frozenset(MECHANISMS),
    "+ 8-bit K/V": frozenset({*MECHANISMS, INT8}),
}
COUNTS = ("delta", "forwarded", "reused", "recomputed", "prefilled", "generated", "drafted", "accepted", "forced")
COLUMNS = ("turn", "configuration", "n", *COUNTS, "passes", "prefill_s", "decode_s", "total_s")


def configuration_name(mechanisms: frozenset[str]) -> str:
    """The name that the ladder has for these mechanisms; if it has none, the mechanisms in their order."""
    names = {step: name for name, step in LADDER.items()}
    return names.get(mechanisms) or ", ".join(name for name in MECHANISMS if name in mechanisms)


def engine_with(mechanisms: frozenset[str], first: Engine, costs: CostTable) -> Engine:
    """An engine around the model of `first` that has these mechanisms and no others.

    With state and without prefix reuse, a session keeps its K/V, and shares it with no other session.
    """
    kind = Engine if STATE in mechanisms else PrefixReuseEngine if PREFIX in mechanisms else NaiveEngine
    sources = ((GRAMMAR,) if FORCED in mechanisms else ()) + ((LOG, CORPUS) if LOOKUP in mechanisms else ())
    return kind(
        first.model,
        first.tokenizer,
        eos_ids=first.eos_ids,
        num_pages=640,
        kv_dtype="int8" if INT8 in mechanisms else None,
        prefix_cache=PREFIX in mechanisms,
        speculation=Speculation(costs, sources=sources) if sources else False,
    )


def measure_turns(engines: dict[str, Engine], workload: str, repeat: int, *, same: bool) -> pd.DataFrame:
    """Replay a trace on all engines, turn by turn, in changing order: a row for each turn and configuration.

    Each repeat is a tenant of its own, so it finds nothing of what ran before it in a cache. After the first repeat
    only the steps of the ladder run, without the naive engine, which takes longest. With `same`, raises AssertionError
    if in a turn two configurations generate different tokens, or if the model's own choices agree with them in
    different numbers; where K/V has 8 bits, these choices may be others.
    """
    trace = read_trace(TRACES / f"{workload}-0.jsonl")
    order, rows = np.random.default_rng(repeat), []
    for engine in engines.values():
        engine.open(tenant="warm-up").send("Are you there?", max_new_tokens=4)
    names = [name for name in engines if repeat == 0 or name in list(LADDER)[1:]]
    replays = {name: replay(engines[name], trace, tenant=f"{workload}, {repeat}") for name in names}
    with tqdm(total=trace.header.turns * len(replays), unit="turn", mininterval=1) as bar:
        for number in range(1, trace.header.turns + 1):
            turns = {}
            for name in order.permutation(list(replays)):
                bar.set_description(f"turn {number}, {name}")
                _, turn = next(replays[name])
                turns[name] = turn_row(turn) | {"passes": len(turn.verdicts)}
                bar.update()
            outputs = {(turn["n"], turn["token_ids"]) for turn in turns.values()}
            agreed = {turn["agreed"] for name, turn in turns.items() if INT8 not in name}
            assert len(outputs) == len(agreed) == 1 or not same, f"turn {number} of {workload} differs"
            rows += [{"turn": number, "configuration": name, **turns[name]} for name in replays]
    for iterator in replays.values():
        iterator.close()
    return pd.DataFrame(rows)[list(COLUMNS)]


def seconds_by_turn(turns: pd.DataFrame, column: str = "total_s") -> pd.DataFrame:
    """A row for each repeat and turn, a column for each configuration; what ran in one repeat only, the same in all."""
    wide = turns.pivot(index=["repeat", "turn"], columns="configuration", values=column)
    return wide.fillna(wide.groupby("turn").transform("median"))


def ladder(turns: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration: sums over a conversation, and how many times faster than naive it is.

    Ratios are paired: they compare the same turn. The 95 % intervals show how much they would vary with other turns and
    other repeats.
    """
    counts = [*COUNTS, "passes"]
    wide = seconds_by_turn(turns)
    rows = []
    for name in turns["configuration"].unique():
        mine = turns[turns["configuration"] == name]
        repeats = mine["repeat"].nunique()
        theirs, ours = wide["naive"].to_numpy(), wide[name].to_numpy()
        low, high = bootstrap_interval(lambda at, a=theirs, b=ours: np.median(a[at] / b[at]), len(wide))
        whole = bootstrap_interval(lambda at, a=theirs, b=ours: a[at].sum() / b[at].sum(), len(wide))
        rows.append(
            {
                "configuration": name,
                **(mine[counts].sum() / repeats).astype(int),
                "prefill s": mine["prefill_s"].sum() / repeats,
                "decode s": mine["decode_s"].sum() / repeats,
                "total s": mine["total_s"].sum() / repeats,
                "first turn s": mine[mine["turn"] == 1]["total_s"].median(),
                "first token s": mine[mine["turn"] > 1]["prefill_s"].median(),
                "tokens/s after it": (mine["generated"] - 1).sum() / mine["decode_s"].sum(),
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


def shapley_shares(turns: pd.DataFrame) -> list[dict]:
    """What each mechanism saves of naive's seconds, forwarded tokens and passes, with 95 % intervals."""
    names = {mechanisms: configuration_name(mechanisms) for mechanisms in subsets(MECHANISMS)}
    repeats = turns["repeat"].nunique()
    rows = []
    for unit in ("total_s", "forwarded", "passes"):
        wide = seconds_by_turn(turns, unit)

        def saved(at, wide=wide):
            sums = wide.to_numpy()[at].sum(axis=0) / repeats
            worth = {mechanisms: -sums[wide.columns.get_loc(name)] for mechanisms, name in names.items()}
            return np.array(list(shapley(MECHANISMS, worth).values()))

        means, (low, high) = saved(np.arange(len(wide))), bootstrap_interval(saved, len(wide), resamples=500)
        naive = wide["naive"].sum() / repeats
        rows += [
            {
                "unit": unit,
                "mechanism": name,
                "saved": means[i],
                "from": low[i],
                "to": high[i],
                "share": means[i] / naive,
            }
            for i, name in enumerate(MECHANISMS)
        ]
    return rows


def ablation(
    dtype: str = "bfloat16", workloads: str = "agentic,coding", repeats: str = "1", only: str = ""
) -> pd.DataFrame:
    """Replay the turns of these traces with all combinations of mechanisms; `only=ladder` adds them one by one.

    Writes a figure for each trace beside the table.
    """
    costs, first = CostTable.default(dtype), Engine.from_pretrained(dtype=dtype, num_pages=1)
    chosen = dict.fromkeys([*LADDER.values(), *(subsets(MECHANISMS) if only != "ladder" else ())])
    engines = {configuration_name(mechanisms): engine_with(mechanisms, first, costs) for mechanisms in chosen}

    def measured_in(workload: str) -> pd.DataFrame:
        return measure_repeats(
            f"ablation_{dtype}_{workload}",
            int(repeats),
            lambda repeat: measure_turns(engines, workload, repeat, same=dtype == "float32"),
        )

    measured = {workload: measured_in(workload) for workload in workloads.split(",")}
    tables = {workload: ladder(turns) for workload, turns in measured.items()}
    table = pd.concat(tables, names=["workload"])
    undrafted = pd.concat(turns[turns["configuration"].isin(list(LADDER)[:3])] for turns in measured.values())
    table.attrs = {
        "share_out": {workload: shapley_shares(turns) for workload, turns in measured.items()} if not only else {},
        "fit": asdict(CostFit.of(undrafted)),
        "turns": {workload: turns.round(4).to_dict("list") for workload, turns in measured.items()},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    for workload, turns in measured.items():
        figure = ladder_figure({workload: turns}, {workload: tables[workload]})
        figure.savefig(RESULTS / f"ablation_{workload}_{dtype}.png", dpi=110)
    return table
