"""Messages to token ids, a delta at a time, through the model's own chat template.

A conversation in ChatML is a row of blocks `<|im_start|>role\\n content <|im_end|>\\n`. A block's tokens do not depend
on the blocks before it, so a new message is rendered and tokenised alone, whatever the length of the history.

Text that spells a special token becomes that token, as it does in transformers: look for `<|im_start|>` in what
strangers write before you pass it on.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

from minstate.errors import BadMessage, UnsupportedModel

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")

TOOLS_PROMPT = """\
You may call functions. Their signatures, one JSON object a line, are between <tools> and </tools>:
<tools>
{signatures}
</tools>
To call one, write its name and arguments as a JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the function", "arguments": {{"parameter": "value"}}}}
</tool_call>"""


@dataclass(frozen=True)
class ToolCall:
    """A function call found in the assistant's text. `error` says what is wrong with it, `""` if it is well-formed."""

    name: str
    arguments: dict[str, Any]
    raw: str  # what stood between <tool_call> and </tool_call>
    error: str = ""


class Chat:
    """The ChatML side of a tokenizer. Raises `UnsupportedModel` if its chat template is not append-only ChatML."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._head = _require_append_only(tokenizer)
        markers = tokenizer.encode("<|im_end|><|im_start|>", add_special_tokens=False)
        if len(markers) != 2:
            raise UnsupportedModel("<|im_start|> and <|im_end|> are no tokens of this tokenizer: send token_ids")
        self.end_of_message: int = markers[0]

    def opening(self, messages: SequenceOf[Message], tools: SequenceOf[Mapping]) -> list[int]:
        """Token ids of a conversation's beginning, `tools` described in its system message. Raises `BadMessage`."""
        normal = [] if isinstance(messages, list | tuple) and not messages else _normalise(messages)
        return self._encode(_apply(self.tokenizer, _with_tools(normal, tools), reply=False))

    def delta(self, messages: str | Message | SequenceOf[Message], *, first: bool) -> list[int]:
        """Token ids of `messages` and of the opening of the assistant's reply.

        `first` says that they begin the conversation: the template may then put its default system message in front.
        Raises `BadMessage`.
        """
        normal = _normalise(messages)
        if first:
            return self._encode(_apply(self.tokenizer, normal, reply=True))
        # An empty system message keeps the template from adding its own; its text is cut off again.
        return self._encode(_apply(self.tokenizer, [EMPTY_SYSTEM, *normal], reply=True)[len(self._head) :])

    def close_reply(self, last_token: int) -> list[int]:
        """The ids that end the assistant's message in a log whose last token is `last_token`.

        A reply that stopped by itself has sampled its `<|im_end|>`; one that was cut off still lacks it.
        """
        return self._encode("\n" if last_token == self.end_of_message else "<|im_end|>\n")

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadMessage(f"a message or tool holds a lone surrogate, which is not valid text: {error}") from error
        return self.tokenizer.encode(text, add_special_tokens=False)


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """The tool calls in an assistant's text, in order, malformed and unfinished ones included."""
    calls = []
    for piece in text.split("<tool_call>")[1:]:
        raw, closed, _ = piece.partition("</tool_call>")
        calls.append(_parse_call(raw.strip(), bool(closed)))
    return tuple(calls)


def _parse_call(raw: str, closed: bool) -> ToolCall:
    if not closed:
        return ToolCall("", {}, raw, "cut off before </tool_call>")
    try:
        call = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return ToolCall("", {}, raw, f"not JSON: {error}")
    name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall("", {}, raw, 'not of the form {"name": string, "arguments": object}')
    return ToolCall(name, arguments, raw)


EMPTY_SYSTEM = {"role": "system", "content": ""}


def _apply(tokenizer, messages: list[dict], reply: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)


def _require_append_only(tokenizer) -> str:
    """Render a probe whole and in pieces, and compare. Returns the text of an empty system message."""
    if not getattr(tokenizer, "chat_template", None):
        raise UnsupportedModel("the tokenizer has no chat template: send token_ids")
    roles = ("user", "assistant", "tool", "tool", "assistant", "user")  # some templates merge neighbouring tool results
    probe = [{"role": role, "content": f"{role} text"} for role in roles]
    try:
        head = _apply(tokenizer, [EMPTY_SYSTEM], reply=False)
        whole = _apply(tokenizer, [EMPTY_SYSTEM, *probe], reply=True)
        pieces = [_apply(tokenizer, [EMPTY_SYSTEM, message], reply=False)[len(head) :] for message in probe]
        opening = _apply(tokenizer, [EMPTY_SYSTEM, probe[-1]], reply=True)[len(head) + len(pieces[-1]) :]
    except Exception as error:  # templates raise what they like
        raise UnsupportedModel(f"the chat template refuses a plain conversation ({error}): send token_ids") from error
    closes = all(piece.endswith("<|im_end|>\n") for piece in pieces)
    if not closes or whole != head + "".join(pieces) + opening:
        raise UnsupportedModel("the chat template is not append-only ChatML (<|im_start|>…<|im_end|>): send token_ids")
    return head


def _normalise(messages: str | Message | SequenceOf[Message]) -> list[dict[str, str]]:
    """Messages as `{"role", "content"}` with text content; tool calls are written into the text."""
    if isinstance(messages, str):
        messages = {"role": "user", "content": messages}
    if isinstance(messages, Mapping):
        messages = [messages]
    if not isinstance(messages, list | tuple):
        raise BadMessage(f"messages are a string, a dict or a list of dicts, not {type(messages).__name__}")
    if not messages:
        raise BadMessage("the list of messages is empty")
    return [_normalise_one(message, where) for where, message in enumerate(messages)]


def _normalise_one(message: Message, where: int) -> dict[str, str]:
    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise BadMessage(f"message {where} {problem}")

    require(isinstance(message, Mapping), f"is a {type(message).__name__}, not a dict")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls") or []
    require(role in ROLES, f"has role {role!r}, not one of {', '.join(ROLES)}")
    require(isinstance(calls, list | tuple), f"has tool_calls of type {type(calls).__name__}, not a list")
    require(not calls or role == "assistant", f"has tool_calls but role {role!r}: only the assistant calls tools")
    content = "" if content is None and calls else content
    require(isinstance(content, str), f"({role}) has content of type {type(content).__name__}, not text")
    require(bool(content or calls), f"({role}) is empty")
    blocks = [content] if content else []
    blocks += [f"<tool_call>\n{_call_to_json(call, where)}\n</tool_call>" for call in calls]
    return {"role": role, "content": "\n".join(blocks)}


def _call_to_json(call: Any, where: int) -> str:
    """`{"name", "arguments"}` as JSON, from that, from OpenAI's `{"function": {...}}`, or from a `ToolCall`."""
    if isinstance(call, ToolCall):
        call = {"name": call.name, "arguments": call.arguments}
    call = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = call.get("name"), call.get("arguments", {})
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError("a name and an object of arguments are needed")
        return json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadMessage(f"message {where} has a malformed tool call {call!r:.200}: {error}") from error


def _with_tools(messages: list[dict[str, str]], tools) -> list[dict[str, str]]:
    """Describe `tools` at the end of the system message, for a template that knows none."""
    if not tools:
        return messages
    try:
        if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
            raise TypeError(f"got {tools!r:.200}")
        signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadMessage(f"tools must be a list of JSON schemas: {error}") from error
    prompt = TOOLS_PROMPT.format(signatures=signatures)
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]
