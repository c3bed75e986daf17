"""The configurations of an engine that benchmarks compare."""

from minstate.engine import Engine
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine

CONFIGURATIONS: dict[str, tuple[type[Engine], bool]] = {  # the kind of engine, and whether it speculates
    "naive": (NaiveEngine, False),
    "prefix reuse": (PrefixReuseEngine, False),
    "stateful": (Engine, False),
    "stateful + speculation": (Engine, True),
}
