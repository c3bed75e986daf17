"""The conversation as messages, beside the log of token ids that the model saw."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from minstate.chat.messages import Message, Messages
from minstate.chat.tool_calls import Tool


@dataclass(frozen=True)
class Options:
    """What a conversation asks of the chat template.

    variables            passed to the template by name, such as `enable_thinking` or `reasoning_effort`
    content_may_control  whether control tokens that a message spells become control tokens
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    content_may_control: bool = False


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Transcript:
    """The messages of a conversation. A session's log ends inside a reply, which is the last message in the log.

    messages     None: unknown, because raw token ids were sent
    tools        JSON schemas, of which the model is told
    in_log       how many of the messages are in the log. Messages beyond are *pending*: they go with the next turn. If
                 no message is in the log, that turn renders the conversation as a whole
    reply_start  position in the log at which the last reply begins
    thinking     whether the prompt of the last reply has begun the model's thoughts
    verbatim     indices of replies in which the model wrote control tokens itself
    """

    messages: tuple[Message, ...] | None = ()
    tools: tuple[Tool, ...] = ()
    in_log: int = 0
    reply_start: int = 0
    thinking: bool = False
    verbatim: frozenset[int] = frozenset()
    options: Options = NO_OPTIONS

    @property
    def has_pending(self) -> bool:
        """Whether there are messages or tools that are not in the log."""
        if self.messages is None:
            return False
        return self.in_log < len(self.messages) or (self.in_log == 0 and bool(self.tools))

    def with_messages(self, messages: Messages, reply_start: int, *, thinking: bool = False) -> "Transcript":
        """With new messages. The reply to them begins at `reply_start`."""
        known = None if self.messages is None else (*self.messages, *messages)
        return replace(self, messages=known, reply_start=reply_start, thinking=thinking)

    def with_raw_ids(self) -> "Transcript":
        """With raw token ids: which messages these are is unknown."""
        return replace(self, messages=None, thinking=False)

    def with_reply(self, reply: str | Message, *, verbatim: bool = False) -> "Transcript":
        """With the model's reply. A reply that was cut off, and that this one continues, is replaced by it."""
        earlier = self.messages or ()
        if self.in_log == len(earlier):  # no new message: the last one is the reply so far
            earlier = earlier[:-1]
        message = {"role": "assistant", "content": reply} if isinstance(reply, str) else reply
        own = self.verbatim | {len(earlier)} if verbatim else self.verbatim - {len(earlier)}
        return replace(self, messages=(*earlier, message), in_log=len(earlier) + 1, verbatim=own)


class Continuation(NamedTuple):
    """What a turn's input does to a log."""

    keep: int  # tokens of the log that stay
    ids: list[int]  # token ids that follow
    transcript: Transcript  # with the turn's input
    thinking: bool = False  # whether the reply begins inside the model's thoughts

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.keep + len(self.ids)
