"""What a judge has measured."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that a lab asks for, and whether the engine does it."""

    what: str  # a sentence that has to hold
    holds: bool
    measured: str  # the counters that decide
