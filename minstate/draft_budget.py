"""How much to draft: what guessed tokens are worth, what forwarding them costs, and what a session may lose on them.

A forward pass over one sequence takes the time that a table says, by its query tokens and by the K/V that it reads. The
table is measured once and frozen, so that drafting reads no clock: the same requests give the same batches, and what a
decision costs can be stated and tested.

    CostTable   milliseconds of a forward pass
    allot       which guessed tokens are worth their price, over all sequences of a batch
    Ledger      what drafts have cost a session and saved it; a draft that the ledger cannot afford is not forwarded

A guess that is not worth its price is not forwarded, but is still compared with the token that the model then chooses.
So the estimate of how often guesses are right follows the text at no cost, and drafting resumes where it pays.
"""

import json
import math
from bisect import bisect_right
from collections import abc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path
from typing import NamedTuple, Self

from minstate.errors import BadValue, BrokenInvariant

REGRET = 0.03  # modelled cost that speculation may add at most, as a share of the cost without it


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of a forward pass by its query tokens and the tokens of K/V that it reads.

    Interpolated linearly between the points, and beyond the last. More tokens or more context never cost less.
    """

    tokens: tuple[int, ...]  # rising, from 1
    contexts: tuple[int, ...]  # rising
    ms: tuple[tuple[float, ...], ...]  # a row for each context, a column for each number of tokens
    machine: str = ""
    host_bytes_per_s: float = 2e9  # at which pages of K/V come back into the pool
    disk_bytes_per_s: float = 5e8

    def __post_init__(self) -> None:
        shape = {len(row) for row in self.ms} == {len(self.tokens)} and len(self.ms) == len(self.contexts)
        if not shape or min(len(self.tokens), len(self.contexts)) < 2 or self.tokens[0] != 1:
            raise BadValue("a cost table needs two or more contexts and numbers of tokens, from 1 up, and a cost each")
        points = all(a < b for line in (self.tokens, self.contexts) for a, b in pairwise(line))
        costs = all(a <= b for line in (*self.ms, *zip(*self.ms, strict=True)) for a, b in pairwise(line))
        if not (points and costs and self.ms[0][0] > 0 and self.ms[-1][-1] < math.inf):
            raise BadValue("in a cost table tokens and contexts must rise, and costs must not fall, be 0 or infinite")

    def at(self, context: int) -> Callable[[int], float]:
        """Milliseconds as a function of the query tokens, at this context."""
        columns = [_interpolate(self.contexts, column, context) for column in zip(*self.ms, strict=True)]
        row = list(accumulate(columns, max))  # beyond the last context, each column on its own slope, they may cross
        return lambda tokens: _interpolate(self.tokens, row, tokens)

    def save(self, path: str | Path, name: str) -> None:
        """Write the table into a file, beside tables of other names."""
        path = Path(path)
        known = json.loads(path.read_text()) if path.exists() else {}
        known[name] = asdict(self)
        path.write_text(json.dumps(known, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, name: str) -> Self:
        """The table called `name` in a file. Raises OSError, `BadValue`."""
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
        return cls(**table | {"tokens": tuple(table["tokens"]), "contexts": tuple(table["contexts"]), "ms": rows})


@dataclass
class Ledger:
    """What one session's drafts have cost and saved, in modelled milliseconds.

    It allows no draft that could bring the cost above 1 + `REGRET` times the cost without speculation, on any text
    whatsoever. (What an accepted token saves is known exactly where a sequence runs alone. In a batch, whose forward
    passes go on for the others, it is the sequence's share of a pass.)
    """

    base_ms: float = 0.0  # what its forward passes would have cost without drafts
    regret_ms: float = 0.0  # what drafts cost, less the forward passes that they saved

    def can_pay(self, extra_ms: float) -> bool:
        """Whether the ledger stays within `REGRET` even if no token of a draft of this price is accepted."""
        return self.regret_ms + extra_ms <= REGRET * self.base_ms

    def check(self) -> None:
        """Raises `BrokenInvariant` if the ledger is overdrawn."""
        if self.regret_ms > REGRET * self.base_ms + 1e-6:
            raise BrokenInvariant(f"speculation has lost {self.regret_ms} ms on {self.base_ms} ms of work")


class Share(NamedTuple):
    """One sequence's part in a forward pass."""

    context: int  # tokens that have K/V
    tokens: int  # query tokens without a draft
    producing: bool  # whether a token will be sampled for it: its log ends with these query tokens
    ledger: Ledger
    chances: abc.Sequence[float]  # of each guessed token, that the model chooses it if it chooses those before it


class Allotment(NamedTuple):
    """How much is drafted in a forward pass, and what it is expected to cost, in ms."""

    counts: list[int]  # for each share, how many of the guessed tokens are forwarded
    prices: list[float]  # for each share, what they add to the forward pass
    base_ms: float  # the forward pass without them
    token_ms: float  # what an accepted token saves

    def without_drafts(self) -> "Allotment":
        """The same forward pass where there is no room for drafts."""
        return self._replace(counts=[0] * len(self.counts), prices=[0.0] * len(self.prices))

    def charge(self, shares: abc.Sequence[Share], sampled: abc.Sequence[int]) -> None:
        """After the forward pass, in which each share has `sampled` so many tokens: enter costs and savings.

        Each token but the first has saved a forward pass; the first would have been sampled without a draft.
        """
        total = sum(share.tokens for share in shares)
        for share, price, count in zip(shares, self.prices, sampled, strict=True):
            share.ledger.base_ms += self.base_ms * share.tokens / total
            share.ledger.regret_ms += price - max(0, count - 1) * self.token_ms


def allot(shares: abc.Sequence[Share], costs: CostTable, room: int, max_sequences: int | None = None) -> Allotment:
    """Which guessed tokens to forward: those that give the most expected tokens per cost, `room` at most.

    A token of a draft is accepted only if all before it are, so its worth is the product of their chances. Taken in
    falling order of worth, whatever sequence they belong to, the first m tokens are the best m. So it is enough to try
    every m, and to keep the one with the best rate:

        rate(m) = (producing sequences + worth of m tokens) / (ms of the producing tokens alone + ms that m tokens add)

    A prefill in the same forward pass makes drafted tokens dearer, as they share the machine with it, but not more
    valuable. As more sequences produce, the first term grows, and with it the worth that a token needs: so concurrency
    ends drafting. `max_sequences` ends it by hand where more sequences than this produce tokens.

    The table was measured with one sequence, and a forward pass is priced as one sequence with the contexts of all.
    For many long contexts that is too dear, so in a large batch too little is drafted rather than too much.
    """
    cost = costs.at(sum(share.context + share.tokens for share in shares))
    total, producing = sum(share.tokens for share in shares), sum(share.producing for share in shares)
    base_ms, alone_ms = cost(total), cost(max(producing, 1))
    nothing = Allotment([0] * len(shares), [0.0] * len(shares), base_ms, alone_ms / max(producing, 1))
    if max_sequences is not None and producing > max_sequences:
        return nothing
    best, best_rate = nothing, producing / alone_ms
    counts, prices, sure_ms, stopped = list(nothing.counts), list(nothing.prices), [0.0] * len(shares), set()
    taken, total_worth, ms = 0, 0.0, base_ms
    for worth, owner in _by_worth(shares):
        if taken == room:
            break
        more_ms = cost(total + taken + 1)
        price = prices[owner] + more_ms - ms
        if worth == 1:  # what is certain to be saved is not at risk
            sure_ms[owner] += nothing.token_ms
        if owner in stopped or not shares[owner].ledger.can_pay(price - sure_ms[owner]):
            stopped.add(owner)  # nor may it have any token behind this one
            continue
        counts[owner] += 1
        prices[owner] = price
        taken, total_worth, ms = taken + 1, total_worth + worth, more_ms
        rate = (producing + total_worth) / (alone_ms + ms - base_ms)
        if rate > best_rate:
            best, best_rate = nothing._replace(counts=list(counts), prices=list(prices)), rate
    return best


def _by_worth(shares: abc.Sequence[Share]) -> list[tuple[float, int]]:
    """Each guessed token as (worth, index of its share): the worthiest first, of equal ones the earlier in a draft."""
    guesses = [
        (worth, place, owner)
        for owner, share in enumerate(shares)
        for place, worth in enumerate(accumulate(share.chances, mul))
    ]
    guesses.sort(key=lambda guess: (-guess[0], guess[1], guess[2]))
    return [(worth, owner) for worth, _, owner in guesses]


def _interpolate(points: abc.Sequence[int], values: abc.Sequence[float], x: float) -> float:
    right = min(max(bisect_right(points, x), 1), len(points) - 1)
    x0, x1, y0, y1 = points[right - 1], points[right], values[right - 1], values[right]
    return y0 + (y1 - y0) * (max(x, points[0]) - x0) / (x1 - x0)
