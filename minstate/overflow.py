"""Is there room for a turn, in the model's positions and in the pool? If not: what would help, or what is dropped?

A turn that could not end even with the engine to itself is refused before it begins. With `on_overflow="drop_oldest"`
the oldest exchanges of the conversation make room for it instead (see `minstate.chat.shortening`). K/V of the prefix
that log and prompt have in common stays. The tokens behind it have other positions than before, so each turn that drops
something prefills them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minstate.chat.shortening import without_oldest
from minstate.chat.transcript import Continuation, Transcript
from minstate.errors import BadMessage, BadValue, ContextOverflow, OutOfPages
from minstate.session import Session
from minstate.turn import TurnOptions


@dataclass(frozen=True)
class Admission:
    """A turn that asks for room, with its input.

    options  `max_new_tokens` is the length of the replay, if there is one
    """

    session: Session
    messages: Any
    token_ids: list[int] | None
    options: TurnOptions

    def admit(self) -> tuple[Continuation, int]:
        """The turn's input, and by how many tokens its prompt is shorter because exchanges were dropped.

        Raises `ContextOverflow` or `OutOfPages` if the turn could not end even with the engine to itself, `BadMessage`,
        and `BadValue` where messages should be dropped and there are only token ids.
        """
        now, drops = self.session.transcript, self.options.on_overflow == "drop_oldest"
        if drops and (self.token_ids is not None or now.messages is None):
            raise BadValue("on_overflow='drop_oldest' drops messages, and of raw token ids it knows none: roll back")
        given = kept = self._read(now, self.session.sequence.log)
        if drops and self._problem(given):
            kept = self._without_oldest(given)
        if error := self._problem(kept):
            error.args = (f"{error}: {', or '.join(self._remedies(kept, error))}",)
            raise error
        return kept, given.length - kept.length

    def _read(self, transcript: Transcript, log: list[int]) -> Continuation:
        return self.session.engine.read_input(transcript, log, self.messages, self.token_ids)

    def _problem(self, given: Continuation) -> ContextOverflow | OutOfPages | None:
        """Why there is no room for this input and the output; None if there is."""
        engine, new = self.session.engine, self.options.max_new_tokens
        needed, positions = given.length + new, engine.model.config.max_positions
        if needed > positions:
            parts = f"{given.keep} tokens of history, {len(given.ids)} new and {new} of output are {needed}"
            return ContextOverflow(f"{parts}; the model has {positions} positions", needed=needed, limit=positions)
        try:
            engine.scheduler.require_pages(given.length, new)
        except OutOfPages as error:
            return error
        return None

    def _without_oldest(self, given: Continuation) -> Continuation:
        session, fits = self.session, lambda kept: not self._problem(kept)
        return without_oldest(session.engine.chat, session.transcript, session.sequence.log, self.messages, given, fits)

    def _remedies(self, given: Continuation, error: ContextOverflow | OutOfPages) -> Iterator[str]:
        """What makes room for this turn: each by itself."""
        session, pool, history = self.session, self.session.engine.pool, self.session.sequence.log
        limit = min(session.engine.model.config.max_positions, pool.allocator.num_pages * pool.page_size + 1)
        earlier = [(mark.length, mark.transcript) for mark in reversed(session.marks) if mark.length < len(history)]
        mark = next((length for length, then in earlier if self._has_room(then, history[:length])), None)
        drops = self.token_ids is None and not self._problem(self._without_oldest(given))
        if (room := limit - given.length) > 0:
            replays = self.options.replay is not None
            yield f"replay at most {room} tokens" if replays else f"lower max_new_tokens to at most {room}"
        if mark is not None:
            yield f"roll back to the mark at {mark} tokens"
        if drops:
            yield "pass on_overflow='drop_oldest'"
        if isinstance(error, OutOfPages):
            yield f"build the engine with num_pages={error.needed}"
        elif room <= 0 and mark is None and not drops:
            where = "in another session" if given.keep else "with less output if need be"
            yield "open another session" if self._has_room(Transcript(), []) else f"send a shorter input {where}"

    def _has_room(self, transcript: Transcript, log: list[int]) -> bool:
        try:
            return not self._problem(self._read(transcript, log))
        except BadMessage:  # nothing would be left to be answered
            return False
