"""A running turn as typed pieces: reasoning, text and calls, as they come.

    with session.stream("Which files are there?") as stream:
        for delta in deltas(stream):
            print(delta.content, end="")

A server that steps the engine itself has a `ReplyStream` for each request, and asks it for what is `new` after a step.
"""

from collections.abc import Iterator

from minstate.chat.conversation import numbered
from minstate.chat.streaming import Delta, Deltas, Settled, held_back, settle, spoken
from minstate.output import OutputProcessor
from minstate.request import Request
from minstate.session import TokenStream


class ReplyStream:
    """The pieces of one turn. Joined, they are the turn's `reasoning`, `content` and well-formed `tool_calls`.

    Each call of `new` reads the whole reply again, so all of them together cost time with the square of its length:
    some tenths of a millisecond for each token of a reply of a thousand tokens.
    """

    def __init__(self, output: OutputProcessor, request: Request):
        self._output, self._request, self._deltas = output, request, Deltas()

    def new(self) -> list[Delta]:
        """The pieces since the last time; all that is left, once the turn is done."""
        output, request, turn = self._output, self._request, self._request.turn
        if turn:
            calls = [spoken(output.dialect, call) for call in turn.tool_calls]
            return list(self._deltas.of(Settled(turn.reasoning, turn.content, calls)))
        stops = [stop for stop in request.options.sampling.stop if isinstance(stop, str)]
        text = held_back(output.reply_text(request).rstrip("\ufffd"), stops)
        found = settle(output.dialect, text, request.tools, output.marks, thinking=request.thinking)
        calls = numbered(found.calls, request.transcript, output.dialect)
        return list(self._deltas.of(found._replace(calls=calls)))


def deltas(stream: TokenStream) -> Iterator[Delta]:
    """The pieces of a stream's turn, as they come."""
    reply = ReplyStream(stream.engine.core.output, stream.request)
    for _ in stream:
        yield from reply.new()
