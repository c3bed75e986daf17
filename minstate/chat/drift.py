"""Where a history, given as messages, parts from the tokens that the model saw, and why.

A cache is found again by token ids, and what agents send is text. Between the two, one changed token early in a prompt
costs everything behind it. There are few reasons for one, and each has another cure; hence this detector.
"""

from contextlib import suppress
from dataclasses import dataclass

from minstate.chat.messages import Message, parse_tool_calls, with_calls_as_text
from minstate.chat.template import Chat, Transcript, common_prefix
from minstate.errors import BadMessage

REASONS = {
    "": "the history extends the log",
    "tools": "other tools than before",
    "system": "another system message",
    "edited": "a message was edited",
    "shorter": "the history ends before the log does",
    "template": "the template writes an earlier message in another way than before",
    "retokenised": "the text of a reply does not give back the ids that the model saw",
}


@dataclass(frozen=True)
class Drift:
    """A given history against a log. `at`, `dropped` and `rest` are numbers of tokens."""

    at: int  # of the log, and of the history's rendering, that agree
    dropped: int  # of the log behind that: what a cache loses
    rest: int  # of the rendering behind that: what has to be forwarded
    reason: str  # a key of REASONS; "" if nothing is dropped
    message: int | None  # index of the message in which they part
    seen: str  # the log's text from there on, its beginning
    given: str  # the rendering's

    @property
    def extends(self) -> bool:
        return not self.dropped

    def __str__(self) -> str:
        if self.extends:
            return f"{REASONS['']}: {self.at} tokens agree, {self.rest} are new"
        where = "" if self.message is None else f" in message {self.message}"
        return (
            f"{REASONS[self.reason]}: {self.at} tokens agree{where}, then comes {self.given!r} instead of "
            f"{self.seen!r}; {self.dropped} tokens are lost and {self.rest} to be forwarded"
        )


def find_drift(chat: Chat, log: list[int], said: Transcript, given: Transcript) -> Drift:
    """Compare `given` with a log in which `said` is. Renders and tokenises the whole history."""
    reply = not given.messages or given.messages[-1]["role"] != "assistant"
    text = chat.render(given.messages, given.tools, reply=reply)
    ids = chat.encode(text)
    at = common_prefix(log, ids)
    dropped, rest = len(log) - at, len(ids) - at
    if not dropped:
        return Drift(at, 0, rest, "", None, "", "")
    decode = chat.tokenizer.decode
    reason, message = _why_by_messages(said, given)
    parted = _message_at(chat, given, len(decode(ids[:at])))
    if not reason or (message is not None and message > parted):  # tokens part before messages do
        message = min(parted, len(given.messages) - 1)
        same_text = text.startswith(decode(log[: at + 1]))
        reason = "retokenised" if same_text or _is_verbatim(said.messages, message, text) else "template"
    return Drift(at, dropped, rest, reason, message, decode(log[at : at + 8]), decode(ids[at : at + 8]))


def _why_by_messages(said: Transcript, given: Transcript) -> tuple[str, int | None]:
    """What the messages alone explain: a reason, and the message that it concerns; nothing if they agree."""
    if said.messages is None:
        return "edited", None
    if given.tools != said.tools:
        return "tools", 0
    pairs = zip(said.messages, given.messages, strict=False)
    index = next((i for i, (old, new) in enumerate(pairs) if _meaning(old) != _meaning(new)), None)
    if index is not None:
        roles = {said.messages[index]["role"], given.messages[index]["role"]}
        return "system" if "system" in roles else "edited", index
    if len(given.messages) < len(said.messages):
        return "shorter", len(given.messages)
    return "", None


def _meaning(message: Message) -> tuple:
    """What a message says, however its tool calls and the space around its text are written."""
    text = with_calls_as_text(message)["content"]
    calls = [(call.name, call.arguments, call.error and call.raw) for call in parse_tool_calls(text)]
    return message["role"], text.partition("<tool_call>")[0].strip(), calls


def _message_at(chat: Chat, given: Transcript, position: int) -> int:
    """The message in whose rendering the character at `position` lies; their number, if it lies behind all."""
    for index in range(len(given.messages)):
        with suppress(BadMessage):  # a template may refuse a conversation that stops here
            if len(chat.render(given.messages[: index + 1], given.tools, reply=False)) > position:
                return index
    return len(given.messages)


def _is_verbatim(said: tuple[Message, ...], index: int, text: str) -> bool:
    """Whether a message is a reply, and the template writes it as the model did, so far as text can say."""
    if index >= len(said) or said[index]["role"] != "assistant":
        return False
    return with_calls_as_text(said[index])["content"] in text
