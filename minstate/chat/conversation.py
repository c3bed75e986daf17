"""From messages to token ids, a delta at a time, and from a reply's ids back to a message.

The token ids of a conversation only ever grow, so a turn does not render the conversation again. It takes the text that
the template writes *behind* a reply, up to the opening of the next reply. It cuts this text at the control token that
ends a reply, because no tokenizer merges anything there. The log keeps the tokens that the model saw, even where the
template would now write an earlier message differently.

Most templates write the same text behind a reply, whatever the history. A short stand-in then takes the place of the
history, and a turn costs nothing per old message. `Chat` tries its template on probes to find out. Some templates look
back for this text, for example at the first message, which they repeat in the last one. Such a template is given the
whole history at every turn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minstate.chat.content import common_prefix
from minstate.chat.dialect import Dialect, Reply
from minstate.chat.messages import Message, Messages, normalise, normalise_tools
from minstate.chat.probing import PROBE_TOOLS
from minstate.chat.template import CALL, RESULT, STAND_IN, Template
from minstate.chat.tool_calls import ToolCall, Tools, signatures
from minstate.chat.transcript import NO_OPTIONS, Continuation, Options, Transcript
from minstate.errors import BadMessage, ContextOverflow, UnsupportedModel

_TALK: list[Message] = [
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\nanswer"},
]
_MORE: list[Message] = [{"role": "user", "content": "another question"}]
_RESULTS = [RESULT, RESULT]
_CALLED: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
LETTERS_OF_A_TOKEN = 64  # at most, on average, unless the longest has more: spaces may be none, words may be unknown
PROBES: list[tuple[Messages, Sequence[Mapping[str, Any]], Messages]] = [
    (history, calls, new)
    for history in (
        _MORE,
        [{"role": "system", "content": "system text"}, *_MORE],
        [*_TALK, *_MORE],
        [{"role": "system", "content": "system text"}, *_TALK, *_TALK, *_MORE],
        [*_MORE, _CALLED, RESULT],  # an agent goes on calling
    )
    for calls, new in (([], _MORE), ([CALL], [RESULT]), ([CALL, CALL], _RESULTS), ([CALL], [RESULT, *_MORE]))
]


class Chat:
    """A tokenizer's conversations. Raises `UnsupportedModel` if its chat template is missing, or cannot be used.

    eos_ids    tokens that end a reply, besides those that the template writes behind one
    positions  of the model
    """

    def __init__(self, tokenizer, eos_ids: frozenset[int] = frozenset(), positions: float = math.inf):
        try:
            self.template = Template(tokenizer, eos_ids)
        except BadMessage as error:
            raise UnsupportedModel(f"the chat template refuses a plain conversation: {error}") from error
        self.tokenizer = tokenizer
        self.render = self.template.render
        self._most_letters = positions * max(LETTERS_OF_A_TOKEN, *map(len, tokenizer.get_vocab()))
        self.dialect: Dialect = self.template.dialect  # how the model writes tool calls and thoughts
        self.end_of_reply: int | None = self.template.end  # the token that ends a reply, if the template writes one
        self.looks_back = any(not self._same_behind_stand_in(*probe) for probe in PROBES)

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Raises `BadMessage` if it is not valid text.

        Raises `ContextOverflow` before a text is encoded that is longer than the longest token at each position.
        """
        if len(text) > self._most_letters:
            raise ContextOverflow(f"a text of {len(text):,} letters cannot fit into the model's context: shorten it")
        return self.template.encode(text)

    def describe(self) -> str:
        """How the model's conversations are written: one line for each part."""
        looks_back = "the whole history" if self.looks_back else "nothing of the history"
        return f"{self.template.describe()}\n{'a turn renders':16}  {looks_back}"

    def new_transcript(self, messages, tools, options: Options = NO_OPTIONS) -> Transcript:
        """A conversation that begins with `messages` and `tools`, all of them pending. Raises `BadMessage`."""
        empty = isinstance(messages, list | tuple) and not messages
        transcript = Transcript(() if empty else normalise(messages), normalise_tools(tools), options=options)
        # Rendering and encoding show here what cannot be sent, and not in the first turn.
        if transcript.messages:
            try:
                text = self._rendered(transcript, reply=False)
            except BadMessage:
                if any(message["role"] not in ("system", "developer") for message in transcript.messages):
                    raise
                text = self._rendered(transcript, STAND_IN, reply=False)  # the first question is still to come
            self.encode(text)
        elif transcript.tools:  # many templates refuse to render without any message
            self.encode(signatures(transcript.tools))
        return transcript

    def read_messages(self, transcript: Transcript, log: list[int], messages) -> Continuation:
        """The input of a turn of messages; `[]` lets the model answer pending ones. Raises `BadMessage`.

        A last message of the assistant's is the beginning of the reply.
        """
        empty = isinstance(messages, list | tuple) and not messages
        new = () if empty and transcript.has_pending else normalise(messages)
        begun = ""
        if new and new[-1]["role"] == "assistant":
            new, begun = new[:-1], self.dialect.write_message(new[-1])
            if not transcript.options.content_may_control:
                begun = self.template.control.protect(begun, self.template.marks)
        if not new and not transcript.has_pending:
            raise BadMessage("the beginning of a reply needs a message in front of it, to which it replies")
        behind = bool(log) and (transcript.in_log > 0 or not transcript.has_pending)
        text = self.behind_reply(transcript, new) if behind else self._rendered(transcript, new, reply=True)
        whole = self.encode(text + begun)
        prompt_length = common_prefix(whole, self.encode(text)) if begun else len(whole)
        if behind:
            keep = len(log) - 1 if self._ends_otherwise(transcript, log[-1]) else len(log)
            ids = self._without_end(transcript, whole, log[-1])
            reply_start = keep + prompt_length - (len(whole) - len(ids))
        else:
            keep, reply_start = common_prefix(log, whole), prompt_length
            ids = whole[keep:]
        known = transcript.with_messages(new, reply_start, thinking=self.begins_thoughts(text))
        return Continuation(keep, ids, known, self.is_thinking(begun, known.thinking))

    def continued(self, transcript: Transcript, given: Transcript) -> Transcript | None:
        """A transcript with the messages of a history that goes on from it; None if the history does not."""
        said = (transcript.messages or ())[: transcript.in_log]
        same = (given.tools, given.options) == (transcript.tools, transcript.options)
        goes_on = same and said and (given.messages or ())[: len(said)] == said
        return replace(transcript, messages=given.messages) if goes_on else None

    def read_ids(self, transcript: Transcript, log: list[int], ids: list[int]) -> Continuation:
        """The input of a turn of raw ids behind pending messages. Raises `BadMessage`."""
        whole = self.encode(self._rendered(transcript, reply=False)) + ids
        keep = common_prefix(log, whole)
        return Continuation(keep, whole[keep:], transcript.with_raw_ids())

    def prompt(self, transcript: Transcript, messages: Messages) -> list[int]:
        """Token ids of the whole conversation, of `messages`, and of the opening of a reply, rendered as one text."""
        return self.encode(self._rendered(transcript, messages, reply=True))

    def delta(self, transcript: Transcript, messages: Messages, last_token: int) -> list[int]:
        """The token ids behind a log that ends inside a reply: its end, `messages`, and the opening of the next reply.

        transcript  all of whose messages are in the log
        last_token  of the log
        """
        said = replace(transcript, in_log=len(transcript.messages or ()))
        return self._without_end(said, self.encode(self.behind_reply(said, messages)), last_token)

    def encode_reply(self, message: str | Message) -> list[int]:
        """Token ids of an assistant's message, as text or with tool calls, and of its end. Raises `BadMessage`."""
        (message,) = normalise({"role": "assistant", "content": message} if isinstance(message, str) else message)
        if message["role"] != "assistant":
            raise BadMessage(f"a reply must have the role 'assistant', not {message['role']!r}")
        ids = self.encode(self.dialect.write_message(message))
        end = self.template.end_of_calls if message.get("tool_calls") else self.template.end
        return ids if end is None else [*ids, end]

    def read_reply(self, log: list[int], start: int, tools: Tools = (), *, thinking: bool = False) -> Reply:
        """Take the reply apart that begins at a position of the log and goes on to its end."""
        return self.dialect.read(decode_reply(self.tokenizer, log, start, self.template.ends), tools, thinking=thinking)

    def after_turn(self, transcript: Transcript, log: list[int]) -> Transcript:
        """The transcript with the reply at the end of the log."""
        if transcript.messages is None:  # then it is also unknown where the reply began
            return transcript
        reply = self.read_reply(log, transcript.reply_start, thinking=transcript.thinking)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.calls and not any(call.error for call in reply.calls):
            calls = numbered(reply.calls, transcript, self.dialect)
            message["content"] = reply.content
            message["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in calls]
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        return transcript.with_reply(message, verbatim=self._holds_control(log[transcript.reply_start :]))

    def _holds_control(self, ids: list[int]) -> bool:
        """Whether the model wrote control tokens of others into its reply, and none of them in letters."""
        while ids and ids[-1] in self.template.ends:
            ids = ids[:-1]
        others = {i for token, i in self.template.control.ids.items() if token not in self.template.marks}
        return not others.isdisjoint(ids) and self.encode(self.tokenizer.decode(ids)) == ids

    def is_thinking(self, begun: str, thinking: bool) -> bool:
        """Whether a reply that has begun like this is inside the model's thoughts.

        thinking  whether its prompt had begun them
        """
        if not self.dialect.think:
            return False
        opens, closes = (mark.strip() for mark in self.dialect.think)
        return (thinking or begun.lstrip().startswith(opens)) and closes not in begun

    def begins_thoughts(self, text: str) -> bool:
        """Whether a prompt ends with the beginning of the model's thoughts."""
        return self.dialect.think is not None and text.rstrip().endswith(self.dialect.think[0].strip())

    def _rendered(self, transcript: Transcript, messages: Messages = (), *, reply: bool) -> str:
        conversation = (*(transcript.messages or ()), *messages)
        return self.render(
            conversation, transcript.tools, reply=reply, options=transcript.options, verbatim=transcript.verbatim
        )

    def behind_reply(self, transcript: Transcript, messages: Messages) -> str:
        """The template's text behind the last reply in the log, up to the reply to `messages`."""
        said = (transcript.messages or ())[: transcript.in_log]
        messages = (*(transcript.messages or ())[transcript.in_log :], *messages)
        history = said[:-1] if said and self.looks_back else STAND_IN
        tools = transcript.tools if self.looks_back else ()
        return self.template.behind_reply(history, self._last_calls(transcript), messages, tools, transcript.options)

    def _last_calls(self, transcript: Transcript) -> list[Mapping[str, Any]]:
        """The calls of the last reply in the log, with ids."""
        *before, last = [
            message.get("tool_calls", ()) for message in (transcript.messages or ())[: transcript.in_log]
        ] or [()]
        return [{"id": self.template.call_id(call, sum(map(len, before)) + i), **call} for i, call in enumerate(last)]

    def _closing(self, transcript: Transcript) -> list[int]:
        return self.template.closing_of_calls if self._last_calls(transcript) else self.template.closing

    def _without_end(self, transcript: Transcript, ids: list[int], last_token: int) -> list[int]:
        """The ids behind a reply, without the part of its end that the model has written already."""
        atoms = self.template.control.ids.values()
        if last_token not in atoms:
            return ids
        end = ids[: max(1, len(self._closing(transcript)))]
        return ids[end.index(last_token) + 1 :] if last_token in end else ids

    def _ends_otherwise(self, transcript: Transcript, last_token: int) -> bool:
        """Whether the model ended its reply with another token than the template does, whose end then replaces it."""
        closing = self._closing(transcript)
        return last_token in self.template.ends and bool(closing) and last_token not in closing

    def _same_behind_stand_in(self, history: Messages, calls: Sequence[Mapping[str, Any]], messages: Messages) -> bool:
        """Whether the template writes `messages` behind the stand-in as it does behind `history`."""
        tools = PROBE_TOOLS if self.template.knows_tools else ()
        try:
            behind = self.template.behind_reply(history, calls, messages, tools)
        except BadMessage:
            return True  # the template will refuse such a conversation anyway
        try:
            return behind == self.template.behind_reply(STAND_IN, calls, messages, ())
        except BadMessage:
            return False


def decode_reply(
    tokenizer, log: list[int], start: int, ends: frozenset[int], hidden: frozenset[int] = frozenset()
) -> str:
    """The text of `log[start:]`, control tokens included, but for those that end a reply, and for `hidden` ones.

    It is decoded behind what comes before it, because tokenizers drop a space at the very beginning.
    """
    stop = len(log)
    while stop > start and log[stop - 1] in ends:
        stop -= 1
    context = [token for token in log[max(0, start - 4) : start] if token not in hidden]
    ids = [token for token in log[start:stop] if token not in hidden]
    before, text = tokenizer.decode(context), tokenizer.decode(context + ids)
    return text[len(before) :] if text.startswith(before) else tokenizer.decode(ids)


def numbered(calls: Sequence[ToolCall], transcript: Transcript, dialect: Dialect) -> tuple[ToolCall, ...]:
    """The calls with ids, which count on from those of the conversation where the model wrote none."""
    first = sum(len(message.get("tool_calls", ())) for message in transcript.messages or ())
    ids = (dialect.ids.format(name=call.name, index=first + i) for i, call in enumerate(calls))
    return tuple(replace(call, id=call.id or own) for call, own in zip(calls, ids, strict=True))


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
    if token_ids or not transcript.messages:
        return Continuation(len(log), token_ids, transcript.with_raw_ids())
    begun = chat().tokenizer.decode(log[transcript.reply_start :])
    return Continuation(len(log), [], transcript, chat().is_thinking(begun, transcript.thinking))
