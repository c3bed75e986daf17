"""Who may touch an engine, and when: its own thread, one call at a time, and Ctrl-C between two calls.

Any line of a call may raise: memory runs out, recursion goes too deep, a signal handler raises. Where it can, the call
undoes what it has begun. Nobody can foresee every place, so the next call first recounts all bookkeeping. If pages,
tree, logs and turns contradict each other, this call and all later ones are refused, rather than read other's pages.
"""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import wraps

from minstate.errors import EngineBroken, EngineMisuse, MinstateError
from minstate.request import Request
from minstate.sequence import Sequence


class Guard:
    """What an engine knows of the calls that are under way, and of what destructors have left for it to do.

    Python may collect garbage between any two bytecodes, and a forgotten stream or session has pages to give back.
    While a call is under way, a destructor only leaves a note here, and the next call does the work.
    """

    def __init__(self):
        self.owner = threading.current_thread()
        self.entered = 0  # how many guarded methods are on the stack
        self.in_step = False
        self.suspect = ""  # the type of an exception that left a call; "" once everything has been recounted
        self.abandoned: list[Request] = []  # turns whose stream became garbage
        self.forgotten: list[Sequence] = []  # of sessions that became garbage
        self.open: set[Sequence] = set()  # until `release`: whichever thread collects garbage, and whenever

    def require_owner(self) -> None:
        """Raises `EngineMisuse` in any thread but the engine's own, and inside a step."""
        if threading.current_thread() is not self.owner:
            raise EngineMisuse("an engine belongs to the thread that made it: make one in this thread")
        if self.in_step:
            raise EngineMisuse("the engine is in the middle of a step")

    def tidy(self, engine) -> None:
        """Do what destructors have left to do, and recount if an exception left a call. Raises `EngineBroken`."""
        try:
            while self.abandoned:
                engine.core.give_up(self.abandoned.pop())
            while self.forgotten:
                self.release(engine, self.forgotten.pop())
            if self.suspect:
                engine.recount()
                self.suspect = ""
        except Exception as error:
            self.suspect = self.suspect or type(error).__name__
            raise EngineBroken(
                f"{self.suspect} has left this engine's bookkeeping half changed ({error}): make a new engine. The "
                "token_ids and messages of its sessions can still be read, but sessions cannot be saved any more"
            ) from error

    def release(self, engine, sequence: Sequence) -> None:
        """A session is over: its pages are the tree's, or free."""
        engine.cache.release(sequence)
        self.open.discard(sequence)

    def abandon(self, request: Request) -> None:
        """As `Request.abort`, for a destructor, which may run in any thread and at any moment."""
        self.abandoned.append(request)
        if threading.current_thread() is self.owner and not self.entered:
            request.abort()


def entry(method: Callable) -> Callable:
    """A method of `Engine` or `Session` that changes something, or needs it to keep still.

    Only the engine's own thread may call it, and not inside a step. First it does what destructors have left to do.
    Ctrl-C waits until it is over. An error that minstate raises on purpose has changed nothing, unless it is raised on
    the way out of another exception; after any other exception, the next call recounts.
    """

    @wraps(method)
    def guarded(self, *args, **options):
        engine = getattr(self, "engine", self)
        guard = engine.guard
        guard.require_owner()
        with nullcontext() if guard.entered else interrupted_later():
            guard.entered += 1
            try:
                guard.tidy(engine)
                return method(self, *args, **options)
            except BaseException as error:
                if error.__context__ or not isinstance(error, MinstateError):
                    guard.suspect = guard.suspect or type(error).__name__
                raise
            finally:
                guard.entered -= 1

    return guarded


@contextmanager
def interrupted_later() -> Generator[None]:
    """Inside, Ctrl-C waits until the end, so that bookkeeping is never left half-way; pressed again, it does not."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main_thread else None
    if not callable(handler):  # the signal is ignored, or belongs to another thread
        yield
        return
    pressed = []

    def wait(*args) -> None:
        if pressed:
            handler(*args)
        pressed.append(args)

    try:
        signal.signal(signal.SIGINT, wait)
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            handler(*pressed[0])
