"""From messages to token ids, a delta at a time, through the model's own chat template.

The token ids of a conversation only ever grow, so a turn does not render the conversation again. It takes the text that
the template writes *behind* a reply, up to the opening of the next reply. It cuts this text at the special token that
ends a reply, because no tokenizer merges anything there. The log keeps the tokens that the model saw, even where the
template would now write an earlier message differently.

Most templates write the same text behind a reply, whatever the history. A short stand-in then takes the place of the
history, and a turn costs nothing per old message. `Chat` tries its template on probes to find out. Some templates look
back for this text, for example at the first message, which they repeat in the last one. Such a template is given the
whole history at every turn.

Text that spells a special token becomes that token, as it does in transformers. So check text that strangers wrote for
`<|im_start|>` and the like before you pass it on.
"""

from collections.abc import Callable
from typing import Any

from minstate.chat.messages import Message, Messages, normalise, normalise_tools
from minstate.chat.tool_calls import Tools, signatures, text_with_calls, tool_response, tools_prompt
from minstate.chat.transcript import Continuation, Transcript
from minstate.errors import BadMessage, UnsupportedModel

REPLY = "\ue000reply\ue000"  # takes the place of a reply, to find the text that the template writes behind it
STAND_IN = ({"role": "user", "content": "stand-in"},)  # takes the place of a history
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
        # A tokenizer cuts added tokens out of a text before it does anything else, so ids may be joined at one.
        self._atoms = frozenset(tokenizer.added_tokens_decoder)
        self.end_of_reply = closing[0] if closing and closing[0] in self._atoms else None
        self.looks_back = any(not self._same_behind_stand_in(*probe) for probe in PROBES)

    def render(self, messages: Messages, tools: Tools = (), *, reply: bool) -> str:
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
        except Exception as error:  # a template may raise anything
            raise BadMessage(f"the chat template refuses these messages: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Raises `BadMessage` if it is not valid text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadMessage(f"a message or tool holds a lone surrogate, which is not valid text: {error}") from error
        return self.tokenizer.encode(text, add_special_tokens=False)

    def new_transcript(self, messages, tools) -> Transcript:
        """A conversation that begins with `messages` and `tools`, all of them pending. Raises `BadMessage`."""
        empty = isinstance(messages, list | tuple) and not messages
        transcript = Transcript(() if empty else normalise(messages), normalise_tools(tools))
        # Rendering and encoding show here what cannot be sent, and not in the first turn.
        if transcript.messages:
            self.encode(self.render(transcript.messages, transcript.tools, reply=False))
        elif transcript.tools:  # many templates refuse to render without any message
            self.encode(signatures(transcript.tools))
        return transcript

    def read_messages(self, transcript: Transcript, log: list[int], messages) -> Continuation:
        """The input of a turn of messages; `[]` lets the model answer pending ones. Raises `BadMessage`."""
        empty = isinstance(messages, list | tuple) and not messages
        new = () if empty and transcript.has_pending else normalise(messages)
        if log and not transcript.has_pending:
            ids, keep = self.delta(transcript, new, log[-1]), len(log)
        else:
            whole = self.prompt(transcript, new)
            keep = common_prefix(log, whole)
            ids = whole[keep:]
        return Continuation(keep, ids, transcript.with_messages(new, reply_start=keep + len(ids)))

    def read_ids(self, transcript: Transcript, log: list[int], ids: list[int]) -> Continuation:
        """The input of a turn of raw ids behind pending messages. Raises `BadMessage`."""
        whole = self.encode(self.render(transcript.messages or (), transcript.tools, reply=False)) + ids
        keep = common_prefix(log, whole)
        return Continuation(keep, whole[keep:], transcript.with_raw_ids())

    def prompt(self, transcript: Transcript, messages: Messages) -> list[int]:
        """Token ids of the whole conversation, of `messages`, and of the opening of a reply, rendered as one text."""
        conversation = (*(transcript.messages or ()), *messages)
        return self.encode(self.render(conversation, transcript.tools, reply=True))

    def delta(self, transcript: Transcript, messages: Messages, last_token: int) -> list[int]:
        """The token ids behind a log that ends inside a reply: its end, `messages`, and the opening of the next reply.

        last_token  of the log
        """
        history = transcript.messages[:-1] if self.looks_back and transcript.messages else STAND_IN
        tools = transcript.tools if self.looks_back else ()
        ids = self.encode(self._behind_reply(history, messages, tools))
        # If the model ended its reply itself, the log has the end already; a reply that was cut off lacks it.
        return ids[1:] if ids[:1] == [last_token] and last_token in self._atoms else ids

    def encode_reply(self, message: str | Message) -> list[int]:
        """Token ids of an assistant's message, as text or with tool calls, and of its end. Raises `BadMessage`."""
        (message,) = normalise({"role": "assistant", "content": message} if isinstance(message, str) else message)
        if message["role"] != "assistant":
            raise BadMessage(f"a reply must have the role 'assistant', not {message['role']!r}")
        ids = self.encode(text_with_calls(message))
        return ids if self.end_of_reply is None else [*ids, self.end_of_reply]

    def _behind_reply(self, history: Messages, messages: Messages, tools: Tools) -> str:
        """The template's text behind a reply to `history`: the end of the reply, or up to the reply to `messages`."""
        conversation = [*history, {"role": "assistant", "content": REPLY}, *messages]
        _, found, behind = self.render(conversation, tools, reply=bool(messages)).partition(REPLY)
        if not found:
            raise UnsupportedModel("the chat template leaves out the assistant's replies: send token_ids")
        return behind

    def _same_behind_stand_in(self, history: Messages, messages: Messages) -> bool:
        """Whether the template writes `messages` behind the stand-in as it does behind `history`."""
        try:
            behind = self._behind_reply(history, messages, [TOOL] if self._knows_tools else ())
        except BadMessage:
            return True  # the template will refuse such a conversation anyway
        try:
            return behind == self._behind_reply(STAND_IN, messages, ())
        except BadMessage:
            return False

    def _shows(self, messages: list[Message], text: str, tools: Tools = ()) -> bool:
        """Whether `text` is in what the template writes of these messages, which are passed to it unchanged."""
        messages = [_for_template(message) for message in messages]
        try:
            return text in self.tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=False)
        except Exception:  # noqa: BLE001  a template may raise anything
            return False

    def _adapt(self, message: Message) -> Message:
        """The message for the template. Calls and results that the template cannot write become text."""
        if message["role"] == "tool" and not self._knows_results:
            return {"role": "user", "content": tool_response(message["content"])}
        if message.get("tool_calls") and not self._knows_calls:
            return {"role": message["role"], "content": text_with_calls(message)}
        return _for_template(message)


