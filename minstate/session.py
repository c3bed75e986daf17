"""One growing conversation, as its user sees it: a log that only grows, turns, and marks to go back to."""

import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from minstate import persistence
from minstate.arguments import real_number
from minstate.chat.drift import Drift, find_drift
from minstate.chat.messages import Message
from minstate.chat.transcript import Continuation, Transcript
from minstate.errors import BrokenInvariant, EngineBroken, SessionBusy, SessionClosed, StaleMark
from minstate.guard import entry
from minstate.request import Request
from minstate.sequence import Sequence
from minstate.token_stream import TokenStream
from minstate.turn import Turn, takes_turn_options


@dataclass(frozen=True, eq=False)
class Mark:
    """A place in one session's log to come back to."""

    length: int  # tokens of the log before it
    transcript: Transcript = field(repr=False)


class Session:
    """One conversation. Made by `Engine.open` and by `fork`; one turn at a time.

    While it is idle it holds nothing back: its K/V may be evicted when others need the pages, and is then computed
    again. Use it as a context manager, or `close()` it, when it is over; a session that becomes garbage is closed too.
    """

    def __init__(self, engine, number: int, tenant: str, sequence: Sequence, transcript: Transcript, seeds=((), 0)):
        self.engine = engine  # the `Engine` that made it
        self.number = number
        self.tenant = tenant
        self.sequence = sequence
        self.transcript = transcript
        # Which fork of which fork it is, () if it is none; and how many forks it has had. Noise depends on both.
        self.lineage: tuple[int, ...]
        self.lineage, self.forks = seeds
        self.running: Request | None = None
        self.marks: list[Mark] = []  # those still valid, oldest first
        # What takes the last turn back: where its input began, what this had cut off, and transcript and marks before.
        self._undo: tuple[int, list[int], Transcript, list[Mark]] | None = None
        self._length = len(sequence.log)  # between two turns; written last, so that a change left half-way shows
        engine.guard.open.add(sequence)
        self._open = weakref.finalize(self, engine.guard.forgotten.append, sequence)
        self._open.atexit = False

    @property
    def token_ids(self) -> list[int]:
        """The whole log, exactly as the model saw it: a copy."""
        return list(self.sequence.log)

    @property
    def messages(self) -> list[Message] | None:
        """The conversation as messages, replies included; None once raw token ids were sent."""
        return None if self.transcript.messages is None else list(self.transcript.messages)

    @property
    def resident(self) -> int:
        """Tokens of the log that have K/V at present, and need not be forwarded again."""
        return 0 if self.closed else self.engine.cache.resident_tokens(self.sequence)

    @property
    def closed(self) -> bool:
        """Whether the session takes no more calls."""
        return not self._open.alive

    @takes_turn_options
    def send(self, messages=None, *, token_ids: Iterable[int] | None = None, **options) -> Turn:
        """Add `messages` and return the model's answer. Takes what `Engine.submit` takes, and raises what it raises."""
        with self._aborting():
            request = self.engine.submit(self, messages, token_ids=token_ids, **options)
            while not request.done:
                self.engine.step()
        if request.error:
            raise request.error
        return request.turn

    @takes_turn_options
    def stream(self, messages=None, *, token_ids: Iterable[int] | None = None, **options) -> TokenStream:
        """As `send`, one token at a time.

        A stream that is closed, left as a `with` block, or dropped aborts the turn: the session is as before it.
        """
        with self._aborting():
            return TokenStream(self.engine, self.engine.submit(self, messages, token_ids=token_ids, **options))

    @entry
    def mark(self) -> Mark:
        """Remember the present end of the log."""
        self.require_idle()
        mark = Mark(len(self.sequence.log), self.transcript)
        self.marks.append(mark)
        return mark

    @entry
    def fork(self) -> "Session":
        """A second session with the same log, marks apart, that goes on by itself.

        It shares all K/V; once either writes, one page at most is copied. Forks draw noise of their own.
        """
        self.require_idle()
        child, lineage = self.engine.cache.fork(self.sequence), (*self.lineage, self.forks + 1)
        session = self.engine.new_session(self.tenant, child, self.transcript, seeds=(lineage, 0))
        self.forks += 1
        return session

    @entry
    def rollback(self, mark: Mark) -> None:
        """Forget everything after `mark`; its K/V before the mark stays. Later marks become stale.

        A mark inside a page that belongs to the tree leaves `resident` at that page's beginning; the next turn copies
        the rest of it.

        Raises `StaleMark` for a mark of another session, or one that an earlier rollback has passed.
        """
        self.require_idle()
        if mark not in self.marks:
            raise StaleMark(f"{mark!r} is no mark of this session, or the session was rolled back to before it")
        kept = self.marks[: self.marks.index(mark) + 1]
        self.engine.cache.rollback(self.sequence, mark.length)
        self.transcript, self.marks, self._length, self._undo = mark.transcript, kept, mark.length, None

    @entry
    def take_back(self) -> None:
        """Forget the last turn: log, marks and messages are as before it. Its K/V before the turn stays.

        Raises `StaleMark` if there is no such turn: none has ended since the session was opened, forked, rolled back or
        synchronised, or a later one was given up.
        """
        self.require_idle()
        if not self._undo:
            raise StaleMark("there is no turn to take back: none came after the last rollback, sync or fork")
        self.engine.cache.rollback(self.sequence, self._undo[0])
        self._restore()

    def drift(self, messages, tools=None) -> Drift:
        """Whether a history, given as messages, extends what the model saw; if not, where they part, and why.

        `tools` are the session's own if not given. Raises `BadMessage`.
        """
        return find_drift(self.engine.chat, self.sequence.log, self.transcript, self._given(messages, tools))

    @entry
    def sync(self, messages, tools=None) -> Drift:
        """Make `messages` the session's history with the least work, and return how it differs from the log.

        A history that goes on from the session's own messages keeps the log, however the template would write them now.
        Any other cuts the log where the two part, and marks beyond become stale. The rest of the messages is forwarded
        with the next turn: `send([])` answers them. Raises `BadMessage`, and what `rollback` raises.
        """
        self.require_idle()
        given, log = self._given(messages, tools), self.sequence.log
        if log and (known := self.engine.chat.continued(self.transcript, given)):
            rest = len(self.engine.chat.read_messages(known, log, []).ids) if known.has_pending else 0
            self.transcript, self._undo = known, None
            return Drift(len(log), 0, rest, "", None, "", "")
        drift = find_drift(self.engine.chat, log, self.transcript, given)
        self.engine.prepare_tools(self.sequence, given.tools)
        self._cut(drift.at)
        self.transcript, self._length, self._undo = given, drift.at, None
        return drift

    @entry
    def expect(self, seconds: float) -> None:
        """A hint: a tool is running, and the next turn comes in about so many seconds. Eviction prefers others."""
        self.require_idle()
        self.engine.cache.expect(self.sequence, real_number("seconds", seconds))

    @entry
    def save(self, path: str | Path) -> None:
        """`Engine.export` into a file, from which `Engine.load` makes a session. Marks are lost. Raises OSError."""
        persistence.put(Path(path), self.engine.export(self))

    @entry
    def close(self) -> None:
        """Abort a running turn. A closed session takes no more calls, but keeps its log.

        What it computed stays in the prefix cache for others, until its pages are needed.
        """
        self.abort_turn()
        if self._open.detach():
            self.engine.guard.release(self.engine, self.sequence)

    def begin_turn(self, request: Request, given: Continuation) -> None:
        """The turn's input is in the log, from where it continues the log."""
        self._undo = given.keep, self.sequence.log[given.keep :], self.transcript, list(self.marks)
        self.running = request  # from here on, `end_turn` can undo the rest
        self._cut(given.keep)
        self.sequence.log += given.ids

    def end_turn(self, transcript: Transcript | None) -> None:
        """The turn is over. Without a transcript it was given up: what its input had cut off is back, K/V apart."""
        if transcript is None:
            self._restore()
        else:
            self.transcript, self._length = transcript, len(self.sequence.log)
        self.running = None

    def abort_turn(self) -> None:
        """Give up the turn under way, if there is one: log, marks and messages are as before it."""
        if self.running:
            self.engine.abort(self.running)

    def add_answered(self, given: Continuation, turn: Turn) -> None:
        """A turn is added whose answer is known already. Its K/V is computed with the next turn."""
        self._cut(given.keep)
        self.sequence.log += [*given.ids, *turn.token_ids]
        transcript, log = given.transcript, self.sequence.log
        known = transcript.messages is not None
        self.transcript = self.engine.chat.after_turn(transcript, log) if known else transcript
        self._length, self._undo = len(log), None

    def require_idle(self) -> None:
        """Raises `SessionClosed` or `SessionBusy` unless a turn may begin."""
        self.engine.guard.require_owner()
        if self.closed:
            raise SessionClosed("this session is closed: open another one")
        if self.running:
            raise SessionBusy("this session is in the middle of a turn: step the engine until it is done, or abort it")

    def check(self) -> None:
        """Raises `BrokenInvariant` if log, marks and pages contradict each other."""
        self.sequence.check(at_rest=not self.running)
        if self.closed and self.sequence.table.pages:
            raise BrokenInvariant(f"{self!r} is closed and still holds pages")
        if any(mark.length > len(self.sequence.log) for mark in self.marks):
            raise BrokenInvariant(f"a mark lies beyond the log's {len(self.sequence.log)} tokens")
        if not self.running and self._length != len(self.sequence.log):
            raise BrokenInvariant(f"{self!r} had {self._length} tokens")

    def _given(self, messages, tools) -> Transcript:
        """A history that is given as messages, for this session's tools unless others are given."""
        tools = self.transcript.tools if tools is None else tools
        return self.engine.chat.new_transcript(messages, tools, self.transcript.options)

    def _cut(self, length: int) -> None:
        """Forget the log from `length` on, and marks beyond."""
        if length < len(self.sequence.log):
            self.engine.cache.rollback(self.sequence, length)
            self.marks = [mark for mark in self.marks if mark.length <= length]

    def _restore(self) -> None:
        """The log ends where the last turn's input began: what this had cut off is back, with transcript and marks."""
        if self._undo:
            _, cut_off, self.transcript, self.marks = self._undo
            self.sequence.log += cut_off
        self._undo, self._length = None, len(self.sequence.log)

    @contextmanager
    def _aborting(self) -> Generator[None]:
        """If an exception is raised inside, the turn that began there is given up, even if its request got lost."""
        before = self.running
        try:
            yield
        except BaseException:
            if self.running is not before:
                with suppress(EngineBroken):  # which the next call raises
                    self.abort_turn()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self.running else "idle"
        return f"<Session {self.number}: {len(self.sequence.log)} tokens, {self.resident} with K/V, {state}>"
