"""How long the doctor takes for a large log, and how much memory: 10,000 requests with a hundred million tokens."""

import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from minstate.lab.doctor.examine import examine
from minstate.lab.doctor.synthetic import Client, as_lines, write_log

HABITS = Client(clock=True, shuffles=True)  # nothing is shared, so every request is compared at its beginning
TURNS = 40  # of a session, with two requests each


def doctor(requests: int = 10_000, words: int = 330) -> pd.DataFrame:
    """Write a log of so many requests, and examine it as `python -m minstate.lab.doctor log` does.

    words  of a tool's result. 330 give prompts of 10,000 tokens on average
    """
    sessions = max(1, int(requests) // (2 * TURNS))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with path.open("w") as file:
            file.writelines(as_lines(write_log(HABITS, sessions=sessions, turns=TURNS, words=int(words))))
        started_s, cpu_s = time.perf_counter(), time.process_time()
        found = examine(path, progress=True)
        row = {
            "requests": len(found.requests),
            "sessions": found.sessions,
            "tokens": found.total("tokens"),
            "lost": found.total("lost"),
            "MB of the file": path.stat().st_size / 1e6,
            "seconds": time.perf_counter() - started_s,
            "CPU seconds": time.process_time() - cpu_s,
            "MB of memory at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        }
    return pd.DataFrame([row]).set_index("requests")
