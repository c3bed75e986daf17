"""What speculation is worth: the same turns without drafts, with prompt lookup, and with all sources of guesses."""

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.agent.workload import AgenticWorkload
from minstate.lab.figures.palette import BLUE, GREY, PAPER, SKY, STYLE, new_figure
from minstate.lab.paths import RESULTS, TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.speculation import CORPUS, GRAMMAR, LOG, Speculation, band
from minstate.turn import Turn

OFF, LOOKUP, ALL = "off", "prompt lookup", "prompt lookup, corpus, grammar"
CONFIGURATIONS = {OFF: None, LOOKUP: (LOG,), ALL: (GRAMMAR, LOG, CORPUS)}
BANDS = ("2", "3 to 4", "5 to 8", "9 to 16", "17 or more")  # lengths of matches, by `band`
LOOK = {
    OFF: {"facecolor": GREY},
    LOOKUP: {"facecolor": SKY, "hatch": "//"},
    ALL: {"facecolor": BLUE},
}


def six_turns(engine: Engine) -> Iterator[Turn]:
    """The trace of a tool-calling agent, with replayed output."""
    return (turn for _, turn in replay(engine, read_trace(TRACES / "agentic-0.jsonl")))


def thirty_five_turns(engine: Engine) -> Iterator[Turn]:
    """The trace of a coding agent, with replayed output."""
    return (turn for _, turn in replay(engine, read_trace(TRACES / "coding-0.jsonl")))


def written_calls(engine: Engine) -> Iterator[Turn]:
    """Tool calls that the model writes freely, in a conversation with real results."""
    with (
        AgenticWorkload(seed=0, turns=8) as workload,
        engine.open(workload.opening, workload.tools) as session,
    ):
        for messages in workload:
            yield session.send(messages, tool_choice="required", max_new_tokens=64)


def random_text(engine: Engine) -> Iterator[Turn]:
    """Random tokens as input and output: nothing repeats."""
    draw = np.random.default_rng(0)
    with engine.open() as session:
        for _ in range(4):
            ids = draw.integers(100, 49152, 256 + 48).tolist()
            yield session.send(token_ids=ids[:256], replay=ids[256:])


WORKLOADS = {
    "6 turns replayed": six_turns,
    "35 turns replayed": thirty_five_turns,
    "written calls": written_calls,
    "random text": random_text,
}


