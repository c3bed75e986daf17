"""A host tier without bytes: which pages it holds, what it evicts, and how long its copies would take.

All decisions are those of `minstate.tiers`, which this file only spares the bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from minstate.lab.machines.data_sheets import DTYPE, Hardware
from minstate.lab.serving.stub_pool import StubPool
from minstate.model_config import ModelConfig
from minstate.tiers import Tier, Tiers


@dataclass(frozen=True)
class PredictedCosts:
    """In place of a `CostTable`: what a pass costs on this hardware, by its data sheet."""

    config: ModelConfig
    hardware: Hardware

    def at(self, context: int) -> Callable[[int], float]:
        """The milliseconds of a pass over so many tokens that end at `context`."""
        bytes_read = self.config.bytes_read(context, DTYPE)

        def ms(tokens: int) -> float:
            flops = self.config.flops(tokens, context, 1)
            return 1000 * self.hardware.seconds(flops, bytes_read) if tokens else 0.0

        return ms


class StubStore:
    """In place of a `HostStore`: names of pages."""

    keeps = False

    def __init__(self):
        self.names: set[bytes] = set()

    def put(self, name: bytes, _page: object) -> bool:
        """The page is here."""
        self.names.add(name)
        return True

    def get(self, name: bytes) -> object:
        """Something that is not None, if the page is here."""
        return True if name in self.names else None

    def drop(self, name: bytes) -> None:
        """The page is not here any more."""
        self.names.discard(name)

    def check(self, names: set[bytes]) -> bool:
        """Whether it holds these pages."""
        return self.names == names


class StubTiers(Tiers):
    """A host tier below a pool without tensors, in the memory that `hardware` has for it.

    Copies wait for each other and for nothing else, and no pass runs meanwhile, so a prediction is on the safe side.
    """

    def __init__(self, pool: StubPool, config: ModelConfig, hardware: Hardware):
        self._pool, self._costs, self.next = pool, PredictedCosts(config, hardware), None
        num_pages = int(hardware.host_memory // pool.bytes_per_page)
        self.tiers = [Tier(StubStore(), num_pages, hardware.host_bytes_per_s)]
        self.copied = 0  # pages whose time has not passed yet

    def take_seconds(self) -> float:
        """The seconds of all copies to and from the host since the last call."""
        seconds, self.copied = self.copied * self._pool.bytes_per_page / self.tiers[0].bytes_per_s, 0
        return seconds

    def _read(self, page: int) -> object:  # noqa: ARG002  as the original
        self.copied += 1
        return True

    def _write(self, data: object, page: int, first: int) -> None:  # noqa: ARG002  as the original
        self.copied += 1
