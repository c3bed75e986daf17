"""Requests as tokens, cut at the template's control tokens, so that what requests share is encoded once.

No tokenizer merges anything across a control token, so a text can be encoded in pieces between them. This is checked
on the first requests, against the text encoded as a whole. Two requests then differ first in the first piece that
differs, and only that one is compared token by token. A piece is the ids as bytes, four for each.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from minstate.chat.conversation import Chat
from minstate.chat.messages import normalise, normalise_tools

CHECKED = 32  # requests whose pieces are compared with the encoding of the whole text
REMEMBERED = 200_000  # pieces whose ids are remembered, at least
CHILDREN = 64  # pieces that are compared behind a common prefix, at most
PLACES = 400_000  # prefixes that are remembered, at least

Pieces = list[bytes]


def length(pieces: Sequence[bytes]) -> int:
    """How many tokens."""
    return sum(map(len, pieces)) // 4


def shared(a: bytes, b: bytes) -> int:
    """How many tokens two pieces have in common at their beginning."""
    return _equal(np.frombuffer(a, "<i4"), np.frombuffer(b, "<i4"))


def shared_end(a: bytes, b: bytes) -> int:
    """How many tokens two pieces have in common at their end."""
    return _equal(np.frombuffer(a, "<i4")[::-1], np.frombuffer(b, "<i4")[::-1])


def _equal(a: np.ndarray, b: np.ndarray) -> int:
    most = min(len(a), len(b))
    differ = a[:most] != b[:most]
    return int(differ.argmax()) if differ.any() else most


def shared_anywhere(a: bytes, b: bytes) -> int:
    """How many tokens two pieces have in common, in whatever order."""
    return (Counter(np.frombuffer(a, "<i4").tolist()) & Counter(np.frombuffer(b, "<i4").tolist())).total()


class Prompts:
    """Renders and encodes requests."""

    def __init__(self, chat: Chat):
        self.chat, self.control = chat, chat.template.control
        self.exact = True  # whether pieces have given what the whole text gives so far
        self._checks = 0
        self._known: dict[bytes, bytes] = {}
        self._older: dict[bytes, bytes] = {}

    def text(self, messages: Sequence[Mapping], tools: Sequence[Mapping]) -> str:
        """The template's text of a request. Raises `BadMessage`."""
        return self.chat.render(normalise(list(messages)), normalise_tools(list(tools)), reply=True)

    def reply_text(self, reply: Mapping, begun: str) -> str:
        """What the model wrote, as the template's family writes it, behind a prompt that ends with `begun`."""
        (message,) = normalise(dict(reply))
        text, think = self.chat.dialect.write_message(message), self.chat.dialect.think
        if message.get("reasoning_content") and think:
            opens = "" if self.chat.begins_thoughts(begun) else f"{think[0]}\n"
            text = f"{opens}{message['reasoning_content'].strip()}\n{think[1]}\n\n{text}"
        end = self.chat.end_of_reply
        return self.control.protect(text, self.chat.template.marks) + (
            "" if end is None else self.chat.tokenizer.decode([end])
        )

    def pieces(self, text: str) -> Pieces:
        """The ids of a rendered text."""
        if not self.exact:
            return self.cut(self.chat.encode(text))
        found = [
            self._encode(piece) if token is None else token.to_bytes(4, "little")
            for piece, token in self.control.split(text)
        ]
        if self._checks < CHECKED:
            self._checks += 1
            whole = self.chat.encode(text)
            self.exact = b"".join(found) == np.array(whole, "<i4").tobytes()
            return found if self.exact else self.cut(whole)
        return found

    def cut(self, ids: Sequence[int]) -> Pieces:
        """Token ids, cut at control tokens."""
        array = np.array(ids, "<i4")
        marks = np.flatnonzero(np.isin(array, list(self.control.ids.values())))
        edges = sorted({0, *marks.tolist(), *(marks + 1).tolist(), len(array)})
        return [array[a:b].tobytes() for a, b in pairwise(edges)]

    def _encode(self, text: str) -> bytes:
        key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        ids = self._known.get(key) or self._older.get(key)
        if ids is None:
            ids = np.array(self.chat.encode(text), "<i4").tobytes()
        if len(self._known) >= REMEMBERED:
            self._older, self._known = self._known, {}
        self._known[key] = ids
        return ids


class Seen:
    """Every prefix that an engine with unlimited memory would have K/V of; the least recent are forgotten."""

    def __init__(self):
        self._next: dict[int, list[bytes]] = {}
        self._older: dict[int, list[bytes]] = {}

    def _children(self, place: int) -> list[bytes] | None:
        found = self._next.get(place)
        if found is None and (found := self._older.get(place)) is not None:
            self._next[place] = found
        return found

    def match(self, pieces: Pieces) -> int:
        """Tokens of the longest prefix that was seen."""
        place, tokens = 0, 0
        for piece in pieces:
            children = self._children(place) or ()
            if piece not in children:
                return tokens + max((shared(piece, child) for child in children), default=0)
            tokens += len(piece) // 4
            place = hash((place, piece))
        return tokens

    def add(self, pieces: Pieces) -> None:
        """An engine has computed these tokens."""
        place = 0
        if len(self._next) > PLACES:
            self._older, self._next = self._next, {}
        for piece in pieces:
            children = self._children(place)
            if children is None:
                children = self._next[place] = []
            if piece in children:
                children.remove(piece)
            children.append(piece)
            del children[:-CHILDREN]
            place = hash((place, piece))


def parting(log: Pieces, pieces: Pieces) -> tuple[int, int]:
    """Where two lists part: the index of the piece, and the tokens before."""
    for index, (a, b) in enumerate(zip(log, pieces, strict=False)):
        if a != b:
            return index, length(pieces[:index]) + shared(a, b)
    index = min(len(log), len(pieces))
    return index, length(pieces[:index])
