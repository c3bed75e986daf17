"""Where a history, given as messages, differs from the tokens that the model saw, and why.

A cache is looked up by token ids, but agents send text. One token that differs early in a prompt costs all K/V behind
it. There are few reasons for such a difference, and each has another cure, so this module finds out which it is.
"""

from contextlib import suppress
from dataclasses import dataclass

from minstate.chat.content import common_prefix, plain
from minstate.chat.conversation import Chat
from minstate.chat.messages import Message
from minstate.chat.transcript import Transcript
from minstate.errors import BadMessage

REASONS = {
    "": "the history extends the log",
    "tools": "other tools than before",
    "system": "another system message",
    "edited": "a message was edited",
    "shorter": "the history ends before the log does",
    "template": "the template writes an earlier message differently than before",
    "retokenised": "the text of a reply, tokenised again, gives other ids than the model saw",
}


@dataclass(frozen=True)
class Drift:
    """A given history against a log. `at`, `dropped` and `rest` are numbers of tokens."""

    at: int  # tokens at the beginning that the log and the history's rendering have in common
    dropped: int  # tokens of the log behind these: what a cache loses
    rest: int  # tokens of the rendering behind these: what has to be forwarded
    reason: str  # a key of REASONS; "" if nothing is dropped
    message: int | None  # index of the message in which the first difference is
    seen: str  # the first few tokens of the log from there on, as text
    given: str  # the same of the rendering

    @property
    def extends(self) -> bool:
        """Whether the history gives back the whole log."""
        return not self.dropped

    def __str__(self) -> str:
        if self.extends:
            return f"{REASONS['']}: {self.at} tokens agree, {self.rest} are new"
        where = "" if self.message is None else f" in message {self.message}"
        return (
            f"{REASONS[self.reason]}: {self.at} tokens agree{where}, then comes {self.given!r} instead of "
            f"{self.seen!r}; {self.dropped} tokens are lost and {self.rest} to be forwarded"
        )


def find_drift(chat: Chat, log: list[int], transcript: Transcript, given: Transcript) -> Drift:
    """Compare the history `given` with a log and its transcript. Renders and tokenises the whole history."""
    messages = given.messages or ()
    reply = not messages or messages[-1]["role"] != "assistant"
    own = frozenset(i for i in transcript.verbatim if messages[i : i + 1] == (transcript.messages or ())[i : i + 1])
    text = chat.render(messages, given.tools, reply=reply, options=given.options, verbatim=own)
    ids = chat.encode(text)
    at = common_prefix(log, ids)
    dropped, rest = len(log) - at, len(ids) - at
    if not dropped:
        return Drift(at, 0, rest, "", None, "", "")
    decode, text = chat.tokenizer.decode, plain(text)
    reason, message = _first_change(chat, transcript, given)
    differs_in = _message_at(chat, given, position=len(decode(ids[:at])))
    if not reason or (message is not None and message > differs_in):  # tokens differ before messages do
        message = min(differs_in, len(messages) - 1)
        same_text = any(text.startswith(decode(log[: at + more])) for more in range(1, 5))  # a token may be torn
        reason = "retokenised" if same_text else "template"
    return Drift(at, dropped, rest, reason, message, decode(log[at : at + 8]), decode(ids[at : at + 8]))


def _first_change(chat: Chat, transcript: Transcript, given: Transcript) -> tuple[str, int | None]:
    """The first change between the messages: a reason, and the index of the message; `("", None)` if they agree."""
    if transcript.messages is None:
        return "edited", None
    if (given.tools, given.options) != (transcript.tools, transcript.options):
        return "tools", 0
    old, new = transcript.messages, given.messages or ()
    for index, (before, now) in enumerate(zip(old, new, strict=False)):
        if _meaning(chat, before) != _meaning(chat, now):
            return "system" if "system" in (before["role"], now["role"]) else "edited", index
    return ("shorter", len(new)) if len(new) < len(old) else ("", None)


def _meaning(chat: Chat, message: Message) -> tuple:
    """The content of a message, however its tool calls and the space around its text are written."""
    if message["role"] != "assistant":
        return message["role"], message["content"].strip(), []
    reply = chat.dialect.read(chat.dialect.write_message(message))
    calls = [(call.name, call.arguments, call.raw if call.error else "") for call in reply.calls]
    return "assistant", reply.content.strip(), calls


def _message_at(chat: Chat, given: Transcript, position: int) -> int:
    """The index of the message whose rendering holds the character at `position`; behind all, how many there are."""
    messages = given.messages or ()
    for index in range(len(messages)):
        with suppress(BadMessage):  # a template may refuse a conversation that stops here
            text = chat.render(messages[: index + 1], given.tools, reply=False, options=given.options)
            if len(plain(text)) > position:
                return index
    return len(messages)
