"""Run all that exists for a GPU, in under nine minutes: `make gpu`, or `python -m minstate.lab.bench.on_gpu`.

Each step is a process of its own with a time limit of its own, so one that hangs or crashes does not take the rest.
Tests come first, because the times of a wrong kernel are worth nothing. Everything lands in `out/gpu/`: `log.txt` has
all that the steps print, `summary.txt` what became of each step, and the tables are the JSON files of the benchmarks.

Exits with 0 if no step failed, 1 if one did, and 2 if there is no GPU that torch can use.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from minstate.lab.measure import machine
from minstate.lab.paths import OUT, clone_for

MOST_SECONDS = 520  # of all steps together
PYTEST = (sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider")
SMALLEST = "seven_empty_splits or without_queries or their_own_weights or many_forks or gate_of_the_mlp"
# compute-sanitizer knows the bounds of what the driver allocated. So each tensor has to be an allocation of its own.
WATCHED = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool=memcheck", "--error-exitcode=9")


@dataclass(frozen=True)
class Step:
    """A command, the seconds after which it is killed, and why it cannot run on this machine, if it cannot."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step: "passed", "failed", "timed out" or "skipped"; for how long it ran; why it did not pass."""

    step: Step
    verdict: str
    seconds: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:9}  {self.seconds:4.0f} s  {self.step.name}"
        return f"{line}: {self.reason}" if self.reason else line


def steps(clone: Path, out: Path, memory_gb: float) -> list[Step]:
    """All steps on a GPU with `memory_gb` of memory, the most important first."""
    kernels = [str(path) for path in sorted((clone / "tests" / "kernels").glob("meaning_*.py"))]
    attention, others = (
        str(clone / "tests" / "kernels" / f"meaning_of_{name}.py") for name in ("attention", "the_others")
    )
    no_checker = (
        "" if shutil.which("compute-sanitizer") else "compute-sanitizer, of the CUDA toolkit, is not on the PATH"
    )
    too_small = "" if memory_gb > 40 else f"weights and K/V need 40 GB, and this GPU has {memory_gb:.0f} GB"

    def bench(*arguments: str) -> tuple[str, ...]:
        return sys.executable, "-m", "minstate.lab.bench", *arguments, "--out", str(out)

    return [
        Step("native tests of the kernels", (*PYTEST, "-n", "4", *kernels), 150),
        Step("native tests of the engine", (*PYTEST, str(clone / "tests" / "test_gpu.py")), 50),
        Step("memory checker", (*WATCHED, *PYTEST, "-k", SMALLEST, attention, others), 60, no_checker),
        Step("kernels", bench("kernels", "flex=no", "seconds=60"), 90),
        Step("whole model", bench("gpu", "workload=decode"), 50),
        Step("traces", bench("gpu", "workload=traces"), 80),
        Step("8B, random weights", bench("gpu", "workload=8B"), 40, too_small),
    ]


def run_steps(todo: Iterable[Step], log: TextIO, folder: Path) -> Iterator[Outcome]:
    """Run one step after the other in `folder`. A step that fails or hangs is an outcome like any other."""
    for step in todo:
        print(f"\n== {step.name}: {shlex.join(step.command)}", file=log, flush=True)
        outcome = Outcome(step, "skipped", reason=step.missing) if step.missing else _run(step, log, folder)
        print(f"== {outcome}", file=log, flush=True)
        yield outcome


def _run(step: Step, log: TextIO, folder: Path) -> Outcome:
    start = time.monotonic()
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}  # what a killed process has printed is then in the log
    try:
        process = subprocess.Popen(
            step.command, cwd=folder, env=unbuffered, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Outcome(step, "failed", reason=str(error))
    try:
        status = process.wait(step.limit_s)
    except subprocess.TimeoutExpired:
        return Outcome(step, "timed out", time.monotonic() - start, f"killed after its limit of {step.limit_s:g} s")
    finally:
        _kill_group(process)
    seconds = time.monotonic() - start
    return Outcome(step, "failed", seconds, f"exit status {status}") if status else Outcome(step, "passed", seconds)


def _kill_group(process: subprocess.Popen) -> None:
    """End a process and all that it has started, which share a session."""
    with suppress(ProcessLookupError):  # raised if all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summary(outcomes: list[Outcome]) -> str:
    """A line for each step, and how many came out how."""
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return "\n".join([*map(str, outcomes), counts])


def main() -> int:
    """Run all steps and return the exit status."""
    if not torch.cuda.is_available():
        print("error: there is no GPU that torch can use, so nothing was run", file=sys.stderr)
        return 2
    clone, out = clone_for("lab.bench.on_gpu"), OUT / "gpu"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    gpu = torch.cuda.get_device_properties("cuda")
    about = f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB; {machine()}"
    print(f"{about}\nThe log: {out / 'log.txt'}", flush=True)
    outcomes = []
    with (out / "log.txt").open("w") as log:
        print(about, file=log, flush=True)
        for outcome in run_steps(steps(clone, out, gpu.total_memory / 1e9), log, clone):
            outcomes.append(outcome)
            print(outcome, flush=True)
            (out / "summary.txt").write_text(f"{about}\n{summary(outcomes)}\n")
    print(f"{summary(outcomes).splitlines()[-1]}: {out}")
    return int(any(outcome.verdict in ("failed", "timed out") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
