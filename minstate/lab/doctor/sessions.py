"""Which requests belong together: sessions among interleaved requests, found by what they have in common.

A request continues the session whose messages, with the last reply, are the beginning of its own. If there is none, it
continues one whose last reply it holds, though something before it has changed. If it goes on from a point that a
session has passed already, it is a fork: a sub-agent, or a second try.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from minstate.lab.doctor.causes import meaning
from minstate.lab.doctor.tokens import Pieces
from minstate.lab.logs.requests import LoggedRequest
from minstate.prompt_lookup import NgramIndex

REMEMBERED = 4096  # sessions that may still go on; the least recent are forgotten
PASSED = 500_000  # earlier points of sessions that are remembered, at least
SAID = 24  # characters that messages must share if only their content says that they belong together


@dataclass(eq=False)
class Session:
    """The latest state of one conversation: its messages with the last reply, and the tokens an engine has of them."""

    number: int
    messages: list[dict] = field(default_factory=list)
    tools: tuple[dict, ...] = ()
    pieces: Pieces = field(default_factory=list)
    prompt: str = ""  # the rendered text of the last request
    has_reply: bool = False
    requests: int = 0
    chain: int = 0
    tokens: list[int] = field(default_factory=list)  # for prompt lookup
    index: NgramIndex = field(default_factory=NgramIndex)


def chains(messages: Sequence[dict]) -> list[int]:
    """A number for each beginning of a conversation."""
    numbers, number = [], 0
    for message in messages:
        number = hash((number, meaning(message)))
        numbers.append(number)
    return numbers


class Sessions:
    """The sessions so far."""

    def __init__(self):
        self.count = 0
        self._live: OrderedDict[int, Session] = OrderedDict()
        self._by_chain: dict[int, int] = {}
        self._by_message: dict[int, int] = {}
        self._named: dict[str, int] = {}
        self._passed: dict[int, int] = {}
        self._older: dict[int, int] = {}

    def find(self, request: LoggedRequest) -> tuple[Session | None, int | None]:
        """The session that the request seems to continue, and the number of the one that it may be a fork of."""
        numbers = chains(request.messages)
        if request.session is not None:
            known = self._live.get(self._named.get(request.session, -1))
            return known, None if known else self._fork(request, numbers)
        for at in range(len(numbers) - 1, -1, -1):
            session = self._live.get(self._by_chain.get(numbers[at], -1))
            if session is not None and at + 1 < len(numbers):
                answered = session.has_reply or request.messages[at + 1]["role"] == "assistant"
                if answered and session.requests:
                    return session, None
        return self._similar(request), self._fork(request, numbers)

    def _fork(self, request: LoggedRequest, numbers: list[int]) -> int | None:
        for at in range(len(numbers) - 1, -1, -1):
            number = self._passed.get(numbers[at], self._older.get(numbers[at]))
            if number is not None and any(m["role"] != "system" for m in request.messages[: at + 1]):
                return number
        return None

    def _similar(self, request: LoggedRequest) -> Session | None:
        """The session of which the request holds most, if it holds its last reply or what that answered."""
        if not any(message["role"] == "assistant" for message in request.messages):
            return None
        ours = {hash(meaning(message)): message for message in request.messages if message["role"] != "system"}
        found = {number for key in ours if (number := self._by_message.get(key)) in self._live}
        best, most = None, SAID
        for number in sorted(found, reverse=True):
            session = self._live[number]
            said = [each for message in session.messages if (each := ours.get(hash(meaning(message)))) is not None]
            size = sum(len(each["content"]) + len(str(each.get("tool_calls", ""))) for each in said)
            if size > most and any(each["role"] == "assistant" for each in said):
                best, most = session, size
        return best

    def begin(self) -> Session:
        """A new session."""
        self.count += 1
        session = self._live[self.count] = Session(self.count)
        if len(self._live) > REMEMBERED:
            self._live.popitem(last=False)
        return session

    def update(self, session: Session, request: LoggedRequest) -> None:
        """The session has had this request, and its reply if there is one."""
        if self._by_chain.get(session.chain) == session.number:
            del self._by_chain[session.chain]
        if len(self._passed) > PASSED:
            self._older, self._passed = self._passed, {}
        session.messages = [*request.messages, *([request.reply] if request.reply else [])]
        session.has_reply, session.requests = request.reply is not None, session.requests + 1
        numbers = chains(session.messages)
        session.chain = numbers[-1]
        self._by_chain[session.chain] = session.number
        for number in numbers[len(request.messages) - 1 :]:
            self._passed[number] = session.number
        for message in session.messages[-3:]:
            self._by_message[hash(meaning(message))] = session.number
        if request.session is not None:
            self._named[request.session] = session.number
        if session.number in self._live:
            self._live.move_to_end(session.number)
        else:
            self._live[session.number] = session
