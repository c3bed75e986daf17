"""The same agents on two servers: minstate's and vLLM's, with the same weights, and what a user would see of each.

An agent is one of OpenAI's Agents SDK, unchanged. It has two tools, and answers four questions in each conversation by
calls that a grammar constrains (`tool_choice="required"`). It sends its whole history with each request. One agent, or
several at once, are clients of one server; the other servers are idle meanwhile, and the order of the servers changes.
All report how many tokens of each prompt they had kept. Replies differ after near-ties, and so do their lengths.

The chat template tells the model its tools, which the default model's own does not. vLLM runs from an environment of
its own (`CONTRIBUTING.md` says how to make one), with its default, prefix caching.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import agents
import numpy as np
import openai
import pandas as pd
from tqdm import tqdm

from minstate.errors import BadValue
from minstate.lab.bench.peer_process import ENVIRONMENT, ENVIRONMENTS
from minstate.lab.engines.template_styles import QWEN2
from minstate.weights import find_model

MODEL = "the-model"
PATIENCE = 600  # seconds that a server may take to start: vLLM compiles its model
QUESTIONS = (
    "How many teapots are on the shelf? Order some if there are none.",
    "And how many cups?",
    "And kettles?",
    "Is that all?",
)
REQUESTS = 3  # that the agent makes for each question
SHELVES = {"teapot": 7, "kettle": 0, "cup": 31}
Article = Literal["teapot", "kettle", "cup"]


@agents.function_tool
def count(article: Article) -> str:
    """How many pieces of an article are on the shelf."""
    return f"{SHELVES[article]} pieces"


@agents.function_tool
def order(article: Article, pieces: int) -> str:
    """Order more of an article."""
    return f"ordered {pieces}, there are {SHELVES[article]}"


class Watch(agents.RunHooks):
    """A row for each request of the agent: its tokens, as the server reports them, and its seconds."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    async def on_llm_start(self, *_) -> None:
        """Remember when the request was sent."""
        self.started_s = time.perf_counter()

    async def on_llm_end(self, _context, _agent, response) -> None:
        """Note what the answer says of the request."""
        seconds, usage = time.perf_counter() - self.started_s, response.usage
        cached = usage.input_tokens_details.cached_tokens
        self.rows.append({"prompt": usage.input_tokens, "cached": cached, "generated": usage.output_tokens,
                          "seconds": seconds})  # fmt: skip


@contextmanager
def model_for_tools() -> Iterator[Path]:
    """The default model's folder, with a chat template that tells the model its tools, which its own does not."""
    model = find_model()
    with tempfile.TemporaryDirectory(dir=model.parent) as name:
        for file in model.iterdir():
            os.link(file.resolve(), Path(name) / file.name)
        template = Path(name) / "chat_template.jinja"
        template.unlink()
        template.write_text(QWEN2)
        yield Path(name)


