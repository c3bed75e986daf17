"""One growing conversation, as its user sees it: a log that only grows, turns, and marks to go back to."""

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from minstate.batch import Sequence
from minstate.errors import BrokenInvariant, SessionBusy, SessionClosed, StaleMark
from minstate.turn import Handle, TokenStream, Turn

if TYPE_CHECKING:
    from minstate.engine import Engine


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in one session's log to come back to."""

    length: int  # tokens of the log before it


class Session:
    """One conversation. Made by `Engine.open`; one turn at a time.

    Use it as a context manager, or `close()` it, to give its pages back; a session that is garbage gives them back too.
    """

    def __init__(self, engine: "Engine", number: int, opening: list[int]):
        self.engine = engine
        self.number = number
        self.opening = opening  # rendered by `Engine.open`, forwarded with the first turn
        self.sequence = Sequence(engine.pool)
        self.running: Handle | None = None
        self._marks: list[Mark] = []  # those still valid, oldest first
        self._give_pages_back = weakref.finalize(self, self.sequence.table.truncate, 0)
        self._give_pages_back.atexit = False

    @property
    def token_ids(self) -> list[int]:
        """The whole log, exactly as the model saw it: a copy."""
        return list(self.sequence.log)

    @property
    def closed(self) -> bool:
        return not self._give_pages_back.alive

    def send(self, messages=None, **options) -> Turn:
        """Add `messages` and return the model's answer. Takes what `Engine.submit` takes, and raises what it raises."""
        handle = self.engine.submit(self, messages, **options)
        try:
            while not handle.done:
                self.engine.step()
        finally:
            handle.abort()  # does nothing to a turn that is done
        return handle.turn

    def stream(self, messages=None, **options) -> "TokenStream":
        """As `send`, one token at a time. Leaving the stream early aborts the turn: the session is as before it."""
        return TokenStream(self.engine.submit(self, messages, **options))

    def mark(self) -> Mark:
        """Remember the present end of the log."""
        self.require_idle()
        mark = Mark(len(self.sequence.log))
        self._marks.append(mark)
        return mark

    def rollback(self, mark: Mark) -> None:
        """Forget everything after `mark`; its K/V before the mark stays. Later marks become stale.

        Raises `StaleMark` for a mark of another session, or one that an earlier rollback has passed.
        """
        self.require_idle()
        if mark not in self._marks:
            raise StaleMark(f"{mark!r} is no mark of this session, or the session was rolled back to before it")
        self.sequence.truncate(mark.length)
        del self._marks[self._marks.index(mark) + 1 :]

    def close(self) -> None:
        """Abort a running turn and give all pages back. A closed session takes no more calls, but keeps its log."""
        self.engine.require_owner()
        if self.running:
            self.running.abort()
        self._give_pages_back()

    def require_idle(self) -> None:
        """Raises `SessionClosed` or `SessionBusy` unless a turn may begin."""
        self.engine.require_owner()
        if self.closed:
            raise SessionClosed("this session is closed: open another one")
        if self.running:
            raise SessionBusy("this session is in the middle of a turn: step the engine until it is done, or abort it")

    def check(self) -> None:
        """Raises `BrokenInvariant` if log, marks and pages contradict each other."""
        self.sequence.check(at_rest=not self.running)
        if self.closed and self.sequence.table.pages:
            raise BrokenInvariant(f"{self!r} is closed and still holds pages")
        if any(mark.length > len(self.sequence.log) for mark in self._marks):
            raise BrokenInvariant(f"a mark lies beyond the log's {len(self.sequence.log)} tokens")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self.running else "idle"
        return f"<Session {self.number}: {len(self.sequence.log)} tokens, {self.sequence.kv_len} with K/V, {state}>"
