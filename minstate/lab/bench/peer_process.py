"""Other engines, each in a process of its own, in its own environment (`CONTRIBUTING.md` says how to make one).

A process answers `generate(token_ids, count)` with a program from `peers/`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from minstate.lab.bench.gguf_files import write_gguf
from minstate.lab.paths import CLONE, clone_for
from minstate.weights import find_model

ENVIRONMENTS = Path(os.environ.get("MINSTATE_PEERS", (CLONE or Path.cwd()) / ".peers"))
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
        with suppress(subprocess.TimeoutExpired):  # it may still be writing why, or threads may keep it from ending
            self.process.wait(timeout=10)
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