def commands(weights: str, dtype: str, ports: dict[str, int]) -> dict[str, list[str]]:
    """How each server is started. Raises `BadValue` if vLLM's environment is not there."""
    vllm = ENVIRONMENTS / "vllm" / "bin" / "python"
    if not vllm.exists():
        raise BadValue(f"there is no {vllm}: CONTRIBUTING.md says how to make environments for other programs")
    same = ["--served-model-name", MODEL, "--dtype", dtype, "--host", "127.0.0.1"]
    calls = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"]
    limits = ["--max-model-len", "8192"]
    ours = [sys.executable, "-m", "minstate.serve", "--model", weights, *same]
    table = {
        "minstate": [*ours, "--no-speculation"],
        "minstate, drafts": ours,
        "vllm": [str(vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", weights, *same, *calls, *limits],
    }
    return {name: [*command, "--port", str(ports[name])] for name, command in table.items()}


@contextmanager
def running(name: str, command: list[str], port: int) -> Iterator[str]:
    """Start a server, and yield its address once it answers. Raises `BadValue` with what it printed if it does not."""
    cores = os.cpu_count()
    environment = os.environ | ENVIRONMENT
    environment |= {"OMP_NUM_THREADS": str(cores), "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for _ in range(PATIENCE):
                if process.poll() is not None or _is_up(port):
                    break
                time.sleep(1)
            if process.poll() is not None or not _is_up(port):
                log.seek(0)
                raise BadValue(f"{name} did not start:\n{log.read()[-2000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _is_up(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


async def conversation(url: str, shop: int, questions: Sequence[str] = QUESTIONS) -> list[dict[str, float]]:
    """The agent answers all questions: a row for each of its requests."""

    def enough(context: Any, results: list) -> agents.ToolsToFinalOutputResult:
        return agents.ToolsToFinalOutputResult(context.usage.requests % REQUESTS == 0, results[-1].output)

    agents.set_tracing_disabled(True)  # otherwise the framework reports its runs to OpenAI
    watch, items = Watch(), []
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
        clerk = agents.Agent(
            "clerk",
            instructions=f"You look after the shelves of shop number {shop}. Use the tools.",
            model=agents.OpenAIChatCompletionsModel(MODEL, client),
            tools=[count, order],
            tool_use_behavior=enough,
            reset_tool_choice=False,
            model_settings=agents.ModelSettings(
                temperature=0, tool_choice="required", parallel_tool_calls=False, max_tokens=60
            ),
        )
        for question in questions:
            result = await agents.Runner.run(clerk, [*items, {"role": "user", "content": question}], hooks=watch)
            items = result.to_input_list()
    return watch.rows


async def crowd(url: str, shops: Sequence[int]) -> list[list[dict[str, float]]]:
    """An agent for each shop, all at once: what `conversation` returns, for each of them."""
    return await asyncio.gather(*(conversation(url, shop) for shop in shops))


def serve_agents(dtype: str = "float32", conversations: int = 3, clients: str = "1,4,16") -> pd.DataFrame:
    """A row for each number of clients and each server: all requests of one conversation of each client.

    One client alone has so many conversations. Each server first answers one that is left out.
    """
    ports = {name: _free_port() for name in ("minstate", "minstate, drafts", "vllm")}
    rows, changing, shop = [], np.random.default_rng(0), 0
    with ExitStack() as stack:
        urls, weights = {}, str(stack.enter_context(model_for_tools()))
        for name, command in (bar := tqdm(commands(weights, dtype, ports).items(), unit="server")):
            bar.set_description(f"starting {name}")
            urls[name] = stack.enter_context(running(name, command, ports[name]))
        counts = [int(count) for count in clients.split(",")]
        rounds = [0, *(count for count in counts for _ in range(int(conversations) if count == 1 else 1))]
        for many in tqdm(rounds, unit="round"):
            shops = range(shop, shop := shop + max(many, 1))
            for name in changing.permutation(list(urls)):
                started_s = time.perf_counter()
                found = asyncio.run(crowd(urls[name], shops))
                known = {"server": str(name), "clients": many, "all_s": time.perf_counter() - started_s}
                for each, requests in zip(shops, found, strict=True):
                    rows += [known | {"shop": each} | request for request in requests]
    raw = pd.DataFrame(rows)
    first = raw.groupby("server")["prompt"].first()
    assert first.max() < 1.1 * first.min(), f"the servers tell the model different things: {first.to_dict()}"
    table = by_server(raw[raw["clients"] > 0])
    table.attrs = {"dtype": dtype, "client": f"openai-agents {agents.version.__version__}", "raw": raw.to_dict("list")}
    return table


def by_server(raw: pd.DataFrame) -> pd.DataFrame:
    """Tokens and seconds of all requests, for each number of clients and each server."""
    counted = raw.assign(computed=raw["prompt"] - raw["cached"])
    groups = counted.groupby(["clients", "server"])
    table = groups[["prompt", "computed", "generated"]].sum()
    table.insert(0, "requests", groups.size())
    all_s = counted.drop_duplicates(["clients", "server", "all_s"]).groupby(["clients", "server"])["all_s"].sum()
    table["requests a minute"] = 60 * table["requests"] / all_s
    table["tokens/s"] = table["generated"] / all_s
    table["p50 s a request"] = groups["seconds"].median()
    table["p95 s a request"] = groups["seconds"].quantile(0.95)
    return table
