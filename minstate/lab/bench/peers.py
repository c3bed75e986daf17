"""minstate beside other engines on the same work: the same weights, input ids, number of output tokens, and threads.

Each configuration is a process of its own, in its engine's own environment (`CONTRIBUTING.md` says how to make one). It
answers `generate(token_ids, count)` with a program from `peers/`. For each turn the configurations run one by one, in
changing order. All of them sample greedily, and continue from their own output. Rounding differs between engines, so
outputs differ after a near-tie; `turns that say the same` is the share of turns in which an engine generates the same
tokens as ours.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from minstate.lab.bench.bootstrap import bootstrap_interval
from minstate.lab.bench.gguf_files import write_gguf
from minstate.lab.engines.stub_model import stub_engine
from minstate.lab.paths import CLONE, TRACES, clone_for, source_text
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.weights import find_model, read_tokenizer

ENVIRONMENTS = Path(os.environ.get("MINSTATE_PEERS", (CLONE or Path.cwd()) / ".peers"))
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
    "llama_cpp, prompt lookup",
    "vllm, prefix caching and ngram",
    "openvino, prefix caching and prompt lookup",
]
WORKLOADS = {"steps": [name for name in REUSING if "reuse" not in name], "agentic": STATELESS + REUSING + SPECULATIVE}
WORKLOADS["coding"] = REUSING + SPECULATIVE
# Threads that spin briefly stay awake between two operations of a step, and free their core between two turns.
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class Peer:
    """One configuration's process. If it ends too early, raises `RuntimeError` with the end of what it printed."""

    def __init__(self, python: Path, spec: dict, log):
        environment = os.environ | ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": f"0-{spec['threads'] - 1}"}
        self.spec, self.log = spec, log
        program = clone_for("the benchmark `peers`") / "peers" / "run_engine.py"
        self.process = subprocess.Popen(
            [python, program, json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip
        self.version = self._answer()["version"]

    def generate(self, token_ids: list[int], count: int) -> dict:
        """`count` new tokens after `token_ids`, and the seconds that they took."""
        print(json.dumps({"token_ids": token_ids, "count": count}), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict:
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.log.seek(0)
        raise RuntimeError(f"{self.spec['engine']} ({self.spec['mode']}) ended:\n{self.log.read()[-2000:]}")


@contextmanager
def running(configurations: list[str], dtype: str, threads: int = 2) -> Iterator[dict[str, Peer]]:
    """Start each configuration whose environment exists. Standard error has a line for each that does not run."""
    folder = find_model()
    with ExitStack() as stack:
        peers = {}
        for name in (bar := tqdm(configurations, unit="engine")):
            bar.set_description(f"starting {name}")
            engine, _, mode = name.partition(", ")
            ours = engine in ("minstate", "transformers")
            python = Path(sys.executable) if ours else ENVIRONMENTS / engine / "bin" / "python"
            if not python.exists():
                tqdm.write(f"absent: {name} (no {python}; CONTRIBUTING.md says how to install it)", file=sys.stderr)
                continue
            spec = {"engine": f"run_{engine}", "mode": mode, "dtype": dtype, "threads": threads, "model": str(folder)}
            if engine in ("llama_cpp", "openvino"):
                spec["gguf"] = str(_gguf(folder, dtype if engine == "llama_cpp" else "float16"))
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            try:
                peers[name] = Peer(python, spec, log)
            except RuntimeError as error:
                tqdm.write(f"failed: {error}", file=sys.stderr)
                continue
            stack.callback(peers[name].close)
        yield peers


def _gguf(folder: Path, kind: str) -> Path:
    path = ENVIRONMENTS / "gguf" / f"{folder.name}-{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(folder, path.with_suffix(".partial"), kind)
        path.with_suffix(".partial").rename(path)
    return path


def conversation(trace: str) -> list[tuple[list[int], int]]:
    """For each turn of a committed trace with one session: the input ids, and how many tokens the output has."""
    engine = stub_engine()
    sessions, turns, before = {}, [], 0
    for record, turn in replay(engine, read_trace(TRACES / f"{trace}-0.jsonl"), sessions=sessions):
        log, generated = sessions[record.session].token_ids, turn.stats.generated
        turns.append((log[before : len(log) - generated], generated))
        before = len(log)
    return turns


def measure_turns(peers: dict[str, Peer], turns: list[tuple[list[int], int]], repeats: int) -> pd.DataFrame:
    """A row for each repeat, turn and configuration. Each repeat begins with other tokens, so that no cache has it."""
    tokenizer, order = read_tokenizer(find_model()), np.random.default_rng(0)
    rows = []
    with tqdm(total=repeats * len(turns) * len(peers), unit="turn") as bar:
        for repeat in range(repeats):
            logs = {name: tokenizer.encode(f"Conversation {repeat} of {repeats}.\n") for name in peers}
            for number, (new, count) in enumerate(turns, 1):
                for name in order.permutation(list(peers)):
                    bar.set_description(f"turn {number}, {name}")
                    logs[name] += new
                    answer = peers[name].generate(logs[name], count)
                    rows.append(
                        {
                            "repeat": repeat,
                            "turn": number,
                            "configuration": str(name),
                            "n": len(logs[name]),
                            "generated": count,
                            "seconds": round(answer["seconds"], 4),
                            "same as ours": answer["token_ids"],
                        }
                    )
                    logs[name] += answer["token_ids"]
                    bar.update()
    table = pd.DataFrame(rows)
    ours = table[table["configuration"] == OURS].set_index(["repeat", "turn"])["same as ours"]
    outputs = zip(table["repeat"], table["turn"], table["same as ours"], strict=True)
    table["same as ours"] = [ids == ours[repeat, turn] for repeat, turn, ids in outputs]
    return table


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
        ratios = (wide[name] / wide[OURS]).to_numpy()
        low, high = bootstrap_interval(lambda at, ratios=ratios: np.median(ratios[at]), len(ratios))
        lines.append({"configuration": name, f"median {value}": wide[name].median(), "ratio to ours": np.median(ratios),
                      "from": low, "to": high})  # fmt: skip
    return pd.DataFrame(lines).sort_values("ratio to ours", ignore_index=True)


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
            rows = measure_turns(started, conversation(workload), int(repeats))
            table = summary(rows, ["repeat", "turn"], "seconds")
            by_name = rows.groupby("configuration")
            table["total s"] = table["configuration"].map(by_name["seconds"].sum() / int(repeats))
            table["turns that say the same"] = table["configuration"].map(by_name["same as ours"].mean())
    table["version"] = table["configuration"].map(versions)
    table.attrs["raw"] = rows.drop(columns="same as ours", errors="ignore").to_dict("list")
    return table.set_index("configuration")


def _cold(part: pd.DataFrame) -> pd.Series:
    return part.dropna(subset="prompt_s").set_index("configuration")["prompt_s"]
