"""How arguments are written where they are no JSON object: one after the other, between tags or as literals.

Qwen3-Coder   <parameter=path>⏎setup.py⏎</parameter>         strings as they are, other values as JSON, between tags
pythonic      path="setup.py", recursive=True                literals of Python
Gemma 4       path:<|"|>setup.py<|"|>,recursive:true         literals of its own
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minstate.chat.content import common_prefix
from minstate.chat.json_calls import whole_json


@dataclass(frozen=True)
class Literals:
    """How values are spelt: quotes around strings, and words for true, false and null."""

    quotes: tuple[str, ...]  # each opens and closes a string; the first is written
    words: Mapping[str, Any]  # from a word to the value that it means
    escapes: bool  # whether strings have backslash escapes, as in JSON
    quoted_keys: bool  # whether the keys of nested objects are quoted

    def write(self, value: Any) -> str:
        """A JSON value as a literal."""
        if isinstance(value, str):
            quote = self.quotes[0]
            return json.dumps(value, ensure_ascii=False) if self.escapes else quote + value + quote
        if value is None or isinstance(value, bool):
            return next(word for word, meaning in self.words.items() if meaning is value)
        comma, colon = (", ", ": ") if self.quoted_keys else (",", ":")
        if isinstance(value, Mapping):
            keys = {key: self.write(key) if self.quoted_keys else key for key in value}
            return "{" + comma.join(f"{keys[key]}{colon}{self.write(inner)}" for key, inner in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + comma.join(map(self.write, value)) + "]"
        return json.dumps(value)

    def read(self, text: str, at: int) -> tuple[Any, int]:
        """The literal that begins at a position, and where it ends. Raises ValueError."""
        at = _skip_space(text, at)
        for quote in self.quotes:
            if text.startswith(quote, at):
                return self._read_string(text, at + len(quote), quote)
        if text[at : at + 1] in ("[", "{"):
            return self._read_nested(text, at)
        word = re.compile(r"[\w.+-]+").match(text, at)
        if not word:
            raise ValueError(f"no value at {text[at : at + 20]!r}")
        return self.words[word[0]] if word[0] in self.words else whole_json(word[0]), word.end()

    def _read_string(self, text: str, at: int, quote: str) -> tuple[str, int]:
        inside = re.compile(
            rf"((?:\\.|(?!{re.escape(quote)}).)*?){re.escape(quote)}" if self.escapes else rf"(.*?){re.escape(quote)}",
            re.DOTALL,
        ).match(text, at)
        if not inside:
            raise ValueError("a string is not closed")
        return _unescape(inside[1]) if self.escapes else inside[1], inside.end()

    def _read_nested(self, text: str, at: int) -> tuple[Any, int]:
        """A list or an object."""
        is_list, items = text[at] == "[", []
        close, at = ("]" if is_list else "}"), _skip_space(text, at + 1)
        while not text.startswith(close, at):
            if is_list:
                item, at = self.read(text, at)
            else:
                key, at = self._read_key(text, at)
                at = _skip_space(text, at)
                if text[at : at + 1] != ":":
                    raise ValueError(f"no colon behind {key!r}")
                value, at = self.read(text, at + 1)
                item = key, value
            items.append(item)
            at = _skip_space(text, at)
            if text.startswith(",", at):
                at = _skip_space(text, at + 1)
            elif not text.startswith(close, at):
                raise ValueError(f"no comma at {text[at : at + 20]!r}")
        return (items if is_list else dict(items)), at + 1

    def _read_key(self, text: str, at: int) -> tuple[str, int]:
        bare = None if self.quoted_keys else re.compile(r"[^:{}\[\],]+").match(text, at)
        return (bare[0].strip(), bare.end()) if bare else self.read(text, at)


PYTHON = Literals(('"', "'"), {"True": True, "False": False, "None": None}, escapes=True, quoted_keys=True)
GEMMA = Literals(('<|"|>',), {"true": True, "false": False, "null": None}, escapes=False, quoted_keys=False)


@dataclass(frozen=True)
class Tagged:
    """Arguments one after the other. The pieces of text around keys and values, where `text` values are strings."""

    none: str  # behind the name if there are no arguments
    first: str  # behind the name, before the first key
    separator: str  # behind an argument, before the next key
    to_text: str  # from a key to its string
    to_other: str  # from a key to any other value
    after_text: str
    after_other: str
    literals: Literals | None = None  # None: strings stand as they are, and other values are JSON

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Arguments with all that stands around them, from the end of the name on."""
        parts = [key + self.write_value(value) for key, value in arguments.items()]
        return self.first + self.separator.join(parts) if parts else self.none

    def write_value(self, value: Any) -> str:
        """A value with the marks around it."""
        if self.literals:
            return self.to_other + self.literals.write(value) + self.after_other
        if isinstance(value, str):
            return self.to_text + value + self.after_text
        return self.to_other + json.dumps(value, ensure_ascii=False) + self.after_other

    def opening(self, key: str | None) -> str:
        """What is written before the value of the first argument, or before the first key."""
        if key is None:
            return self.first[: common_prefix(self.first, self.none)]
        return self.first + key + self.to_text[: common_prefix(self.to_text, self.to_other)]

    def read(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The arguments that begin at a position, and where they end. Raises ValueError.

        schema  of the arguments: where tags do not tell strings from other values, it does
        """
        arguments: dict[str, Any] = {}
        found = loosely(self.first).match(text, at)
        while found and (key := self._key(text, found.end())):
            name, value, at = self._read_value(text, key, schema)
            if name in arguments:
                raise ValueError(f"the argument {name!r} is given twice")
            arguments[name] = value
            found = loosely(self.separator).match(text, at)
        if arguments:
            return arguments, at
        if none := loosely(self.none).match(text, at):
            return {}, none.end()
        raise ValueError(f"no arguments at {text[at : at + 40]!r}")

    def _key(self, text: str, at: int) -> re.Match[str] | None:
        """The key at a position, and the mark between it and its value."""
        marks = sorted({self.to_text.rstrip(), self.to_other.rstrip()}, key=len, reverse=True)
        name = r"[\w.-]" if self.literals else r"[^<>\n]"
        return re.compile(rf"\s*({name}+?)\s*({'|'.join(map(re.escape, marks))})").match(text, at)

    def _read_value(self, text: str, key: re.Match[str], schema: Mapping[str, Any]) -> tuple[str, Any, int]:
        """A key, its value, and where the value ends."""
        name, mark = key[1], key.start(2)
        if self.literals:
            return name, *self.literals.read(text, mark + len(self.to_other.rstrip()))
        tells = self.to_text != self.to_other  # whether tags tell strings from other values
        is_text = tells and key[2] == self.to_text.rstrip()
        to, after = (self.to_text, self.after_text) if is_text else (self.to_other, self.after_other)
        begin = mark + len(to) if text.startswith(to, mark) else key.end()
        # A string may hold the mark that closes it, but not with another tag behind it.
        space, behind = after[: -len(after.lstrip())], r"(?=\s*(<|\Z))" if self.separator.lstrip()[:1] == "<" else ""
        closed = re.compile(f"({re.escape(space)})?{re.escape(after.strip() or after)}{behind}").search(text, begin)
        if not after or not closed:
            raise ValueError(f"the argument {name!r} is not closed")
        meaning = _value(text[begin : closed.start()], is_text, tells, schema.get("properties", {}).get(name))
        return name, meaning, closed.end()


def loosely(piece: str) -> re.Pattern[str]:
    """Finds a piece of text with whatever white space at its ends and inside."""
    words = map(re.escape, piece.split())
    return re.compile(r"\s*" + r"\s*".join(words)) if piece.strip() else re.compile(re.escape(piece))


def _value(text: str, is_text: bool, told: bool, schema: Any) -> Any:
    """What the text between two tags means: a string, unless tags or schema say otherwise."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if is_text or (not told and kind == "string"):
        return text
    try:
        value = whole_json(text)
    except ValueError:
        if told or kind in ("integer", "number", "boolean", "null", "array", "object"):
            raise ValueError(f"{text!r:.80} is not JSON") from None
        return text
    return text if not told and kind is None and isinstance(value, str) else value


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _unescape(text: str) -> str:
    r"""The string whose inside this is, with escapes as JSON and Python have them in common, and `\'`."""
    text = re.sub(r'\\(.)|"|\n|\r|\t', _as_json, text, flags=re.DOTALL)
    return json.loads(f'"{text}"')


def _as_json(found: re.Match[str]) -> str:
    if found[1] is None:
        return json.dumps(found[0])[1:-1]
    return found[1] if found[1] == "'" else found[0]
