"""What prompts cost: money by a price list, or seconds on a machine.

    cost(tokens, cached)                      of one request
    cost(tokens, old) - cost(tokens, old + lost)    what the lost tokens of a request cost

So a lost token costs the difference between a new one and one that is read from the cache.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from minstate.draft_budget import CostTable
from minstate.errors import BadValue
from minstate.lab.doctor.findings import Examined


class Pricing(Protocol):
    """Anything that can say what a prompt costs."""

    def cost(self, tokens: int, cached: int, model: str = "") -> float:
        """What a prompt of `tokens` costs if the first `cached` of them need not be computed."""
        ...

    def shown(self, cost: float) -> str:
        """A cost with its unit."""
        ...


@dataclass(frozen=True)
class Price:
    """Money for a million tokens of a prompt: for new ones, and for those that are read from the cache."""

    prompt: float
    cached: float = 0.0
    unit: str = "$"

    def cost(self, tokens: int, cached: int, model: str = "") -> float:  # noqa: ARG002  the same for all models
        """Money for one prompt."""
        return ((tokens - cached) * self.prompt + cached * self.cached) / 1e6

    def shown(self, cost: float) -> str:
        """Such as `$0.42`."""
        return f"{self.unit}{cost:,.2f}" if cost >= 0.01 or not cost else f"{self.unit}{cost:,.6f}"


@dataclass(frozen=True)
class PriceList:
    """A price for each model; the longest name that a request's model begins with counts. Others cost nothing."""

    prices: Mapping[str, Price]
    unit: str = "$"

    @classmethod
    def load(cls, path: str | Path) -> "PriceList":
        """Read `{"model": {"input": 3, "cached_input": 0.3}, …}`, for a million tokens. Raises `BadValue`, OSError."""
        try:
            given = json.loads(Path(path).read_text())
            prices = {name: Price(float(row["input"]), float(row["cached_input"])) for name, row in given.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            shape = '{"model": {"input": 3, "cached_input": 0.3}}'
            raise BadValue(f"{path}: a price list looks like {shape}, per million tokens ({error!r})") from error
        return cls(prices)

    def cost(self, tokens: int, cached: int, model: str = "") -> float:
        """Money for one prompt of this model."""
        names = [name for name in self.prices if model.startswith(name)]
        return self.prices[max(names, key=len)].cost(tokens, cached) if names else 0.0

    def shown(self, cost: float) -> str:
        """Such as `$0.42`."""
        return Price(0, unit=self.unit).shown(cost)


@dataclass(frozen=True)
class Machine:
    """Seconds of prefill by a table of costs, in chunks of as many tokens as the table goes up to."""

    costs: CostTable
    _known: dict = field(default_factory=dict, compare=False, repr=False)

    def cost(self, tokens: int, cached: int, model: str = "") -> float:  # noqa: ARG002  the machine runs one model
        """Seconds for one prompt."""
        chunk, seconds = self.costs.tokens[-1], 0.0
        for start in range(cached, tokens, chunk):
            end = min(start + chunk, tokens)
            context = -(-end // 256) * 256  # what differs less is not worth another interpolation
            if context not in self._known:
                self._known[context] = self.costs.at(context)
            seconds += self._known[context](end - start) / 1000
        return seconds

    def shown(self, cost: float) -> str:
        """Such as `1,204.5 s`."""
        return f"{cost:,.1f} s"


def total_cost(requests: Iterable[Examined], price: Pricing) -> float:
    """What the prompts cost, as the log has them."""
    return sum(price.cost(request.tokens, request.old, request.model) for request in requests)


def lost_cost(requests: Iterable[Examined], price: Pricing) -> float:
    """What their lost tokens cost."""
    return sum(
        price.cost(request.tokens, request.old, request.model)
        - price.cost(request.tokens, request.old + request.lost, request.model)
        for request in requests
        if request.lost
    )
