"""Exceptions at any call of the core, one call at a time.

Any call may raise: memory runs out, recursion goes too deep, a signal handler raises. `faults` injects at the four
seams where that is expected. Here each call *site* is listed, and gets its exception: before the call, as if the callee
raised at once; and after it, as a signal handler raises, so that the callee's work is done and its result is lost.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import minstate

CORE = Path(minstate.__file__).parent
STATELESS = {"attention", "linear", "model", "model_config", "weights", "gpu", "sampling", "turn", "invariants"}
STATEFUL = frozenset(str(path) for path in CORE.glob("*.py") if path.stem not in STATELESS)


class Site(NamedTuple):
    """A call in the source: which line of which file calls what, and whether the exception comes before or after it."""

    file: str
    line: int
    callee: str
    after: bool


def _site(frame: FrameType, event: str, arg: Any) -> Site | None:
    """The site of a profiler's event; None outside the stateful files."""
    in_c = event.startswith("c_")
    caller = frame if in_c else frame.f_back
    if caller is None or caller.f_code.co_filename not in STATEFUL or event == "c_exception":
        return None
    callee = arg.__name__ if in_c else frame.f_code.co_name
    return Site(caller.f_code.co_filename, caller.f_lineno, callee, event.endswith("return"))


@contextmanager
def recording() -> Iterator[list[Site]]:
    """Inside the `with` block, each call of a stateful file is added to the list."""
    sites: list[Site] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        if site := _site(frame, event, arg):
            sites.append(site)

    sys.setprofile(note)
    try:
        yield sites
    finally:
        sys.setprofile(None)


@contextmanager
def interrupting(target: Site, occurrence: int, error: BaseException) -> Iterator[list[Site]]:
    """Inside the `with` block, `error` is raised at one occurrence of a site, counted from 0. Yields [] until then."""
    hits: list[Site] = []
    left = [occurrence]

    def strike(frame: FrameType, event: str, arg: Any) -> None:
        if _site(frame, event, arg) == target:
            left[0] -= 1
            if left[0] < 0:
                hits.append(target)
                sys.setprofile(None)
                raise error

    sys.setprofile(strike)
    try:
        yield hits
    finally:
        sys.setprofile(None)