def read_input(
    chat: Callable[[], Chat], transcript: Transcript, log: list[int], messages, token_ids: list[int] | None
) -> Continuation:
    """What a turn's input, messages or raw ids, does to the log.

    Costs nothing per old token, unless messages are pending. `chat` is called only if a template is needed: raw ids
    alone need none. Raises `BadMessage`, and what `chat` raises.
    """
    if (messages is None) == (token_ids is None):
        raise BadMessage("send either messages or token_ids")
    if token_ids is None:
        return chat().read_messages(transcript, log, messages)
    if transcript.has_pending:
        return chat().read_ids(transcript, log, token_ids)
    if not log and not token_ids:
        raise BadMessage("the first turn needs at least one token")
    continues_reply = not token_ids and transcript.messages
    return Continuation(len(log), token_ids, transcript if continues_reply else transcript.with_raw_ids())


def _for_template(message: Message) -> Message:
    """Tool calls in the shape that templates read, which is OpenAI's with the arguments as an object."""
    if not message.get("tool_calls"):
        return message
    calls = [{"id": "call00000", "type": "function", "function": dict(call)} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def _with_tools_in_system_message(messages: Messages, tools: Tools) -> list[Message]:
    """Describe `tools` at the end of the system message, for a template that cannot do it."""
    prompt = tools_prompt(tools)
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def common_prefix(a: list[Any], b: list[Any]) -> int:
    """How many items two lists have in common at their beginning."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
