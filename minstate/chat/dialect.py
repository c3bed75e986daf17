"""How a family of models writes tool calls and thoughts: its dialect.

The calls of a reply are written as pieces of text around names and arguments:

    open  NAME  arguments  ( next  NAME  arguments )*  close

    Hermes, Qwen   <tool_call>⏎{"name": "       …", "arguments": {…}   }⏎</tool_call>
    DeepSeek V3.1  <｜tool▁calls▁begin｜>…      …<｜tool▁sep｜>{…}      <｜tool▁call▁end｜><｜tool▁calls▁end｜>
    Qwen3-Coder    <tool_call>⏎<function=       …><parameter=path>…    ⏎</function>⏎</tool_call>

`probing.py` finds the pieces by looking at what a model's chat template writes. Writing is then exact, and so is the
grammar that a reply is held to. Reading is generous: white space may differ, and where a call is one JSON object, its
keys may stand in any order. A call that cannot be read is reported with its text, and what is wrong with it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from minstate.chat.content import without
from minstate.chat.json_calls import calls_in, json_end, read_json
from minstate.chat.spelling import Tagged, loosely
from minstate.chat.tool_calls import Tool, ToolCall, Tools, function_of, schema_error, schemas_of

ID, NEXT_ID, INDEX = "\ue010", "\ue011", "\ue012"  # in a piece: the call's id, the next call's id, the call's number
NAME = r"\s*([^\s\"'(){}\[\]|<>]+?)\s*"


@dataclass(frozen=True)
class Json:
    """Arguments as a JSON object."""

    before: str  # from the name to the object
    separators: tuple[str, str] = (", ", ": ")
    indent: int | None = None
    margin: int = 0  # of the lines of an object with indentation
    begins: int | None = None  # if name and arguments are parts of one JSON value: where in `open` it begins

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Arguments with all that stands around them, from the end of the name on."""
        text = json.dumps(arguments, ensure_ascii=False, separators=self.separators, indent=self.indent)
        return self.before + text.replace("\n", "\n" + " " * self.margin)

    def opening(self, key: str | None) -> str:
        """What is written before the value of the first argument, or before the first key."""
        return self.before + "{" + ("" if key is None else json.dumps(key, ensure_ascii=False) + self.separators[1])

    def read(self, text: str, at: int, _schema: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The arguments that begin at a position, and where they end. Raises ValueError."""
        before = pattern(self.before).match(text, at)
        if not before:
            raise ValueError(f"no arguments at {text[at : at + 40]!r}")
        arguments, end = read_json(text, before.end())
        if not isinstance(arguments, dict):
            raise ValueError("the arguments are not an object")
        return arguments, end


class Reply(NamedTuple):
    """What a reply consists of."""

    reasoning: str
    content: str  # up to the first call
    calls: tuple[ToolCall, ...]
    text: str  # the whole reply behind the reasoning, calls included


@dataclass(frozen=True)
class Dialect:
    """The pieces of text around names and arguments, and what else a family agrees on.

    name             of the family that it is known by, or "learnt"
    open             in front of the first call's name
    next             between the arguments of a call and the name of the next one; None if a reply has one call only
    close            behind the arguments of the last call
    behind_content   between what the reply says and its calls
    think            around the model's thoughts, at the beginning of a reply; None if it has none
    behind_thoughts  between the thoughts and the rest, if the family demands a text there
    before_answer    in front of a reply that is no call, if the family demands a text there
    frame            other text of the family's that is no content
    ids              how the calls of a conversation are numbered where their ids are not known
    text_arguments   whether the template takes the arguments as text
    none_content     whether it wants None, and not "", as the content of a reply that is nothing but calls
    """

    name: str
    open: str
    next: str | None
    close: str
    arguments: Json | Tagged
    behind_content: str = "\n"
    think: tuple[str, str] | None = None
    behind_thoughts: str = ""
    before_answer: str = ""
    frame: tuple[str, ...] = ()
    ids: str = "call{index:05}"
    text_arguments: bool = False
    none_content: bool = False

    @property
    def is_json(self) -> bool:
        """Whether a call is one JSON value, with marks around it."""
        return isinstance(self.arguments, Json) and self.arguments.begins is not None

    @cached_property
    def marks(self) -> tuple[str, str]:
        """What stands around calls: where they are JSON values, the text around these, else `open` and `close`."""
        if not isinstance(self.arguments, Json) or self.arguments.begins is None:
            return self.open, self.close
        sample = self.write([{"name": "f", "arguments": {}}])
        return self.open[: self.arguments.begins].strip(), sample[read_json(sample, self.arguments.begins)[1] :].strip()

    @property
    def calls(self) -> str:
        """All pieces of text around calls."""
        return self.write([{"name": "f", "arguments": {"a": "b", "c": 1}}, {"name": "g", "arguments": {}}])

    @property
    def spelling(self) -> str:
        """All pieces of text, in which control tokens may be spelt."""
        return "\n".join(["".join(self.think or ()), *self.frame, self.calls])

    @property
    def is_marked(self) -> bool:
        """Whether a call can be told from other text wherever it begins; if not, it is the whole reply."""
        return len(self.marks[0].strip()) > 2

    # Writing.

    def write(self, calls: Iterable[Mapping[str, Any]]) -> str:
        """Normalised calls as the model writes them."""
        calls, text = list(calls), ""
        ids = [call.get("id") or self.ids.format(name=call["name"], index=i) for i, call in enumerate(calls)]
        for i, call in enumerate(calls):
            between = _filled(self.close + self.open if self.next is None else self.next, ids[i - 1], i, ids[i])
            name = json.dumps(call["name"], ensure_ascii=False)[1:-1] if self.is_json else call["name"]
            before = self.arguments.before if isinstance(self.arguments, Json) else ""
            arguments = self.arguments.write(call["arguments"])[len(before) :]
            text += (between if i else _filled(self.open, ids[i], i)) + name + _filled(before, ids[i], i) + arguments
        return text + _filled(self.close, ids[-1], len(calls) - 1) if calls else ""

    def write_message(self, message: Mapping[str, Any]) -> str:
        """The text of an assistant's normalised message, with its calls."""
        content, calls = message["content"], self.write(message.get("tool_calls", ()))
        return content + self.behind_content + calls if content and calls else content or calls

    def opening(self, tool: Tool) -> str:
        """How a call of the tool begins: up to its first value if its first argument is required, else up to the key.

        Raises `UnsupportedSchema`.
        """
        name, parameters = function_of(tool)
        first = next(iter(parameters.get("properties", {})), None)
        key = first if first in parameters.get("required", ()) else None
        text = self.open + (json.dumps(name, ensure_ascii=False)[1:-1] if self.is_json else name)
        return re.split(f"[{ID}{NEXT_ID}{INDEX}]", text + self.arguments.opening(key))[0]

    # Reading.

    def read(self, text: str, tools: Tools = (), *, thinking: bool = False, check: bool = True) -> Reply:
        """Take a reply apart. If `tools` are given, a call is checked against its tool's schema, unless not `check`.

        text      the whole reply, without the token that ends it
        thinking  whether the prompt has begun the model's thoughts already
        """
        reasoning, rest = self._split_thoughts(text, thinking)
        calls, first = self._read_json_calls(rest) if self.is_json else self._read_calls(rest, schemas_of(tools))
        if self.is_json and ID not in self.open + self.close:  # then an id is no part of a call
            calls = [replace(call, id="") for call in calls]
        if tools and check:
            calls = [call if call.error else replace(call, error=schema_error(call, tools)) for call in calls]
        content = without(rest[:first], self.frame)
        return Reply(reasoning, content.rstrip() if calls else content, tuple(calls), without(rest, self.frame))

    def _split_thoughts(self, text: str, thinking: bool) -> tuple[str, str]:
        """Thoughts at the beginning of a reply, and the rest."""
        if not self.think:
            return "", text
        begin, end = (mark.strip() for mark in self.think)
        if not thinking:
            if not text.lstrip().startswith(begin):
                return "", text
            text = text.lstrip()[len(begin) :]
        thoughts, _, rest = text.partition(end)
        return thoughts.strip("\n"), rest.lstrip("\n")

    def _read_json_calls(self, text: str) -> tuple[list[ToolCall], int]:
        """Calls that are JSON values, malformed and unfinished ones included, and where the first of them begins."""
        opens, closes = self.marks
        if not self.is_marked:
            return self._read_bare_json_calls(text)
        calls, first, at = [], len(text), 0
        while (found := text.find(opens, at)) >= 0:
            first, at = min(first, found), found + len(opens)
            end = json_end(text, at)  # a string in the JSON may hold anything, the marks of calls included
            while end and not closes and (more := json_end(text, end)):  # several values in a row
                end = more
            stop = text.find(closes, max(at, end or 0)) if closes else end or len(text)
            again = text.find(opens, at)
            if end is None and again >= 0 and (stop < 0 or again < stop):  # the call ends where the next one begins
                stop, closed = again, False
            else:
                closed = stop >= 0 if closes else end is not None
            stop = len(text) if stop < 0 else stop
            calls += calls_in(text[at:stop].strip(), closed, closes)
            at = stop
        return calls, first

    def _read_bare_json_calls(self, text: str) -> tuple[list[ToolCall], int]:
        """Calls without marks: the whole reply is one JSON value, or several, or it is no call."""
        at, calls = 0, []
        while (end := json_end(text, at)) is not None:
            calls += calls_in(text[at:end].strip(), True, "")
            at = end + len(re.match(r"[\s;,]*", text[end:])[0])  # ty: ignore[not-subscriptable]  it always matches
        if any(call.error for call in calls) or (calls and text[at:].strip()):
            calls = []
        if not calls and loosely(self.open).match(text):
            calls = calls_in(text.strip(), False, "its end")
        return calls, 0 if calls else len(text)

    def _read_calls(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[list[ToolCall], int]:
        """Calls whose names stand outside their arguments, and where the first of them begins."""
        calls, first, at = [], len(text), 0
        while found := _search(self.open, text, at) if self.is_marked else pattern(self.open).match(text, at):
            first, begin = min(first, found.start()), found.end()
            while begin is not None:
                call, at, begin = self._read_call(text, found, begin, schemas)
                calls.append(call)
                found = None
            if not self.is_marked:  # then a call is the whole reply
                return ([], len(text)) if calls[-1].error or text[at:].strip() else (calls, 0)
        return calls, first

    @cached_property
    def _name(self) -> re.Pattern[str]:
        """Finds a name, up to its arguments, or to the end of a text that was cut off."""
        if isinstance(self.arguments, Json):
            behind = pattern(self.arguments.before).pattern
        else:
            ends = "|".join(pattern(self.arguments.none + end).pattern for end in (self.close, self.next or self.close))
            behind = f"{pattern(self.arguments.first).pattern}|{ends}"
        return re.compile(f"{NAME}(?={behind}|$)")

    def _read_call(
        self, text: str, opened: re.Match[str] | None, at: int, schemas: Mapping[str, Mapping[str, Any]]
    ) -> tuple[ToolCall, int, int | None]:
        """The call whose name begins at a position, where it ends, and where the next one's name begins, if any."""
        name = self._name.match(text, at)
        try:
            if not name:
                raise ValueError("no name")
            arguments, end = self.arguments.read(text, name.end(), schemas.get(name[1], {}))
        except (ValueError, RecursionError) as error:
            closed = _search(self.close, text, at) if self.close.strip() else None
            end = closed.end() if closed else len(text)
            problem = str(error) if closed else f"cut off before {self.close.strip() or 'its end'}"
            return ToolCall("", {}, text[at:end].strip(), problem), end, None
        call_id = next((found for found in (opened.groups() if opened else ()) if found), "")
        if isinstance(self.arguments, Json) and (before := pattern(self.arguments.before).match(text, name.end())):
            call_id = next((found for found in before.groups() if found), call_id)
        call = ToolCall(name[1], arguments, text[at:end].strip(), id=call_id)
        if self.next is not None and (following := pattern(self.next).match(text, end)):
            return call, following.end(), following.end()
        if closed := pattern(self.close).match(text, end):
            return call, closed.end(), None
        return ToolCall("", {}, call.raw, f"cut off before {self.close.strip()}"), end, None


HERMES = Dialect(
    "Hermes",
    open='<tool_call>\n{"name": "',
    next='}\n</tool_call>\n<tool_call>\n{"name": "',
    close="}\n</tool_call>",
    arguments=Json('", "arguments": ', begins=len("<tool_call>\n")),
)


def _filled(piece: str, own: str, index: int, following: str = "") -> str:
    return piece.translate({ord(ID): own, ord(NEXT_ID): following, ord(INDEX): str(index)})  # at once: ids may hold any


def pattern(piece: str) -> re.Pattern[str]:
    """Finds a piece with any ids in it."""
    pattern = loosely(piece).pattern
    for mark in (ID, NEXT_ID):
        pattern = pattern.replace(mark, r"([\w.:-]*)")
    return re.compile(pattern.replace(INDEX, r"\d+"))


def _search(piece: str, text: str, at: int) -> re.Match[str] | None:
    """The next place of a piece, without the space in front of it, for which each space would look at all behind it."""
    return re.compile(pattern(piece).pattern.removeprefix(r"\s*")).search(text, at)
