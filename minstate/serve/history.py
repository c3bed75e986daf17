"""A client's history as messages of one form, and as a chain of hashes that says which conversation it extends.

    keys[0] = hash(tenant, tools, template options)        keys[i + 1] = hash(keys[i], message i)

Two histories that begin with the same messages have the same keys as far as they agree. Hashing a history takes time
in proportion to its text; no template runs, and nothing is tokenised. A message's key leaves out what a client need not
send back, such as the model's reasoning. It reads the arguments of a call as JSON, because clients may write them anew.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from minstate.serve.api_errors import ApiError

Message = dict[str, Any]
KEPT = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning_content")


def read_chat_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages of the chat API, without the fields that no template needs. Raises `ApiError`."""
    read = []
    for place, message in enumerate(messages):
        one = {key: value for key, value in message.items() if key in KEPT and value is not None}
        one["role"] = "system" if one.get("role") == "developer" else one.get("role")
        one["content"] = text_of(one.get("content"), f"messages.{place}.content")
        if one.get("tool_calls") == []:
            del one["tool_calls"]
        read.append(one)
    return read


def read_items(items: str | Iterable[Mapping[str, Any]], known: Mapping[str, Mapping] = {}) -> list[Message]:
    """Input items of the Responses API as messages. What follows on each other of one reply becomes one message.

    known  earlier items by id, for references. Raises `ApiError`.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[Message] = []
    reply: Message | None = None  # the message that the last item belongs to, if the model wrote it
    for place, given in enumerate(items):
        item, where = _resolved(given, known, place), f"input.{place}"
        kind, role = item.get("type") or "message", item.get("role")
        if (kind == "message" and role != "assistant") or kind == "function_call_output":
            reply = None
            messages.append(_other(item, where))
            continue
        if kind not in ("message", "function_call", "reasoning"):
            raise ApiError(400, f"an item of type {kind!r} is not supported", param=where)
        if reply is None or (kind == "message" and (reply["content"] or "tool_calls" in reply)):
            reply = {"role": "assistant", "content": ""}
            messages.append(reply)
        if kind == "message":
            reply["content"] = text_of(item.get("content"), where)
        elif kind == "function_call":
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            reply.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": call})
        elif thoughts := text_of(item.get("content") or "", where):
            reply["reasoning_content"] = thoughts
    return messages


def _resolved(item: Mapping[str, Any], known: Mapping[str, Mapping], place: int) -> Mapping[str, Any]:
    if item.get("type") != "item_reference":
        return item
    if not isinstance(item.get("id"), str) or item["id"] not in known:
        raise ApiError(404, f"Item with id '{item.get('id')}' not found.", param=f"input.{place}.id")
    return known[item["id"]]


def _other(item: Mapping[str, Any], where: str) -> Message:
    """A message of the user's or the system's, or the result of a call."""
    if item.get("type") == "function_call_output":
        result = {"role": "tool", "tool_call_id": item.get("call_id")}
        return {**result, "content": text_of(item.get("output"), f"{where}.output")}
    role = "system" if item.get("role") == "developer" else item.get("role")
    return {"role": role, "content": text_of(item.get("content"), f"{where}.content")}


def text_of(content: Any, param: str) -> str:
    """Content as text. Raises `ApiError` for an image, or whatever else is no text."""
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ApiError(400, f"content of type {kind!r} is not text, and the model reads text only", param=param)
        texts.append(text)
    return "".join(texts)


def keys_of(tenant: str, tools: Sequence[Mapping], options: Mapping, messages: Iterable[Message]) -> list[bytes]:
    """The chain of a history: one key more than there are messages."""
    return extended([_hash(b"", [tenant, list(tools), dict(options)])], messages)


def extended(keys: Sequence[bytes], messages: Iterable[Message]) -> list[bytes]:
    """The chain with more messages."""
    keys = list(keys)
    for message in messages:
        keys.append(_hash(keys[-1], _meaning(message)))
    return keys


def _meaning(message: Message) -> list:
    calls, given = [], message.get("tool_calls")
    for each in given if isinstance(given, list) else ():
        call = each if isinstance(each, Mapping) else {}  # the engine refuses what is no call
        function = call.get("function", call)
        function = function if isinstance(function, Mapping) else {}
        arguments = function.get("arguments")
        with suppress(ValueError, RecursionError):  # the text of a call that was cut off stands for itself
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append([call.get("id"), function.get("name"), arguments])
    return [message.get("role"), message.get("content"), message.get("name"), message.get("tool_call_id"), calls]


def _hash(before: bytes, value: Any) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ApiError(400, f"the history cannot be read: {error}") from error
    return sha256(before + text.encode()).digest()
