"""What a server reuses of earlier turns' K/V: nothing, what the prefix cache holds, or all that a session has."""

from collections.abc import Callable
from dataclasses import dataclass

from minstate.lab.engines.baselines import drop_kv
from minstate.prefix_cache import PrefixCache
from minstate.sequence import Sequence


@dataclass(frozen=True)
class ReuseMode:
    """What is left of a sequence's K/V when its next turn begins.

    before_turn  drops the K/V that such a server would not have kept
    trust        a hint protects a session's pages for this many times the announced seconds; 0: hints are ignored
    host_tier    evicted pages go to host memory
    """

    name: str
    before_turn: Callable[[PrefixCache, Sequence], None] = lambda _cache, _sequence: None
    trust: float = 0.0
    host_tier: bool = False


NAIVE = ReuseMode("naive", lambda cache, sequence: drop_kv(cache, sequence, cache.tree.private_root()))
PREFIX_REUSE = ReuseMode("prefix reuse", lambda cache, sequence: drop_kv(cache, sequence, sequence.root))
STATEFUL = ReuseMode("stateful", trust=8.0)  # nearly all tool calls take less; longer waits lose protection
TIERED = ReuseMode("stateful, host tier", trust=8.0, host_tier=True)
