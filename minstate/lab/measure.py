"""Run the same conversation on several engines, turn by turn, and compare what each turn cost."""

import os
import platform
from contextlib import ExitStack
from dataclasses import asdict

import pandas as pd
import torch
from tqdm import tqdm

from minstate.engine import Engine
from minstate.lab.agent.workload import AgenticWorkload
from minstate.sampling import Sampling
from minstate.turn import Turn

DERIVED = ("prefilled", "recomputed", "shared", "prefill_s", "decode_s")


def run_side_by_side(
    engines: dict[str, Engine],
    workload: AgenticWorkload,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    repeats: int = 1,
) -> pd.DataFrame:
    """One row per repeat, turn and engine: all of `TurnStats`, the prompt's length `n`, the text and the token ids.

    Each engine's tools run in a workspace of their own. The engines alternate turn by turn, in changing order, so a
    slow moment of the machine affects all of them. Each engine first runs one short turn, unmeasured, to warm up.
    Each repeat is a tenant of its own, so the prefix cache holds nothing of an earlier repeat.
    """
    for engine in engines.values():
        with engine.open(tenant="warm-up") as session:
            session.send("Are you there?", max_new_tokens=2)
    rows = []
    with tqdm(total=repeats * workload.turns * len(engines), unit="turn", mininterval=1) as bar:
        for repeat in range(repeats):
            with ExitStack() as stack:
                opened = {
                    name: engine.open(messages=workload.opening, tools=workload.tools, tenant=f"repeat {repeat}")
                    for name, engine in engines.items()
                }
                sessions = {name: stack.enter_context(session) for name, session in opened.items()}
                agents = {name: iter(workload) for name in engines}
                for number in range(1, workload.turns + 1):
                    for name in engines if (number + repeat) % 2 else reversed(engines):
                        bar.set_description(f"turn {number}, {name}")
                        turn = sessions[name].send(next(agents[name]), max_new_tokens=max_new_tokens, sampling=sampling)
                        rows.append({"repeat": repeat, "turn": number, "engine": name, **turn_row(turn)})
                        bar.update()
    return pd.DataFrame(rows)


def turn_row(turn: Turn) -> dict:
    """A turn as one row of a table: its statistics, text and token ids by column."""
    stats = turn.stats
    derived = {name: getattr(stats, name) for name in DERIVED}
    answer = {"finish_reason": turn.finish_reason, "text": turn.text, "token_ids": turn.token_ids}
    return {"n": stats.context + stats.delta, **asdict(stats), **derived, **answer}


def per_turn(rows: pd.DataFrame, baseline: str, ours: str) -> pd.DataFrame:
    """One row per turn: tokens, and the median milliseconds over the repeats, for two of the engines."""
    median = rows.groupby(["engine", "turn"])[["n", "delta", "forwarded", "reused", "total_s"]].median()
    theirs, mine = median.loc[baseline], median.loc[ours]
    return pd.DataFrame(
        {
            "n": mine["n"].astype(int),
            "Δ": mine["delta"].astype(int),
            f"forwarded, {baseline}": theirs["forwarded"].astype(int),
            f"forwarded, {ours}": mine["forwarded"].astype(int),
            "reused share": mine["reused"] / mine["n"],
            f"ms, {baseline}": 1000 * theirs["total_s"],
            f"ms, {ours}": 1000 * mine["total_s"],
            "ratio": theirs["total_s"] / mine["total_s"],
        }
    )


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `per_turn` as rounded text."""
    forms = {"reused share": "{:.0%}", "ratio": "{:.1f} ×"}
    return pd.DataFrame({name: table[name].map(forms.get(name, "{:,.0f}").format) for name in table})


def machine() -> str:
    """This machine in one line, for the caption of a measurement."""
    waiting = f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    if spin := os.environ.get("GOMP_SPINCOUNT"):  # overrides the policy
        waiting = f"GOMP_SPINCOUNT={spin}"
    threads = torch.get_num_threads()
    return (
        f"{threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} {platform.machine()} cores "
        f"({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}, {waiting}"
    )
