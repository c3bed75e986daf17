"""Is there room for a turn, in the model's positions and in the pool? If not: what would help, or what is dropped?

A turn that could not end even with the engine to itself is refused before it begins. With `on_overflow="drop_oldest"`
the oldest exchanges of the conversation make room for it instead: a user's message, and all that follows up to another
one. The system message and the tools stay. The template then writes what is left as it would write a new conversation,
so the turn generates what a session that is opened with these messages generates. K/V of the common prefix stays. The
tokens behind it have other positions than before, and each turn that drops something prefills them again.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from minstate.chat.content import common_prefix
from minstate.chat.messages import exchanges
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
        return kept, _length(given) - _length(kept)

    def _read(self, transcript: Transcript, log: list[int]) -> Continuation:
        return self.session.engine.read_input(transcript, log, self.messages, self.token_ids)

    def _problem(self, given: Continuation) -> ContextOverflow | OutOfPages | None:
        """Why there is no room for this input and the output; None if there is."""
        engine, new = self.session.engine, self.options.max_new_tokens
        needed, positions = _length(given) + new, engine.model.config.max_positions
        if needed > positions:
            parts = f"{given.keep} tokens of history, {len(given.ids)} new and {new} of output are {needed}"
            return ContextOverflow(f"{parts}; the model has {positions} positions", needed=needed, limit=positions)
        try:
            engine.scheduler.require_pages(_length(given), new)
        except OutOfPages as error:
            return error
        return None

    def _without_oldest(self, given: Continuation) -> Continuation:
        """The input behind the conversation without its oldest exchanges: as few as make room, or all if none do."""
        session, transcript, kept = self.session, self.session.transcript, {}
        old = transcript.messages or ()

        def fits(place: int) -> bool:
            """Whether there is room if the conversation goes on from `place`."""
            rest = (*old[:begin], *old[place:])
            try:
                left = session.engine.chat.new_transcript(rest, transcript.tools, transcript.options)
                kept[place] = self._read(left, [])
            except BadMessage:  # the template refuses such a conversation
                return False
            return not self._problem(kept[place])

        begin, places = exchanges(given.transcript.messages or ())
        places = [place for place in places if place <= len(old)]  # the turn's own messages stay
        best = bisect_left(places, True, key=fits)  # the prompt becomes shorter from place to place
        whole = kept.get(places[best] if best < len(places) else max(kept, default=0))
        if whole is None:
            return given
        keep = common_prefix(session.sequence.log, whole.ids)
        return whole._replace(keep=keep, ids=whole.ids[keep:])

    def _remedies(self, given: Continuation, error: ContextOverflow | OutOfPages) -> list[str]:
        """What makes room for this turn: each by itself."""
        session, log, new, ways = self.session, self.session.sequence.log, self.options.max_new_tokens, []
        pool = session.engine.pool
        limit = min(session.engine.model.config.max_positions, pool.allocator.num_pages * pool.page_size + 1)
        shorter = "replay" if self.options.replay is not None else "lower max_new_tokens to"
        if (room := limit - _length(given)) > 0:
            ways.append(f"{shorter} at most {room}{' tokens' if self.options.replay else ''}")
        earlier = [mark for mark in session.marks if mark.length < len(log)]
        if mark := next(
            (mark for mark in reversed(earlier) if self._fits_at(mark.transcript, log[: mark.length])), None
        ):
            ways.append(f"roll back to the mark at {mark.length} tokens")
        if self.token_ids is None and not self._problem(self._without_oldest(given)):
            ways.append("pass on_overflow='drop_oldest'")
        if isinstance(error, OutOfPages):
            ways.append(f"build the engine with num_pages={error.needed}")
        if not ways and self._fits_at(Transcript(), []):
            ways.append("open another session")
        elif not ways:
            less = f", {shorter} less than {limit // 2}" if 2 * new >= limit else ""
            ways.append(f"send a shorter input{less}{', in another session' if given.keep else ''}")
        return ways

    def _fits_at(self, transcript: Transcript, log: list[int]) -> bool:
        """Whether there is room for the turn behind this conversation."""
        try:
            return not self._problem(self._read(transcript, log))
        except BadMessage:  # nothing would be left to be answered
            return False


def _length(given: Continuation) -> int:
    return given.keep + len(given.ids)
