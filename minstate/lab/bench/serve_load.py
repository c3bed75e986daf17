"""The server under load, as GuideLLM (https://github.com/vllm-project/guidellm) sees it, which knows only the API.

Each client holds conversations one after the other. A conversation's turns follow on each other at once; each has a new
message, and a reply of a fixed length. No two conversations share anything. The client goes on either by sending its
whole history (`chat`), or by `previous_response_id` (`responses`).

GuideLLM runs from an environment of its own (`CONTRIBUTING.md` says how to make one). It reports requests and tokens a
second, and times as a client sees them. What was computed is read off the server's counters.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from tqdm import tqdm

from minstate.errors import BadValue
from minstate.lab.bench.peer_process import ENVIRONMENTS
from minstate.weights import find_model

CLIENTS = (1, 4, 16)
THREADS = max(1, (os.cpu_count() or 1) - 1)  # of the server: GuideLLM keeps a core busy
TURNS = 4  # of a conversation
FIRST, NEXT, REPLY = 512, 128, 32  # tokens of the first message, of each further one, and of each reply
APIS = {"chat": "/v1/chat/completions", "responses": "/v1/responses"}
COUNTERS = {"prompt": "vllm:prompt_tokens_total", "prefilled": "minstate:prefilled_tokens_total"}


@contextmanager
def server(dtype: str) -> Iterator[str]:
    """A server with the default model on a free port. Yields its address."""
    command = [sys.executable, "-m", "minstate.serve", "--port", "0", "--dtype", dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
    environment.pop("GOMP_SPINCOUNT", None)  # threads that spin lose much where they share a core
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        found = re.match(r"ready: (http://\S+)/v1 ", process.stdout.readline())
        if not found:
            raise BadValue("the server did not start")
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


def scenario(address: str, api: str, clients: int, seed: int, report: Path) -> dict[str, Any]:
    """What GuideLLM is told. `seed` decides the texts."""
    backend = {"kind": "openai_http", "target": address, "request_format": APIS[api]}
    text = {"first_prompt_tokens": FIRST, "prompt_tokens": NEXT, "output_tokens": REPLY, "turns": TURNS}
    return {
        "metadata": {"name": "load"},
        "spec": {
            "backend": {**backend, "server_history": api == "responses"},
            "profile": {"kind": "concurrent", "streams": [clients]},
            "tokenizer": {"kind": "huggingface_auto", "model": str(find_model())},
            "data": [{"kind": "synthetic_text", **text}],
            "constraints": [{"kind": "max_requests", "count": TURNS * max(3, clients)}],
            "seed": {"kind": "static", "value": seed},
            "outputs": [{"kind": "json", "path": str(report)}],
        },
        "benchmarks": [{}],
    }


def counters(address: str) -> dict[str, float]:
    """The server's counters of prompt tokens, and of those that it had to compute."""
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        values = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    return {name: float(values[metric]) for name, metric in COUNTERS.items()}


def measure(guidellm: Path, address: str, api: str, clients: int) -> dict[str, Any]:
    """One run of GuideLLM: a row of the table. Raises `BadValue` if it fails, or if a request does."""
    before = counters(address)
    with TemporaryDirectory() as folder:
        report, config = Path(folder) / "report.json", Path(folder) / "scenario.json"
        config.write_text(json.dumps(scenario(address, api, clients, 100 + clients, report)))
        command = [guidellm, "run", "--config", config, "--disable-console"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
        if done.returncode or not report.exists():
            raise BadValue(f"guidellm failed: {(done.stdout + done.stderr)[-2000:]}")
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    metrics, used = benchmark["metrics"], {key: value - before[key] for key, value in counters(address).items()}
    requests = metrics["request_totals"]
    if requests["errored"] or requests["incomplete"]:
        raise BadValue(f"of the requests {requests['errored']} failed, and {requests['incomplete']} did not end")

    def seen(name: str, what: str) -> float:
        found = metrics[name]["successful"]
        return found["percentiles"][what] if what.startswith("p") else found[what]

    return {
        "api": api,
        "clients": clients,
        "requests": requests["successful"],
        "requests/s": seen("requests_per_second", "mean"),
        "output tokens/s": seen("output_tokens_per_second", "mean"),
        "first token, ms": seen("time_to_first_token_ms", "median"),
        "first token p95, ms": seen("time_to_first_token_ms", "p95"),
        "between tokens, ms": seen("inter_token_latency_ms", "median"),
        "request, s": seen("request_latency", "median"),
        "prompt tokens": int(used["prompt"]),
        "prefilled": int(used["prefilled"]),
    }


def serve_load(dtype: str = "float32") -> pd.DataFrame:
    """A row for each API and number of clients. Raises `BadValue` if GuideLLM is not there."""
    guidellm = ENVIRONMENTS / "guidellm" / "bin" / "guidellm"
    if not guidellm.exists():
        raise BadValue(f"there is no {guidellm}: CONTRIBUTING.md says how to make environments for other programs")
    rows = []
    with tqdm(total=len(APIS) * len(CLIENTS), unit="run") as bar:
        for api in APIS:
            with server(dtype) as address:
                for clients in CLIENTS:
                    bar.set_description(f"{api}, {clients} clients")
                    rows.append(measure(guidellm, address, api, clients))
                    bar.write(str(rows[-1]))  # a run takes a minute, and the next one may fail
                    bar.update()
    table = pd.DataFrame(rows).set_index(["api", "clients"])
    version = subprocess.run([guidellm, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    lengths = {"turns": TURNS, "first message": FIRST, "further message": NEXT, "reply": REPLY}
    table.attrs = {"client": version, "dtype": dtype, "server threads": THREADS, "workload": lengths}
    return table
