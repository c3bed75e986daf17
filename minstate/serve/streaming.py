"""A reply as it comes: pieces of thoughts, of text and of calls, none of which has to be taken back.

What a reply consists of is certain only when it is over: `<tool` may be text, or begin a call. So `settle` reads the
text so far, and keeps what is true of every continuation:

    text so far   <think>Hm.</think>Look: <tool_call>{"name": "f", "arguments": {"path": "a.p
    settled       reasoning "Hm.", content "Look:", and a call of f whose arguments begin with {"path": "a.p

Text is held back while it may begin a mark, and so is white space, which a call would strip. Arguments in JSON come as
the model writes them, but for the last brace, which waits for the end of the call: only a call that is well-formed has
arguments that can be parsed. Calls in other dialects come when they are complete, and so do calls whose ids stand
behind their arguments. A call without marks is a whole reply, and comes when the reply is over.

    with session.stream("Which files are there?") as stream:
        for delta in deltas(stream):
            print(delta.content, end="")

A server that steps the engine itself has a `ReplyStream` for each request, and asks it after a step for what is `new`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from minstate.chat.content import without
from minstate.chat.conversation import numbered
from minstate.chat.dialect import ID, INDEX, NAME, Dialect, Json, pattern
from minstate.chat.json_calls import json_end, read_json
from minstate.chat.tool_calls import ToolCall, Tools
from minstate.output import OutputProcessor
from minstate.request import Request
from minstate.token_stream import TokenStream


class Delta(NamedTuple):
    """The next piece of a reply: of its reasoning, of its text in front of calls, or of one call.

    The first piece of a call has its id and its name. Its arguments make up a JSON object, piece by piece; those of a
    malformed call never do.
    """

    reasoning: str = ""
    content: str = ""
    call: int | None = None  # place in `Turn.tool_calls`
    id: str = ""
    name: str = ""
    arguments: str = ""


class Settled(NamedTuple):
    """What will not change of a reply. The `raw` of a call is the JSON of its arguments, as far as it is known."""

    reasoning: str = ""
    content: str = ""
    calls: Sequence[ToolCall] = ()


def settle(dialect: Dialect, text: str, tools: Tools, marks: Sequence[str], *, thinking: bool) -> Settled:
    """What all replies have in common that begin with `text`.

    marks  special tokens of the dialect, which are left out of the content
    """
    reply = dialect.read(text, tools, thinking=thinking, check=False)
    opens, closes = (mark.strip() for mark in dialect.think or ("", ""))
    reasoning = reply.reasoning if reply.text else held_back(reply.reasoning, [closes]).rstrip("\n")
    first = re.split(rf"\s|{ID}|{INDEX}", dialect.open.lstrip())[0]
    mark = dialect.marks[0].strip() if dialect.is_json else first
    if not dialect.is_marked and (not mark or reply.text.lstrip()[:1] in ("", "{", "[", mark[0])):
        return Settled(reasoning)  # all of the reply may be a call
    content = reply.content.partition(mark)[0] if dialect.is_marked else reply.content
    content = held_back(without(content, marks), [mark, opens, *dialect.frame, *marks]).rstrip()
    whole = next((place for place, call in enumerate(reply.calls) if call.malformed), len(reply.calls))
    calls = [spoken(dialect, call) for call in reply.calls[: whole + 1]]
    return Settled(reasoning, content, [call for call in calls if call.name])


def spoken(dialect: Dialect, call: ToolCall) -> ToolCall:
    """The call with the JSON of its arguments as `raw`. A malformed call gets the name with which it has begun."""
    arguments, found = dialect.arguments, None
    if isinstance(arguments, Json) and dialect.is_marked and ID not in dialect.open + (dialect.next or dialect.close):
        head = pattern(dialect.open[arguments.begins :]).pattern if arguments.begins is not None else ""
        found = re.match(head + NAME + pattern(arguments.before).pattern + r"\s*(?=\{)", call.raw)
    if not call.malformed:
        wanted = json.dumps(call.arguments, ensure_ascii=False)
        if found and json.dumps((written := read_json(call.raw, found.end()))[0], ensure_ascii=False) == wanted:
            wanted = call.raw[found.end() : written[1]]
        return replace(call, raw=wanted)
    if not found:
        return call
    end = json_end(call.raw, found.end())
    so_far = call.raw[found.end() : end and end - 1]
    return replace(call, name=found[1], raw=so_far, id=next((each for each in found.groups()[1:] if each), call.id))


class Deltas:
    """Tells what is new of a reply, each time that more of it has settled."""

    def __init__(self) -> None:
        self._reasoning = self._content = ""  # sent so far
        self._arguments: dict[int, str] = {}  # of each call that has begun

    def of(self, settled: Settled) -> Iterator[Delta]:
        """The pieces that have not been sent."""
        if piece := settled.reasoning[len(self._reasoning) :]:
            self._reasoning += piece
            yield Delta(reasoning=piece)
        if piece := settled.content[len(self._content) :]:
            self._content += piece
            yield Delta(content=piece)
        for place, call in enumerate(settled.calls):
            if call.name and place not in self._arguments:
                self._arguments[place] = ""
                yield Delta(call=place, id=call.id, name=call.name)
            if call.name and (piece := call.raw[len(self._arguments[place]) :]):
                self._arguments[place] += piece
                yield Delta(call=place, arguments=piece)


def held_back(text: str, marks: Iterable[str]) -> str:
    """The text without an end with which one of the marks may begin."""
    ends = (n for mark in marks for n in range(len(mark), 0, -1) if text.endswith(mark[:n]))
    return text[: len(text) - max(ends, default=0)]


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
