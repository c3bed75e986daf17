"""What a forward pass costs, by its query tokens and by the K/V that it reads: a table, measured once and frozen.

Whoever decides how much to draft asks the table and no clock. So the same requests give the same batches, and what a
decision costs can be stated and tested.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Self

from minstate.errors import BadValue


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of a forward pass by its query tokens and the tokens of K/V that it reads, measured once and frozen.

    Interpolated linearly between the points, and beyond the last. More tokens or more context never cost less.
    """

    tokens: tuple[int, ...]  # rising, from 1
    contexts: tuple[int, ...]  # rising
    ms: tuple[tuple[float, ...], ...]  # a row for each context, a column for each number of tokens
    machine: str = ""

    def __post_init__(self) -> None:
        shape = {len(row) for row in self.ms} == {len(self.tokens)} and len(self.ms) == len(self.contexts)
        if not shape or min(len(self.tokens), len(self.contexts)) < 2 or self.tokens[0] != 1:
            raise BadValue("a cost table needs two or more contexts and numbers of tokens, from 1 up, and a cost each")
        points = all(a < b for line in (self.tokens, self.contexts) for a, b in pairwise(line))
        costs = all(a <= b for line in (*self.ms, *zip(*self.ms, strict=True)) for a, b in pairwise(line))
        if not (points and costs and self.ms[0][0] > 0 and self.ms[-1][-1] < math.inf):
            raise BadValue("in a cost table tokens and contexts rise, costs do not fall, and none is 0 or infinite")

    def at(self, context: int) -> Callable[[int], float]:
        """Milliseconds as a function of the query tokens, at this context."""
        columns = [_interpolate(self.contexts, column, context) for column in zip(*self.ms, strict=True)]
        row = list(accumulate(columns, max))  # beyond the last context, each column on its own slope, they may cross
        return lambda tokens: _interpolate(self.tokens, row, tokens)

    def save(self, path: str | Path, name: str) -> None:
        """Put the table into a file, beside those of other names."""
        path = Path(path)
        known = json.loads(path.read_text()) if path.exists() else {}
        known[name] = {"machine": self.machine, "tokens": self.tokens, "contexts": self.contexts, "ms": self.ms}
        path.write_text(json.dumps(known, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, name: str) -> Self:
        """The table of that name from a file. Raises OSError, `BadValue`."""
        return cls._of(json.loads(Path(path).read_text()), name)

    @classmethod
    @cache
    def default(cls, dtype: str) -> Self:
        """As measured with the default model on two CPU cores; `python -m minstate.lab.calibrate` measures yours."""
        return cls._of(json.loads((resources.files("minstate") / "costs.json").read_text()), dtype)

    @classmethod
    def _of(cls, tables: dict, name: str) -> Self:
        if name not in tables:
            raise BadValue(f"no cost table for {name}, only for {', '.join(tables)}")
        table = tables[name]
        rows = tuple(tuple(row) for row in table["ms"])
        return cls(tuple(table["tokens"]), tuple(table["contexts"]), rows, table.get("machine", ""))


def _interpolate(points: Sequence[int], values: Sequence[float], x: float) -> float:
    right = min(max(bisect_right(points, x), 1), len(points) - 1)
    x0, x1, y0, y1 = points[right - 1], points[right], values[right - 1], values[right]
    return y0 + (y1 - y0) * (max(x, points[0]) - x0) / (x1 - x0)
