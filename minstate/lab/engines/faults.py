"""Injected faults, at the five seams where an engine calls something that can fail.

    seam        the call that fails                        the error
    allocation  taking pages from the pool                 `OutOfPages`, as if the pool were full
    forward     the model's forward pass                   `InjectedFault`
    sampling    choosing a token or advancing a grammar    `InjectedFault`
    file        writing or reading a session's file        `InjectedFault`, which is also an OSError
    disk        writing or reading a page of the disk tier the same; the page is then absent, and no turn fails

`minstate.errors` says what must hold afterwards: the session whose turn failed is as before, and all others continue.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from unittest import mock

from minstate import disk_store, output, persistence
from minstate.chat.grammar import Constraint
from minstate.engine import Engine
from minstate.errors import OutOfPages

SEAMS = ("allocation", "forward", "sampling", "file", "disk")


class InjectedFault(OSError):
    """The error of an injected fault."""


def _at_once(function: Callable, *args) -> Future:
    future = Future()
    future.set_result(function(*args))
    return future


@contextmanager
def faults(engine: Engine, when: Callable[[str], bool]) -> Iterator[Counter[str]]:
    """Inside the `with` block, a call at a seam fails if `when(seam)` is true. Yields the number of faults by seam.

    Faults in allocation and forward passes affect this engine only; those in sampling and files affect all engines of
    this process.
    """
    injected: Counter[str] = Counter()

    def failing(seam: str, original: Callable, error: Callable[[str], Exception] = InjectedFault) -> Callable:
        def call(*args, **options):
            if when(seam):
                injected[seam] += 1
                raise error(f"a fault was injected: {seam}")
            return original(*args, **options)

        return call

    allocator, model = engine.pool.allocator, engine.model
    with ExitStack() as stack:
        for place, name, replacement in [
            (allocator, "allocate", failing("allocation", allocator.allocate, OutOfPages)),
            (model, "forward", failing("forward", model.forward)),
            (output, "choose", failing("sampling", output.choose)),
            (Constraint, "advance", failing("sampling", Constraint.advance)),
            (persistence, "replace", failing("file", persistence.replace)),  # complete, but not yet in place
            (persistence, "load", failing("file", persistence.load)),
            (disk_store, "replace", failing("disk", disk_store.replace)),
            (disk_store, "read", failing("disk", disk_store.read)),
            (disk_store, "submit", _at_once),  # a thread would draw faults at random moments
        ]:
            stack.enter_context(mock.patch.object(place, name, replacement))
        yield injected
