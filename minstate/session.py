"""One growing conversation, as its user sees it: a log that only grows, turns, and marks to go back to."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from minstate import persistence
from minstate.chat.drift import Drift, find_drift
from minstate.chat.messages import Message
from minstate.chat.template import Transcript
from minstate.errors import BadValue, BrokenInvariant, SessionBusy, SessionClosed, StaleMark
from minstate.guard import entry
from minstate.sequence import Sequence
from minstate.turn import Handle, TokenStream, Turn

if TYPE_CHECKING:
    from minstate.engine import Engine


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in one session's log to come back to."""

    length: int  # tokens of the log before it
    said: Transcript = field(repr=False)


class Session:
    """One conversation. Made by `Engine.open` and by `fork`; one turn at a time.

    While it is idle it holds nothing back: its K/V may be evicted when others need the pages, and is then computed
    again. Use it as a context manager, or `close()` it, when it is over; being garbage closes it too.
    """

    def __init__(self, engine: "Engine", number: int, tenant: str, sequence: Sequence, said: Transcript, lineage=()):
        self.engine = engine
        self.number = number
        self.tenant = tenant
        self.sequence = sequence
        self.said = said
        self.lineage: tuple[int, ...] = lineage  # which fork of which fork it is; () if it is none
        self.running: Handle | None = None
        self.forks = 0
        self._marks: list[Mark] = []  # those still valid, oldest first
        self._open = weakref.finalize(self, engine.forgotten.append, sequence)
        self._open.atexit = False

    @property
    def token_ids(self) -> list[int]:
        """The whole log, exactly as the model saw it: a copy."""
        return list(self.sequence.log)

    @property
    def messages(self) -> list[Message] | None:
        """The conversation as messages, replies included; None once raw token ids were sent."""
        return None if self.said.messages is None else list(self.said.messages)

    @property
    def resident(self) -> int:
        """Tokens of the log that have K/V at present, and need not be forwarded again."""
        return 0 if self.closed else self.engine.cache.resident(self.sequence)

    @property
    def closed(self) -> bool:
        return not self._open.alive

    def send(self, messages=None, **options) -> Turn:
        """Add `messages` and return the model's answer. Takes what `Engine.submit` takes, and raises what it raises."""
        with self._aborting():
            handle = self.engine.submit(self, messages, **options)
            while not handle.done:
                self.engine.step()
        if handle.error:
            raise handle.error
        return handle.turn

    def stream(self, messages=None, **options) -> "TokenStream":
        """As `send`, one token at a time.

        A stream that is closed, left as a `with` block, or dropped aborts the turn: the session is as before it.
        """
        with self._aborting():
            return TokenStream(self.engine.submit(self, messages, **options))

    def mark(self) -> Mark:
        """Remember the present end of the log."""
        self.require_idle()
        mark = Mark(len(self.sequence.log), self.said)
        self._marks.append(mark)
        return mark

    @entry
    def fork(self) -> "Session":
        """A second session with the same log, marks apart, that goes on by itself.

        It shares all K/V, of which at most one partly filled page is copied once either writes. Forks draw different
        noise from the same `Sampling`.
        """
        self.require_idle()
        self.forks += 1
        child = self.engine.cache.fork(self.sequence)
        return self.engine.adopt(self.tenant, child, self.said, (*self.lineage, self.forks))

    @entry
    def rollback(self, mark: Mark) -> None:
        """Forget everything after `mark`; its K/V before the mark stays. Later marks become stale.

        A mark inside a page that belongs to the tree leaves `resident` at that page's beginning; the next turn copies
        the rest of it.

        Raises `StaleMark` for a mark of another session, or one that an earlier rollback has passed.
        """
        self.require_idle()
        if mark not in self._marks:
            raise StaleMark(f"{mark!r} is no mark of this session, or the session was rolled back to before it")
        self.engine.cache.rollback(self.sequence, mark.length)
        self.said = mark.said
        del self._marks[self._marks.index(mark) + 1 :]

    def drift(self, messages, tools=None) -> Drift:
        """Whether a history, given as messages, extends what the model saw; if not, where they part, and why.

        `tools` are the session's own if not given. Raises `BadMessage`.
        """
        return self._drift(self._history(messages, tools))

    @entry
    def sync(self, messages, tools=None) -> Drift:
        """Make `messages` the session's history with the least work, and say what that is.

        The log is cut where the two part, and marks beyond become stale. The rest of the messages is forwarded with the
        next turn: `send([])` answers them. Raises `BadMessage`, and what `rollback` raises.
        """
        self.require_idle()
        given = self._history(messages, tools)
        drift = self._drift(given)
        self.engine.prepare_tools(self.sequence, given.tools)
        self.cut(drift.at)
        self.said = given
        return drift

    def cut(self, length: int) -> tuple[list[int], list[Mark]]:
        """Forget the log from `length` on, and marks beyond: for whoever knows what to put there instead.

        Returns what `restore` needs to take it back.
        """
        self.require_idle()
        undo = self.sequence.log[length:], self._marks
        self.engine.cache.rollback(self.sequence, length)
        self._marks = [mark for mark in self._marks if mark.length <= length]
        return undo

    def restore(self, undo: tuple[list[int], list[Mark]] | None) -> None:
        """Take a `cut` back, K/V apart; None was no cut."""
        if undo:
            self.sequence.log += undo[0]
            self._marks = undo[1]

    @entry
    def expect(self, seconds: float) -> None:
        """A hint: a tool is out, the next turn comes in about so many seconds. Until then eviction prefers others."""
        self.require_idle()
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise BadValue(f"seconds must be a number from 0 up, not {seconds!r}")
        self.engine.cache.expect(self.sequence, seconds)

    @entry
    def save(self, path: str | Path) -> None:
        """Write log and K/V into a file, from which `Engine.load` makes a session. Marks are lost. Raises OSError."""
        self.require_idle()
        sequence, pool = self.sequence, self.engine.pool
        self.engine.cache.refresh(sequence)
        seeds = {"lineage": self.lineage, "forks": self.forks}
        persistence.write(Path(path), self.engine.model, pool, sequence.table.slots, sequence.log, self.said, seeds)

    @entry
    def close(self) -> None:
        """Abort a running turn. A closed session takes no more calls, but keeps its log.

        What it computed stays in the prefix cache for others, until somebody needs the pages.
        """
        self.engine.require_owner()
        if self.running:
            self.running.abort()
        if self._open.detach():
            self.engine.cache.release(self.sequence)

    def _history(self, messages, tools) -> Transcript:
        return self.engine.chat.open(messages, self.said.tools if tools is None else tools)

    def _drift(self, given: Transcript) -> Drift:
        return find_drift(self.engine.chat, self.sequence.log, self.said, given)

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """If something is raised inside, the turn that began there is given up, even if nobody got its handle."""
        before = self.running
        try:
            yield
        except BaseException:
            if self.running and self.running is not before:
                self.running.abort()
            raise

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
        return f"<Session {self.number}: {len(self.sequence.log)} tokens, {self.resident} with K/V, {state}>"
