"""Long measurements in repeats: one that was stopped goes on with the repeat that it had not finished."""

import sys
from collections.abc import Callable

import pandas as pd

from minstate.lab.paths import OUT

UNFINISHED = OUT / "unfinished"


def measure_repeats(name: str, repeats: int, measure: Callable[[int], pd.DataFrame]) -> pd.DataFrame:
    """The rows of `measure(0)`, `measure(1)` and so on, with the column `repeat` in front.

    Each repeat is kept in `UNFINISHED` until the benchmark has written its results. So a run that is started again
    measures the others only, and standard error says so.
    """
    UNFINISHED.mkdir(parents=True, exist_ok=True)
    tables = []
    for repeat in range(repeats):
        path = UNFINISHED / f"{name}-{repeat}.json"
        if path.exists():
            print(f"repeat {repeat + 1} of {name} is in {path}", file=sys.stderr)
        else:
            partial = path.with_suffix(".partial")
            measure(repeat).to_json(partial, orient="split", double_precision=15)
            partial.rename(path)
        tables.append(pd.read_json(path, orient="split", precise_float=True))
        tables[-1].insert(0, "repeat", repeat)
    return pd.concat(tables, ignore_index=True)
