"""The conversation as messages, beside the log of token ids that the model saw."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from minstate.chat.messages import Message, Messages
from minstate.chat.tool_calls import Tool


@dataclass(frozen=True)
class Transcript:
    """The messages of a conversation. A session's log ends inside a reply, which is the last message in the log.

    messages     None: unknown, because raw token ids were sent
    tools        JSON schemas, of which the model is told
    in_log       how many of the messages are in the log. Messages beyond are *pending*: the next turn then renders the
                 conversation as a whole
    reply_start  position in the log at which the last reply begins
    """

    messages: tuple[Message, ...] | None = ()
    tools: tuple[Tool, ...] = ()
    in_log: int = 0
    reply_start: int = 0

    @property
    def has_pending(self) -> bool:
        """Whether there are messages or tools that are not in the log."""
        if self.messages is None:
            return False
        return self.in_log < len(self.messages) or (self.in_log == 0 and bool(self.tools))

    def with_messages(self, messages: Messages, reply_start: int) -> "Transcript":
        """With new messages. The reply to them begins at `reply_start`."""
        known = None if self.messages is None else (*self.messages, *messages)
        return replace(self, messages=known, reply_start=reply_start)

    def with_raw_ids(self) -> "Transcript":
        """With raw token ids: which messages these are is unknown."""
        return replace(self, messages=None)

    def with_reply(self, text: str) -> "Transcript":
        """With the model's reply. A reply that was cut off, and that this one continues, is replaced by it."""
        earlier = self.messages or ()
        if self.in_log == len(earlier):  # no new message: the last one is the reply so far
            earlier = earlier[:-1]
        messages = (*earlier, {"role": "assistant", "content": text})
        return replace(self, messages=messages, in_log=len(messages))

    def after_turn(self, log: list[int], prompt_length: int, text: str, tokenizer) -> "Transcript":
        """With the reply that `text` completes: `log[:prompt_length]` holds its beginning if it was cut off before."""
        if self.messages is None:  # then it is also unknown where the reply began
            return self
        begun = tokenizer.decode(log[self.reply_start : prompt_length], skip_special_tokens=True)
        return self.with_reply(begun + text)


class Continuation(NamedTuple):
    """What a turn's input does to a log."""

    keep: int  # tokens of the log that stay
    ids: list[int]  # token ids that follow
    transcript: Transcript  # with the turn's input
