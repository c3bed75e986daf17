"""Messages to token ids, a delta at a time, through the model's own chat template.

A conversation's token ids only ever grow. So a turn does not render the conversation again: it takes the text that the
template puts *behind* a reply, up to the opening of the next one, and cuts it at the special token that ends a reply,
where no tokenizer merges anything. What the model has seen stays as it was, even where the template would write it
otherwise by now.

Most templates put the same text behind a reply whatever came before it. Then a short stand-in serves for the history,
and a turn costs nothing per old message. `Chat` tries a template on probes when it is made; one that looks further
back for this text (at the first message, say, to repeat it in the last) is given the whole history at every turn.

Text that spells a special token becomes that token, as it does in transformers: look for `<|im_start|>` in what
strangers write before you pass it on.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from minstate.chat.messages import Message, Messages, normalise, normalise_tools, signatures, with_calls_as_text
from minstate.errors import BadMessage, UnsupportedModel

TOOLS_PROMPT = """\
You may call functions. Their signatures, one JSON object a line, are between <tools> and </tools>:
<tools>
{signatures}
</tools>
To call one, write its name and arguments as a JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the function", "arguments": {{"parameter": "value"}}}}
</tool_call>"""

REPLY = "\ue000reply\ue000"  # stands for a reply, to find what the template puts behind it
STAND_IN = ({"role": "user", "content": "stand-in"},)  # for a history
TOOL = {"type": "function", "function": {"name": "probe_tool", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "probe_call", "arguments": {}}]}
RESULT = {"role": "tool", "name": "probe_call", "content": "probe result", "tool_call_id": "call00000"}
_TALK = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "<think>\nwell\n</think>\n\nanswer"}]
_MORE = [{"role": "user", "content": "another question"}]
PROBES = [
    (history, new)
    for history in (
        _MORE,
        [{"role": "system", "content": "system text"}, *_MORE],
        [*_TALK, *_MORE],
        [{"role": "system", "content": "system text"}, *_TALK, *_TALK, *_MORE, _TALK[1], RESULT],
    )
    for new in (_MORE, [RESULT], [RESULT, RESULT], [RESULT, *_MORE], [CALL, RESULT])
]


@dataclass(frozen=True)
class Transcript:
    """What was said, as messages. A session's log ends inside a reply, the last of them.

    messages     None: not known, since raw token ids were sent
    in_log       how many of them are in the log; if not all are, the next turn renders the conversation as a whole
    reply_start  position in the log at which the last reply begins
    """

    messages: tuple[Message, ...] | None = ()
    tools: tuple[Message, ...] = ()
    in_log: int = 0
    reply_start: int = 0

    @property
    def waits(self) -> bool:
        """Whether something was said that is not in the log."""
        return self.messages is not None and (self.in_log < len(self.messages) or bool(self.tools and not self.in_log))

    def not_in_log(self) -> "Transcript":
        """As a stateless client says it: all messages at every turn."""
        return replace(self, in_log=0)

    def asked(self, messages: Messages, reply_start: int) -> "Transcript":
        """With new messages, to which a reply begins at `reply_start`."""
        known = None if self.messages is None else (*self.messages, *messages)
        return replace(self, messages=known, reply_start=reply_start)

    def asked_in_ids(self) -> "Transcript":
        """With raw token ids, of which nobody knows what messages they are."""
        return replace(self, messages=None)

    def completed(self, log: list[int], prompt_length: int, text: str, tokenizer) -> "Transcript":
        """Once `text` is the answer to `log[:prompt_length]`, which may end inside a reply that was cut off."""
        if self.messages is None:  # nor is it known where the reply began
            return self
        begun = tokenizer.decode(log[self.reply_start : prompt_length], skip_special_tokens=True)
        return self.answered(begun + text)

    def answered(self, text: str) -> "Transcript":
        """With the reply, of messages that are known; instead of its beginning, where it went on from one."""
        goes_on = self.messages and self.in_log == len(self.messages)
        messages = (*(self.messages[:-1] if goes_on else self.messages), {"role": "assistant", "content": text})
        return replace(self, messages=messages, in_log=len(messages))


class Continuation(NamedTuple):
    """What a turn's input does to a log."""

    keep: int  # tokens of the log that stay
    ids: list[int]  # token ids that follow
    said: Transcript  # what has been said then


