"""minstate beside other engines on the same work: the same weights, input ids, number of output tokens, and threads.

For each turn the configurations run one by one, in changing order. All of them sample greedily, and continue from their
own output. Rounding differs between engines, so outputs differ after a near-tie; `turns that say the same` is the share
of turns in which an engine generates the same tokens as ours. Where the measurement is repeated, configurations that
keep nothing between turns are measured in the first repeat only, because they take longest.
"""

import numpy as np
import pandas as pd
from tqdm import tqdm

from minstate.lab.bench.bootstrap import bootstrap_interval
from minstate.lab.bench.peer_process import Peer, running
from minstate.lab.bench.repeats import measure_repeats
from minstate.lab.engines.stub_model import stub_engine
from minstate.lab.paths import TRACES, source_text
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.weights import find_model, read_tokenizer

OURS = "minstate, stateful"
STATELESS = ["minstate, stateless", "transformers, stateless", "transformers, prompt lookup", "vllm, stateless"]
REUSING = [
    OURS,
    "minstate, prefix reuse",
    "transformers, cache kept",
    "llama_cpp, prefix kept",
    "vllm, prefix caching",
    "openvino, prefix caching",
]
SPECULATIVE = [
    "minstate, stateful and prompt lookup",
    "minstate, stateful, prompt lookup and 8-bit K/V",
    "llama_cpp, prompt lookup",
    "vllm, prefix caching and ngram",
    "openvino, prefix caching and prompt lookup",
]
WORKLOADS = {"steps": [name for name in REUSING if "reuse" not in name], "agentic": STATELESS + REUSING + SPECULATIVE}
WORKLOADS["coding"] = REUSING + SPECULATIVE


def conversation(trace: str) -> list[tuple[list[int], int]]:
    """For each turn of a committed trace with one session: the input ids, and how many tokens the output has."""
    engine = stub_engine()
    sessions, turns, before = {}, [], 0
    for record, turn in replay(engine, read_trace(TRACES / f"{trace}-0.jsonl"), sessions=sessions):
        log, generated = sessions[record.session].token_ids, turn.stats.generated
        turns.append((log[before : len(log) - generated], generated))
        before = len(log)
    return turns


def measure_turns(peers: dict[str, Peer], turns: list[tuple[list[int], int]], repeat: int) -> pd.DataFrame:
    """A row for each turn and configuration. Each repeat begins with other tokens, so that no cache has it."""
    order = np.random.default_rng(repeat)
    log = read_tokenizer(find_model()).encode(f"Conversation {repeat}.\n")
    rows, logs = [], {name: log.copy() for name in peers if repeat == 0 or name not in STATELESS}
    with tqdm(total=len(turns) * len(logs), unit="turn", mininterval=1) as bar:
        for number, (new, count) in enumerate(turns, 1):
            outputs = {}
            for name in order.permutation(list(logs)):
                bar.set_description(f"turn {number}, {name}")
                logs[name] += new
                answer = peers[name].generate(logs[name], count)
                row = {"turn": number, "configuration": str(name), "n": len(logs[name]), "generated": count}
                rows.append(row | {key: round(answer[key], 4) for key in ("seconds", "first_s")})
                outputs[str(name)] = answer["token_ids"]
                logs[name] += answer["token_ids"]
                bar.update()
            for row in rows[-len(logs) :]:
                row["same as ours"] = outputs[row["configuration"]] == outputs[OURS]
    return pd.DataFrame(rows)


