"""A conversation without its oldest exchanges: each a user's message, and all that follows it up to another one.

The system message and the tools stay, and calls stay with their results. The template writes what is left as it writes
a new conversation, so its ids are those of a session that is opened with these messages.
"""

from bisect import bisect_left
from collections.abc import Callable

from minstate.chat.content import common_prefix
from minstate.chat.conversation import Chat
from minstate.chat.messages import Messages
from minstate.chat.transcript import Continuation, Transcript
from minstate.errors import BadMessage


def without_oldest(
    chat: Chat, transcript: Transcript, log: list[int], messages, given: Continuation, fits: Callable[..., bool]
) -> Continuation:
    """The input of a turn behind a conversation without its oldest exchanges: as few as make it fit, or all if none do.

    given  the input behind the whole conversation; it is returned if nothing can be dropped
    fits   whether there is room for an input
    """
    old, kept = transcript.messages or (), {}

    def fits_from(place: int) -> bool:
        try:
            rest = chat.new_transcript((*old[:begin], *old[place:]), transcript.tools, transcript.options)
            kept[place] = chat.read_messages(rest, [], messages)
        except BadMessage:  # the template refuses such a conversation
            return False
        return fits(kept[place])

    begin, places = exchanges(given.transcript.messages or ())
    places = [place for place in places if place <= len(old)]  # the turn's own messages stay
    best = bisect_left(places, True, key=fits_from)  # the prompt becomes shorter from place to place
    whole = kept.get(places[best] if best < len(places) else max(kept, default=0), given)
    keep = common_prefix(log, whole.ids)
    return given if whole is given else whole._replace(keep=keep, ids=whole.ids[keep:])


def exchanges(messages: Messages) -> tuple[int, list[int]]:
    """How many system messages a conversation begins with, and where it may go on if the oldest others are dropped.

    That is at a user's message, behind which no result answers a call in front of it.
    """
    roles = [message["role"] for message in messages]
    begin = next((place for place, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
    open_calls: list[int] = []  # the places of calls that have no result yet
    apart = set(range(begin + 1))  # places between a call and its result, and those before which nothing is dropped
    for place, message in enumerate(messages):
        open_calls += [place] * len(message.get("tool_calls", ()))
        if message["role"] == "tool" and open_calls:
            apart.update(range(open_calls.pop() + 1, place + 1))
    return begin, [place for place, role in enumerate(roles) if role == "user" and place not in apart]