class Chat:
    """A tokenizer's chat template. Raises `UnsupportedModel` if it has none, or none that can be used."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise UnsupportedModel("the tokenizer has no chat template: send token_ids")
        user = STAND_IN[0]
        self._knows_tools = self._shows([user], "probe_tool", tools=[TOOL])
        self._knows_calls = self._shows([user, CALL, user], "probe_call")
        self._knows_results = self._shows([user, {"role": "assistant", "content": REPLY}, RESULT], "probe result")
        try:
            closing = self.encode(self._behind_reply(STAND_IN, (), ()))
        except BadMessage as error:
            raise UnsupportedModel(f"the chat template refuses a plain conversation: {error}") from error
        # Added tokens are cut out of a text before anything else happens to it, so ids may be joined at one.
        self._atoms = frozenset(tokenizer.added_tokens_decoder)
        self.end_of_reply = closing[0] if closing and closing[0] in self._atoms else None
        self.looks_back = any(not self._same_behind_stand_in(*probe) for probe in PROBES)

    def render(self, messages: Messages, tools: Messages = (), *, reply: bool) -> str:
        """The template's text of normalised messages; with the opening of a reply, if `reply`. Raises `BadMessage`."""
        if tools and not self._knows_tools:
            messages, tools = _with_tools_in_system_message(messages, tools), ()
        try:
            return self.tokenizer.apply_chat_template(
                [self._adapt(message) for message in messages],
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=reply,
            )
        except Exception as error:  # templates raise what they like
            raise BadMessage(f"the chat template refuses these messages: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Raises `BadMessage` if it is none."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadMessage(f"a message or tool holds a lone surrogate, which is not valid text: {error}") from error
        return self.tokenizer.encode(text, add_special_tokens=False)

    def open(self, messages, tools) -> Transcript:
        """A conversation that begins with `messages` and knows `tools`. Raises `BadMessage`."""
        empty = isinstance(messages, list | tuple) and not messages
        said = Transcript(() if empty else normalise(messages), normalise_tools(tools))
        if said.messages:
            self.encode(self.render(said.messages, said.tools, reply=False))
        elif said.tools:  # many templates refuse to render no message at all
            self.encode(signatures(said.tools))
        return said

    def read(self, said: Transcript, log: list[int], messages) -> Continuation:
        """The input of a turn of messages; `[]` answers those that wait. Raises `BadMessage`."""
        new = () if said.waits and isinstance(messages, list | tuple) and not messages else normalise(messages)
        if log and not said.waits:
            ids, keep = self.delta(said, new, log[-1]), len(log)
        else:
            whole = self.prompt(said, new)
            keep = common_prefix(log, whole)
            ids = whole[keep:]
        return Continuation(keep, ids, said.asked(new, reply_start=keep + len(ids)))

    def read_ids(self, said: Transcript, log: list[int], ids: list[int]) -> Continuation:
        """The input of a turn of raw ids, behind messages that wait. Raises `BadMessage`."""
        whole = self.encode(self.render(said.messages, said.tools, reply=False)) + ids
        keep = common_prefix(log, whole)
        return Continuation(keep, whole[keep:], said.asked_in_ids())

    def prompt(self, said: Transcript, messages: Messages) -> list[int]:
        """All token ids of what was said, of `messages`, and of the opening of a reply, rendered as a whole."""
        return self.encode(self.render((*said.messages, *messages), said.tools, reply=True))

    def delta(self, said: Transcript, messages: Messages, last_token: int) -> list[int]:
        """What a log gets that ends inside a reply, with `last_token`: its end, `messages`, the opening of the next."""
        history = said.messages[:-1] if self.looks_back and said.messages else STAND_IN
        tools = said.tools if self.looks_back else ()
        ids = self.encode(self._behind_reply(history, messages, tools))
        # A reply that stopped by itself has sampled its end; one that was cut off still lacks it.
        return ids[1:] if ids[:1] == [last_token] and last_token in self._atoms else ids

    def reply(self, message: str | Message) -> list[int]:
        """Token ids of an assistant's message, as text or with tool calls, and of its end. Raises `BadMessage`."""
        (said,) = normalise({"role": "assistant", "content": message} if isinstance(message, str) else message)
        if said["role"] != "assistant":
            raise BadMessage(f"a reply is the assistant's, not of role {said['role']!r}")
        return self.encode(with_calls_as_text(said)["content"]) + [self.end_of_reply] * (self.end_of_reply is not None)

    def _behind_reply(self, history: Messages, messages: Messages, tools: Messages) -> str:
        """What the template puts behind a reply that follows on `history`: up to the next reply, if `messages` do."""
        asked = [*history, {"role": "assistant", "content": REPLY}, *messages]
        _, found, behind = self.render(asked, tools, reply=bool(messages)).partition(REPLY)
        if not found:
            raise UnsupportedModel("the chat template leaves out the assistant's replies: send token_ids")
        return behind

    def _same_behind_stand_in(self, history: Messages, messages: Messages) -> bool:
        tools = [TOOL] * self._knows_tools
        try:
            whole = self._behind_reply(history, messages, tools)
        except BadMessage:
            return True  # it will refuse such a conversation anyway
        try:
            return whole == self._behind_reply(STAND_IN, messages, ())
        except BadMessage:
            return False

    def _shows(self, messages: list[Message], what: str, tools: Messages = ()) -> bool:
        """Whether the template, given these messages as they are, writes `what` into its text."""
        messages = [_for_template(message) for message in messages]
        try:
            return what in self.tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=False)
        except Exception:
            return False

    def _adapt(self, message: Message) -> Message:
        """The message as the template wants it: what it does not know of tools is written as text, in Hermes style."""
        if message["role"] == "tool" and not self._knows_results:
            return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        return _for_template(message) if self._knows_calls else with_calls_as_text(message)


def _for_template(message: Message) -> Message:
    """Tool calls in the shape that templates read, which is OpenAI's with the arguments as an object."""
    if not message.get("tool_calls"):
        return message
    calls = [{"id": "call00000", "type": "function", "function": dict(call)} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _with_tools_in_system_message(messages: Messages, tools: Messages) -> list[Message]:
    """Describe `tools` at the end of the system message, for a template that knows none."""
    prompt = TOOLS_PROMPT.format(signatures=signatures(tools))
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def common_prefix(a: list[Any], b: list[Any]) -> int:
    """How many items two lists have in common at their beginning."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
