"""Faults on purpose, at the four seams where an engine meets what can fail.

    allocation  the pool gives out no page                    `OutOfPages`, as if it were full
    forward     the model's pass fails                        `InjectedFault`
    sampling    choosing a token or advancing a grammar does  `InjectedFault`
    file        writing or reading a session's file does      `InjectedFault`, which is an OSError too

What must hold afterwards is said in `minstate.errors`: the session that failed is as before its turn, the others go on.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from minstate import persistence, turn
from minstate.chat.grammar import Constraint
from minstate.engine import Engine
from minstate.errors import OutOfPages

SEAMS = ("allocation", "forward", "sampling", "file")


class InjectedFault(OSError):
    """Raised on purpose."""


@contextmanager
def faults(engine: Engine, when: Callable[[str], bool]) -> Iterator[Counter[str]]:
    """Inside, a call at a seam fails if `when(seam)` says so. Yields how many have, by seam.

    Allocation and forward pass are the engine's own; sampling and files are all engines' of this process.
    """
    injected: Counter[str] = Counter()

    def failing(seam: str, whole: Callable, error: Callable[[str], Exception] = InjectedFault) -> Callable:
        def call(*args, **options):
            if when(seam):
                injected[seam] += 1
                raise error(f"a fault was injected: {seam}")
            return whole(*args, **options)

        return call

    allocator, model = engine.pool.allocator, engine.model
    with ExitStack() as stack:
        for place, name, replacement in [
            (allocator, "allocate", failing("allocation", allocator.allocate, OutOfPages)),
            (model, "forward", failing("forward", model.forward)),
            (turn, "choose", failing("sampling", turn.choose)),
            (Constraint, "advance", failing("sampling", Constraint.advance)),
            (persistence, "replace", failing("file", persistence.replace)),  # all is written, and not in its place yet
            (persistence, "safe_open", failing("file", persistence.safe_open)),
        ]:
            stack.enter_context(mock.patch.object(place, name, replacement))
        yield injected
