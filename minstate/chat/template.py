"""A model's own chat template: what it can write, and the text that it writes of messages.

Templates are programs of their models' makers, and no two families agree on what they take. `Template` tries its
template on *probes* when it is made. What the template cannot write, `render` writes into messages that it can: tools
into the system message, results into a user's message, calls and thoughts into the text of a reply.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from minstate.chat.content import ControlTokens
from minstate.chat.messages import Message, Messages, in_order_of_calls
from minstate.chat.probing import PROBE_TOOLS, find_dialect
from minstate.chat.sandbox import Stopped, render
from minstate.chat.tool_calls import Tools, signatures
from minstate.chat.transcript import NO_OPTIONS, Options
from minstate.errors import BadMessage, UnsupportedModel

# Takes the place of a reply, to find the text that the template writes behind it. Letters, because templates may escape
# others; and random, so that no message holds it.
REPLY = f"reply{secrets.token_hex(8)}"
STAND_IN = ({"role": "user", "content": "stand-in"},)  # takes the place of a history
CALL = {"name": PROBE_TOOLS[0]["function"]["name"], "arguments": {"alpha": "a", "beta": 1}}
RESULT = {"role": "tool", "content": "probe result"}
STAND_IN_REPLY = {"role": "assistant", "content": "stand-in"}
THOUGHT = {"role": "assistant", "content": "answer", "reasoning_content": "probe thought"}


class Template:
    """The chat template of a tokenizer. Raises `UnsupportedModel` if it has none, or none that can be used.

    eos_ids  tokens that end a reply, besides those that the template writes behind one
    """

    stopped: Stopped | None = None  # a template that takes too much for a probe is not tried again

    def __init__(self, tokenizer, eos_ids: frozenset[int] = frozenset()):
        self.tokenizer, self.control = tokenizer, ControlTokens(tokenizer)
        source = getattr(tokenizer, "chat_template", None)
        if not source:
            raise UnsupportedModel("the tokenizer has no chat template: send token_ids")
        user, self.knows_results = STAND_IN[0], True
        self.wants_parts = not self._shows([user], "stand-in") and self._shows([_in_parts(user)], "stand-in")
        self.knows_tools = self._shows([user], "probe_tool_a", PROBE_TOOLS)
        self.knows_system = self._shows([{"role": "system", "content": "probe system"}, user], "probe system")
        self.knows_developer = self._shows([{"role": "developer", "content": "probe system"}, user], "probe system")
        self.knows_thoughts = self._shows([user, THOUGHT], "probe thought")
        spelt = tuple(token for token, i in self.control.ids.items() if i in eos_ids)
        reply_end = self._raw([user, {"role": "assistant", "content": REPLY}]).partition(REPLY)[2]
        text = source if isinstance(source, str) else "\n".join(source.values())
        self.dialect, self.writes_calls = find_dialect(self._probe, text, self.control.ids, spelt, reply_end)
        if self.stopped:
            raise UnsupportedModel(f"the chat template takes too much for a few words: {self.stopped}")
        # What a reply may spell: marks of calls and thoughts, but nothing that ends it, or is between messages.
        marks, ends = "".join(self.dialect.think or ()) + self.dialect.calls, (reply_end, *spelt)
        own = (token for token in self.control.ids if token in marks)
        self.marks = frozenset(token for token in own if not any(token in end for end in ends))
        self.takes_ids = True
        self.knows_results = any(
            self._shows(self._for_template([user, reply, RESULT], NO_OPTIONS, frozenset()), "probe result", PROBE_TOOLS)
            for reply in ({"role": "assistant", "content": "", "tool_calls": [CALL]}, STAND_IN_REPLY)
        )
        asked = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "call_of-an_agent"}]}
        self.takes_ids = bool(
            self._raw(self._for_template([user, asked, RESULT], NO_OPTIONS, frozenset()), PROBE_TOOLS)
        )
        atoms = frozenset(self.control.ids.values())
        try:
            self.closing = self.encode(self.behind_reply(STAND_IN))
        except (BadMessage, UnsupportedModel):  # a template for which a reply is never the last message
            behind = self.encode(self.behind_reply(STAND_IN, messages=STAND_IN))
            self.closing = behind[: next((place + 1 for place, token in enumerate(behind) if token in atoms), 0)]
        try:
            self.closing_of_calls = self.encode(self.behind_reply(STAND_IN, [CALL]))
        except (BadMessage, UnsupportedModel):
            self.closing_of_calls = self.closing
        # Both end with the first control token behind a reply, if there is one.
        self.end, self.end_of_calls = (
            next((token for token in ids if token in atoms), None) for ids in (self.closing, self.closing_of_calls)
        )
        self.ends = eos_ids | {end for end in (self.end, self.end_of_calls) if end is not None}

    def render(
        self,
        messages: Messages,
        tools: Tools = (),
        *,
        reply: bool,
        options: Options = NO_OPTIONS,
        verbatim: frozenset[int] = frozenset(),
    ) -> str:
        """The template's text of normalised messages; with the opening of a reply, if `reply`. Raises `BadMessage`.

        What others wrote is protected in it: `encode` makes token ids of it.

        verbatim  indices of replies whose control tokens are the model's own
        """
        written = self._for_template(messages, options, verbatim)
        safe = tools if options.content_may_control else self.control.protect(tools)
        if safe and not self.knows_tools:
            written, safe = self._with_system_text(written, self._tools_prompt(safe)), ()
        if self.wants_parts:
            written = [_in_parts(message) for message in written]
        try:
            return render(self.tokenizer, written, safe, reply=reply, variables=options.variables)
        except Exception as error:  # a template may raise anything
            raise BadMessage(f"the chat template refuses these messages: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Raises `BadMessage` if it is not valid text."""
        return self.control.encode(text)

    def describe(self) -> str:
        """What was learnt of the template: how it writes each part of a conversation, and what it cannot write."""
        dialect, call = self.dialect, {"name": "f", "arguments": {"text": "a", "number": 1}}
        by_us = {True: "by the template", False: "by minstate, as text"}
        show = self.tokenizer.decode
        lines = {
            "system message": by_us[True] if self.knows_system else "refused",
            "tools": by_us[self.knows_tools] + ("" if self.knows_tools else " of the system message"),
            "calls": f"{by_us[self.writes_calls]}, {dialect.name}: {dialect.write([{'id': 'call00000', **call}])!r}",
            "calls in a reply": "one" if dialect.next is None else "any number",
            "results": by_us[self.knows_results] + ("" if self.knows_results else " of a user's message"),
            "thoughts": "none" if dialect.think is None else f"between {dialect.think[0]!r} and {dialect.think[1]!r}",
            "end of a reply": repr(show(self.closing)) if self.closing else "nothing",
            "end of a call": repr(show(self.closing_of_calls)) if self.closing_of_calls else "nothing",
            "ends a turn": ", ".join(sorted(repr(show([end])) for end in self.ends)) or "nothing",
        }
        return "\n".join(f"{name:16}  {text}" for name, text in lines.items())

    def behind_reply(
        self,
        history: Messages,
        calls: Iterable[Mapping[str, Any]] = (),
        messages: Messages = (),
        tools: Tools = (),
        options: Options = NO_OPTIONS,
    ) -> str:
        """The template's text behind a reply to `history`: the end of the reply, or up to the reply to `messages`.

        calls  of this reply, because templates may end it differently, and look for the calls that results belong to
        """
        reply, seen = {"role": "assistant", "content": REPLY}, REPLY
        numbered = [
            {**call, "id": self.call_id(call, i), "arguments": {"reply": REPLY}} for i, call in enumerate(calls)
        ]
        waiting, messages = numbered, list(messages)
        for place, message in enumerate(messages):
            if message["role"] != "tool":
                break
            messages[place], waiting = self._answer(message, waiting)
        if self.writes_calls and numbered:
            reply = {"role": "assistant", "content": "", "tool_calls": numbered}
            seen = self.dialect.write(
                numbered if options.content_may_control else self.control.protect(numbered, self.marks)
            )
        text = self.render([*history, reply, *messages], tools, reply=bool(messages), options=options)
        _, found, behind = text.rpartition(seen)
        if not found and seen != REPLY:  # the template numbers calls through, or writes them in a way of its own
            _, found, behind = text.rpartition(REPLY)
            behind = behind.partition("}")[2].removeprefix(self.dialect.close)
        if not found:
            raise UnsupportedModel("the chat template leaves out the assistant's replies: send token_ids")
        return behind

    def _for_template(self, messages: Messages, options: Options, verbatim: frozenset[int]) -> list[dict[str, Any]]:
        """Messages as the template takes them, in which nobody but the template can write control tokens."""
        written, waiting, count = [], [], 0
        for index, message in enumerate(messages):
            safe = message if options.content_may_control or index in verbatim else self._protected(message)
            calls = []
            for call in safe.get("tool_calls", ()):
                calls.append({**call, "id": self.call_id(call, count)})
                count += 1
            if safe["role"] == "tool":
                safe, waiting = self._answer(safe, waiting)
            else:
                waiting = calls
            written.append(self._adapted(safe, calls))
        return _with_merged_results(in_order_of_calls(written))

    def _protected(self, message: Message) -> Message:
        """The message with its control tokens broken up, but for the marks that a reply may have."""
        allowed = self.marks if message["role"] == "assistant" else frozenset()
        return {key: value if key == "role" else self.control.protect(value, allowed) for key, value in message.items()}

    def call_id(self, call: Mapping[str, Any], index: int) -> str:
        """The id of a call, which is number `index` of its conversation if it has none."""
        return self._id(call.get("id")) or self.dialect.ids.format(name=call["name"], index=index)

    def _id(self, given: Any) -> Any:
        """A given id as the template takes it: Mistral's demand nine letters and digits, agents bring longer ones."""
        if not given or self.takes_ids or re.fullmatch("[A-Za-z0-9]{9}", str(given)):
            return given
        return hashlib.sha256(str(given).encode()).hexdigest()[:9]

    def _answer(self, result: Message, waiting: list[dict[str, Any]]) -> tuple[Message, list[dict[str, Any]]]:
        """A result with the id and the name of the call that it answers, and the calls that still wait for one."""
        asked = self._id(result.get("tool_call_id"))
        result = {**result, "tool_call_id": asked} if asked else result
        call = next((call for call in waiting if asked in (None, call["id"])), None)
        if call is None:
            return result, waiting
        named = {**result, "tool_call_id": call["id"], "name": result.get("name") or call["name"]}
        return named, [other for other in waiting if other is not call]

    def _adapted(self, message: Message, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """One message. What the template cannot write becomes text."""
        role, content, thought = message["role"], message["content"], message.get("reasoning_content")
        if role == "tool" and not self.knows_results:
            return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>", "is_result": True}
        if role == "developer" and not self.knows_developer:
            return {**message, "role": "system"}
        if thought and not self.knows_thoughts and self.dialect.think:
            opens, closes = self.dialect.think
            content = f"{opens}\n{thought.strip()}\n{closes}\n\n{content}"
        if not calls:
            return {**message, "content": content}
        if not self.writes_calls:
            return {"role": role, "content": self.dialect.write_message({"content": content, "tool_calls": calls})}
        wanted = [
            {
                "id": call["id"],
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call["arguments"], ensure_ascii=False)
                    if self.dialect.text_arguments
                    else dict(call["arguments"]),
                },
            }
            for call in calls
        ]
        return {**message, "content": content or (None if self.dialect.none_content else ""), "tool_calls": wanted}

    def _tools_prompt(self, tools: Tools) -> str:
        """The part of a system message that describes tools. Raises `BadMessage`."""
        opens, closes = self.dialect.marks
        how = (
            f"its name and arguments as a JSON object between {opens} and {closes}"
            if closes
            else "exactly in this form"
        )
        return f"""\
You may call functions. Their signatures, one JSON object a line, are between <tools> and </tools>:
<tools>
{signatures(tools)}
</tools>
To call one, write {how}:
{self.dialect.write([{"name": "the function", "arguments": {"parameter": "value"}}])}"""

    def _with_system_text(self, messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        """The messages with this text at the end of their system message, or before the first question."""
        first = messages[0] if messages else {"role": ""}
        if first["role"] in ("system", "developer"):
            return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
        if first["role"] == "user" and not self.knows_system:
            return [{**first, "content": f"{text}\n\n{first['content']}"}, *messages[1:]]
        return [{"role": "system", "content": text}, *messages]

    def _shows(self, messages: Messages, text: str, tools: Tools = ()) -> bool:
        """Whether `text` is in what the template writes of these messages, which are passed to it unchanged."""
        return text in self._raw(messages, tools)

    def _raw(self, messages: Messages, tools: Tools = ()) -> str:
        """What the template writes of messages that are passed to it unchanged; "" if it refuses them."""
        try:
            return self._probe(messages, tools)
        except ValueError:
            return ""

    def _probe(self, messages: Messages, tools: Tools = (), *, reply: bool = False) -> str:
        try:
            if self.stopped is None:
                return render(self.tokenizer, messages, tools, reply=reply)
        except Stopped as error:
            self.stopped = error
        except Exception as error:  # a template may raise anything
            raise ValueError(str(error)) from error
        raise ValueError(str(self.stopped))


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content as a list of parts."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _with_merged_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results that have become user messages, joined with what follows on them: roles often have to alternate."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        if merged and message["role"] == "user" and merged[-1].get("is_result"):
            merged[-1]["content"] += "\n" + message["content"]
        else:
            merged.append(dict(message))
    return [{key: value for key, value in message.items() if key != "is_result"} for message in merged]
