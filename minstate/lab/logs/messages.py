"""Messages of several APIs in one form: OpenAI's chats and Responses, Anthropic's messages, and ShareGPT's turns.

The form is `{"role", "content"}` with text as content, and for a reply "reasoning_content" and "tool_calls" as
`{"id", "name", "arguments"}`. Roles are system, user, assistant and tool. What has no text, such as an image, becomes
`[image 3f2a90c1]`, where the number tells one image from another; it is counted as opaque.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from minstate.lab.traces.records import Mismatch, expect, parse_json

ROLES = {"developer": "system", "function": "tool", "human": "user", "gpt": "assistant", "bot": "assistant",
         "model": "assistant", "observation": "tool", "environment": "tool", "ai": "assistant"}  # fmt: skip
KNOWN = ("system", "user", "assistant", "tool")
TEXT = (None, "text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CALLS = ("function_call", "custom_tool_call", "mcp_call", "web_search_call", "file_search_call", "computer_call",
         "local_shell_call", "code_interpreter_call", "image_generation_call", "tool_search_call")  # fmt: skip


def read_messages(items: Any, *, strict: bool = False, notes: Counter[str] | None = None) -> list[dict]:
    """The messages of a conversation in one form.

    strict  whether what has no text, or is malformed, is an error, and not repaired
    notes   counts what was repaired

    Raises `Mismatch`.
    """
    reader = _Reader(strict, Counter() if notes is None else notes)
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    expect(isinstance(items, list | tuple), 'a list in "messages"', items)
    for number, item in enumerate(items, 1):
        reader.read(item, f"message {number}")
    return reader.messages


def read_tools(tools: Any) -> list[dict]:
    """Tools as a list of JSON schemas. Raises `Mismatch`."""
    tools = tools or []
    schemas = isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)
    expect(schemas, 'a list of JSON schemas in "tools"', tools)
    return [
        dict(tool) for tool in tools if tool.get("type", "function") in ("function", "custom", None) or "name" in tool
    ]


class _Reader:
    """The messages so far, and the names of their calls."""

    def __init__(self, strict: bool, notes: Counter[str]):
        self.strict, self.notes = strict, notes
        self.messages: list[dict] = []
        self._called: dict[str, str] = {}
        self._in_response = False  # whether the last message consists of items, and the next item belongs to it

    def read(self, item: Any, what: str) -> None:
        expect(isinstance(item, Mapping), f"an object as {what}", item)
        if "role" not in item and "from" in item:
            item = {"role": item["from"], "content": item.get("value")}
        kind = item.get("type")
        if "role" not in item and isinstance(kind, str):
            self._read_item(item, kind, what)
            return
        role = item.get("role")
        expect(isinstance(role, str), f"the key 'role' in {what}", list(item))
        role = ROLES.get(role, role)
        expect(role in KNOWN, f"one of the roles {', '.join(KNOWN)} in {what}", role)
        joins = self._in_response and kind == "message" and role == "assistant"
        self._in_response = kind == "message" and role == "assistant"
        self._read_message(item, role, what, joins)

    def _read_message(self, item: Mapping, role: str, what: str, joins: bool) -> None:
        texts, thoughts, calls = [], [], []
        content = item.get("content")
        expect(
            content is None or isinstance(content, str | list | tuple), f"text or parts as content of {what}", content
        )
        for part in [content] if isinstance(content, str) else content or ():
            self._read_part(part, what, texts, thoughts, calls)
        given = next((item[key] for key in THOUGHTS if isinstance(item.get(key), str) and item[key]), None)
        if given is not None:
            thoughts.insert(0, given)
        listed = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
        expect(isinstance(listed, list | tuple), f'a list in "tool_calls" of {what}', listed)
        calls += [self.call(call, what) for call in listed]
        message: dict[str, Any] = {"role": role, "content": "".join(texts)}
        if isinstance(item.get("name"), str) and role != "assistant":
            message["name"] = item["name"]
        if thoughts and role == "assistant":
            message["reasoning_content"] = "\n".join(thoughts)
        if calls:
            expect(role == "assistant", f'"tool_calls" in messages of the assistant only, in {what}', role)
            message["tool_calls"] = calls
        if role == "tool":
            self._name_result(message, item, what)
        if joins:
            self._join(message)
        elif message["content"] or role in ("assistant", "tool"):
            self.messages.append(message)
        elif not any(self._is_result(part) for part in content or ()):
            self._repair("empty messages left out", f'a "content" that is a string and not empty in {what}', content)

    def _read_part(self, part: Any, what: str, texts: list, thoughts: list, calls: list) -> None:
        if isinstance(part, str):
            texts.append(part)
            return
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in TEXT and isinstance(part.get("text", part.get("refusal")), str):
            texts.append(part.get("text", part.get("refusal")))
        elif kind == "thinking":
            thoughts.append(str(part.get("thinking", "")))
        elif kind == "tool_use":
            calls.append(
                self.call({"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}, what)
            )
        elif self._is_result(part):
            result = {"role": "tool", "content": part.get("content"), "tool_call_id": part.get("tool_use_id")}
            self._read_message(result, "tool", what, joins=False)
        else:
            texts.append(self._opaque(part, kind, what))

    @staticmethod
    def _is_result(part: Any) -> bool:
        return isinstance(part, Mapping) and part.get("type") == "tool_result"

    def _opaque(self, part: Any, kind: Any, what: str) -> str:
        kind = str(kind).removeprefix("input_").removesuffix("_url")
        self._repair(f"{kind} parts counted as opaque", f"content parts that are text in {what}", part)
        number = hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"[{kind} {number}]"

    def _name_result(self, message: dict, item: Mapping, what: str) -> None:
        answered = item.get("tool_call_id") or item.get("call_id") or (item.get("tool_call_ids") or [None])[0]
        if answered is None:
            return
        known = isinstance(answered, str) and answered in self._called
        if not known:
            self._repair(
                "results of calls that are not in the history",
                f'in "tool_call_id" of {what} one of the calls so far',
                answered,
            )
        message["tool_call_id"] = str(answered)
        if known:
            message.setdefault("name", self._called[answered])

    def call(self, call: Any, what: str) -> dict:
        """A call as `{"name", "arguments", "id"}`, given in this form or as OpenAI's `{"id", "function": {...}}`."""
        expect(isinstance(call, Mapping), f"objects as tool calls in {what}", call)
        function, number = call.get("function", call), call.get("id") or call.get("call_id") or call.get("tool_call_id")
        if isinstance(function, str):
            function = {"name": function, "arguments": call.get("args", call.get("arguments"))}
        expect(isinstance(function, Mapping), f'an object in "function" of a tool call in {what}', call)
        name, arguments = function.get("name") or function.get("function_name"), function.get("arguments")
        expect(isinstance(name, str) and name, f"names of tool calls in {what}", call)
        parsed = self._arguments(name, {} if arguments is None or arguments == "" else arguments, what)
        if isinstance(number, str) and number:
            self._called[number] = name
        return {"name": name, "arguments": parsed} | ({"id": str(number)} if number else {})

    def _arguments(self, name: str, arguments: Any, what: str) -> dict:
        parsed = arguments
        if isinstance(arguments, str):
            try:
                parsed = parse_json(arguments)
            except Mismatch as mismatch:
                problem = f"arguments of {name} that are JSON in {what}"
                self._repair("arguments that are no JSON object, taken as text", problem, arguments, str(mismatch))
        if not isinstance(parsed, Mapping):
            if parsed is not arguments or not isinstance(arguments, str):
                self._repair(
                    "arguments that are no JSON object, taken as text",
                    f"an object of arguments of {name} in {what}",
                    arguments,
                )
            return {"arguments": arguments}
        return dict(parsed)

    def _repair(self, note: str, expected: str, found: Any, why: str = "") -> None:
        if self.strict:
            raise Mismatch(expected, f"{found!r:.120}" + (f" ({why})" if why else ""))
        self.notes[note] += 1

    # Items of the Responses API.

    def _read_item(self, item: Mapping, kind: str, what: str) -> None:
        if kind == "message":
            raise Mismatch(f"the key 'role' in {what}", f"{list(item)}")
        if kind.endswith("_output"):
            self._in_response = False
            output = item.get("output")
            output = output if isinstance(output, str | list | None) else json.dumps(output, ensure_ascii=False)
            self._read_message({"content": output, "call_id": item.get("call_id")}, "tool", what, joins=False)
            return
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if kind == "reasoning":
            parts = [part.get("text", "") for part in [*(item.get("content") or ()), *(item.get("summary") or ())]]
            if not parts and item.get("encrypted_content"):
                self._repair("thoughts that are encrypted", f"thoughts as text in {what}", "encrypted_content")
            if parts:
                message["reasoning_content"] = "\n".join(parts)
        elif kind in CALLS or kind.endswith("_call"):
            arguments = item.get("arguments", item.get("input", item.get("action")))
            arguments = {"input": arguments} if kind == "custom_tool_call" else arguments
            name = item.get("name") or kind.removesuffix("_call")
            message["tool_calls"] = [self.call({"id": item.get("call_id"), "name": name, "arguments": arguments}, what)]
        else:
            self._repair(f"items of type {kind} left out", f"an item of a known type as {what}", kind)
            return
        if self._in_response:
            self._join(message)
        else:
            self.messages.append(message)
        self._in_response = True

    def _join(self, more: dict) -> None:
        """Add a reply's next item to the reply."""
        last = self.messages[-1]
        last["content"] += more["content"]
        for key, join in (("reasoning_content", "\n"), ("tool_calls", None)):
            if key in more and key in last:
                last[key] = last[key] + more[key] if join is None else last[key] + join + more[key]
            elif key in more:
                last[key] = more[key]


def text_of(content: Any) -> str:
    """The text of a content that is a string or a list of parts; other parts are left out."""
    if isinstance(content, str):
        return content
    parts: Iterable = content if isinstance(content, list | tuple) else ()
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in parts)
