"""Who may touch an engine, and when."""

from collections.abc import Callable
from functools import wraps


def entry(method: Callable) -> Callable:
    """A method of `Engine` or `Session` that changes something, or needs it to keep still.

    Python may collect garbage between any two bytecodes, and a forgotten stream or session has pages to give back.
    While an entry is on the stack, its destructor only leaves word (`Engine.abandon`).
    """

    @wraps(method)
    def guarded(self, *args, **options):
        engine = getattr(self, "engine", self)
        engine.entered += 1
        try:
            return method(self, *args, **options)
        finally:
            engine.entered -= 1

    return guarded
