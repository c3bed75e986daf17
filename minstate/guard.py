"""Who may touch an engine, and when."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps


def entry(method: Callable) -> Callable:
    """A method of `Engine` or `Session` that changes something, or needs it to keep still.

    Python may collect garbage between any two bytecodes, and a forgotten stream or session has pages to give back.
    While an entry is on the stack, its destructor only leaves word (`Engine.abandon`). Ctrl-C waits as well.
    """

    @wraps(method)
    def guarded(self, *args, **options):
        engine = getattr(self, "engine", self)
        with nullcontext() if engine.entered else interrupted_later():
            engine.entered += 1
            try:
                return method(self, *args, **options)
            finally:
                engine.entered -= 1

    return guarded


@contextmanager
def interrupted_later() -> Iterator[None]:
    """Inside, Ctrl-C waits until the end, so that bookkeeping is never left half-way; pressed again, it does not."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    whole = signal.getsignal(signal.SIGINT) if in_main_thread else None
    if not callable(whole):  # nobody listens, or it is not our business
        yield
        return
    pressed = []

    def wait(*args) -> None:
        if pressed:
            whole(*args)
        pressed.append(args)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, whole)
        if pressed:
            whole(*pressed[0])