def speculation(dtypes: str = "bfloat16,float32", workloads: str = ",".join(WORKLOADS)) -> pd.DataFrame:
    """Each workload on three engines around one model. For each turn the engines run one by one, in changing order.

    Writes the figure beside the table. Raises AssertionError if in float32 they differ in a single token.
    """
    rows = []
    for dtype in dtypes.split(","):
        for name in workloads.split(","):
            rows += measure_turns(dtype, name)
    turns = pd.DataFrame(rows)
    table = summary(turns)
    guesses = pd.DataFrame([guess for row in rows for guess in row["guesses"]])
    table.attrs = {
        "acceptance_by_position": acceptance(guesses, "position"),
        "acceptance_by_match": acceptance(guesses, "match"),
        "acceptance_by_source": acceptance(guesses, "source"),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    decode_times(table.reset_index()).savefig(RESULTS / "speculation.png", dpi=120)
    return table


def measure_turns(dtype: str, workload: str) -> list[dict]:
    """One row for each turn and configuration."""
    costs, first = CostTable.default(dtype), Engine.from_pretrained(dtype=dtype, num_pages=1)
    iterators = {}
    for name, sources in CONFIGURATIONS.items():
        settings = Speculation(costs, sources=sources) if sources else False
        engine = Engine(first.model, first.tokenizer, eos_ids=first.eos_ids, num_pages=640, speculation=settings)
        with engine.open() as session:  # warm up
            session.send("Are you there?", max_new_tokens=2)
        iterators[name] = WORKLOADS[workload](engine)
    rows, order, number = [], np.random.default_rng(0), 0
    with tqdm(desc=f"{dtype}, {workload}", unit="turn") as bar:
        while True:
            turns = {}
            for name in order.permutation(list(iterators)):
                turns[name] = next(iterators[name], None)
                bar.update()
            if None in turns.values():
                return rows
            number += 1
            if dtype == "float32":
                assert len({turn.token_ids for turn in turns.values()}) == 1, f"turn {number} of {workload} differs"
                assert len({turn.stats.agreed for turn in turns.values()}) == 1
            rows += [
                {"dtype": dtype, "workload": workload, "turn": number, "configuration": name, **_row(turn, costs)}
                for name, turn in ((name, turns[name]) for name in CONFIGURATIONS)
            ]


def _row(turn: Turn, costs: CostTable) -> dict:
    """Counts and times of a turn. `modelled_s` prices its forward passes, without the first, which ends the prompt."""
    context, modelled_ms = turn.stats.context + turn.stats.delta, 0.0
    guesses = []
    for number, verdict in enumerate(turn.verdicts):
        if number:
            modelled_ms += costs.at(context + 1)(1 + len(verdict.draft))
        context += len(verdict.sampled)
        guesses += [
            {"position": i + 1, "match": _band(guess.match), "source": guess.source, "hit": i < verdict.accepted}
            for i, guess in enumerate(verdict.draft[: verdict.accepted + 1])
        ]
    decoded = turn.stats.generated - len(turn.verdicts[0].sampled)
    return {
        "generated": turn.stats.generated,
        "passes": len(turn.verdicts),
        "drafted": turn.stats.drafted,
        "accepted": turn.stats.accepted,
        "forced": turn.stats.forced,
        "decoded": decoded,
        "decode_s": turn.stats.decode_s,
        "modelled_s": modelled_ms / 1000,
        "output": turn.token_ids,
        "guesses": guesses,
    }


def _band(match: int) -> str:
    return BANDS[band(match)] if match else "none: forced"


def summary(turns: pd.DataFrame) -> pd.DataFrame:
    """A row for each dtype, workload and configuration. A turn's first configuration is the one without drafts."""
    case, counts = ["dtype", "workload"], ["generated", "passes", "drafted", "accepted", "forced"]
    turns = turns.assign(s_per_token=turns["decode_s"] / turns["generated"])
    first = turns.groupby([*case, "turn"])
    turns["ratio"] = first["s_per_token"].transform("first") / turns["s_per_token"]
    turns["same"] = first["output"].transform("first") == turns["output"]
    groups = turns.groupby([*case, "configuration"], sort=False)
    table = groups[[*counts, "decode_s", "modelled_s"]].sum()
    table["tokens a pass"] = table["generated"] / table["passes"]
    table["decode ms a token"] = 1000 * table["decode_s"] / table["generated"]
    for clock, name in [("decode_s", "times faster"), ("modelled_s", "times faster, modelled")]:
        s_per_token = table[clock] / table["generated"]
        table[name] = s_per_token.groupby(case, sort=False).transform("first") / s_per_token
    table["times faster, median turn"] = groups["ratio"].median()
    table["turns with the same output"] = groups["same"].mean()
    return table


def acceptance(guesses: pd.DataFrame, by: str) -> list[dict]:
    """The share of guesses that were right, among those before which all others in their draft were right."""
    groups = guesses.groupby(by, sort=True)["hit"].agg(["mean", "size"]).round(3)
    return groups.rename(columns={"mean": "accepted", "size": "guesses"}).reset_index().to_dict("records")


def decode_times(table: pd.DataFrame) -> Figure:
    """Milliseconds of decoding a token in each workload, with and without drafts."""
    dtypes, workloads = list(table["dtype"].unique()), list(table["workload"].unique())
    figure, axes = new_figure(len(dtypes), width=11, height=3.6, sharey=True)
    with mpl.rc_context(STYLE):
        for axis, dtype in zip(axes, dtypes, strict=True):
            for place, name in enumerate(CONFIGURATIONS):
                mine = table[(table["dtype"] == dtype) & (table["configuration"] == name)].set_index("workload")
                at = [i + (place - 1) * 0.28 for i in range(len(workloads))]
                heights = mine.loc[workloads, "decode ms a token"]
                bars = axis.bar(at, heights, 0.26, label=name, edgecolor=PAPER, **LOOK[name])
                axis.bar_label(bars, [f"{x:.1f}" for x in mine.loc[workloads, "tokens a pass"]], fontsize=8, padding=1)
            axis.set_xticks(range(len(workloads)), [name.replace(" turns ", " turns\n") for name in workloads])
            axis.set_title(dtype)
        axes[0].set_ylabel("decoding, ms a token")
        handles, names = axes[0].get_legend_handles_labels()
        title = "drafts (numbers on the bars: tokens a forward pass)"
        figure.legend(handles, names, title=title, loc="outside lower center", ncols=3)
    return figure