def measure_steps(peers: dict[str, Peer], repeats: int, contexts: list[int], tokens: int = 16) -> pd.DataFrame:
    """A row for each context, repeat and configuration: the time of a decode step, and in the first of a cold prompt.

    A step's time is that of `tokens` tokens: the difference between outputs of 1 and of 1 + `tokens` tokens, both after
    a prompt whose K/V is cached.
    """
    ids = read_tokenizer(find_model()).encode(source_text())
    order, rows = np.random.default_rng(0), []
    with tqdm(total=len(contexts) * (repeats + 1) * len(peers), unit="measurement") as bar:
        for context in contexts:
            prompt = ids[context : 2 * context] if 2 * context <= len(ids) else ids[:context]
            cold = {}
            for name in order.permutation(list(peers)):
                bar.set_description(f"{context} tokens, {name}, nothing cached")
                cold[name] = peers[name].generate(prompt, 1)["seconds"]
                bar.update()
            for repeat in range(repeats):
                for name in order.permutation(list(peers)):
                    bar.set_description(f"{context} tokens, {name}")
                    # One more token each time: no prompt is an exact repeat, and all but its last token is cached.
                    longer = prompt + ids[context : context + 2 * repeat + 1]
                    one = peers[name].generate(longer, 1)["seconds"]
                    many = peers[name].generate([*longer, ids[context + 2 * repeat + 1]], 1 + tokens)["seconds"]
                    rows.append(
                        {
                            "context": context,
                            "repeat": repeat,
                            "configuration": str(name),
                            "prompt_s": cold[name] if repeat == 0 else None,
                            "step_ms": 1000 * (many - one) / tokens,
                        }
                    )
                    bar.update()
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, cases: list[str], value: str) -> pd.DataFrame:
    """For each configuration: the median of `value`, and the median of its ratios to ours with the 95 % interval.

    Ratios are between rows with the same `cases`, which were measured close together in time, on the same input.
    """
    wide = rows.pivot_table(index=cases, columns="configuration", values=value, sort=False)
    lines = []
    for name in wide.columns:
        ratios = (wide[name] / wide[OURS]).dropna().to_numpy()
        low, high = bootstrap_interval(lambda at, ratios=ratios: np.median(ratios[at]), len(ratios))
        lines.append({"configuration": name, f"median {value}": wide[name].median(), "ratio to ours": np.median(ratios),
                      "from": low, "to": high})  # fmt: skip
    return pd.DataFrame(lines).sort_values("ratio to ours", ignore_index=True)


def turn_parts(rows: pd.DataFrame) -> pd.DataFrame:
    """For each configuration: seconds of a conversation, of its first turn, and until the first token of later ones.

    What state saves is in the time until the first token, and what drafts save is in the tokens a second after it.
    """
    later = rows[rows["turn"] > 1].groupby("configuration")
    groups = rows.assign(rest_s=rows["seconds"] - rows["first_s"], rest=rows["generated"] - 1).groupby("configuration")
    return pd.DataFrame(
        {
            "total s": groups["seconds"].sum() / groups["repeat"].nunique(),
            "first turn s": rows[rows["turn"] == 1].groupby("configuration")["seconds"].median(),
            "first token s": later["first_s"].median(),
            "tokens/s after it": groups["rest"].sum() / groups["rest_s"].sum(),
            "turns that say the same": groups["same as ours"].mean(),
        }
    )


def peers(
    workload: str = "agentic", dtype: str = "float32", repeats: str = "3", contexts: str = "1024,6144"
) -> pd.DataFrame:
    """minstate beside other engines. `workload` is steps (at these contexts), agentic or coding."""
    with running(WORKLOADS[workload], dtype) as started:
        versions = {name: peer.version for name, peer in started.items()}
        if workload == "steps":
            rows = measure_steps(started, int(repeats), [int(context) for context in contexts.split(",")])
            tables = [
                summary(part, ["repeat"], "step_ms").assign(
                    context=context,
                    **{"prompt tokens/s": lambda t, part=part, n=context: n / t["configuration"].map(_cold(part))},
                )
                for context, part in rows.groupby("context")
            ]
            table = pd.concat(tables, ignore_index=True)
        else:
            turns = conversation(workload)
            name = f"peers_{workload}_{dtype}"
            rows = measure_repeats(name, int(repeats), lambda repeat: measure_turns(started, turns, repeat))
            table = summary(rows, ["repeat", "turn"], "seconds").join(turn_parts(rows), on="configuration")
    table["version"] = table["configuration"].map(versions)
    table.attrs["raw"] = rows.drop(columns="same as ours", errors="ignore").to_dict("list")
    return table.set_index("configuration")


def _cold(part: pd.DataFrame) -> pd.Series:
    return part.dropna(subset="prompt_s").set_index("configuration")["prompt_s"]
