"""Text that others wrote: it is read, but it never controls.

Users, tools and retrieved files may write `<|im_end|>` or `<tool_call>`, by accident or in order to take a conversation
over ([prompt injection](https://arxiv.org/abs/2302.12173)). In a rendered prompt such a text would become the control
token of that name. Only what the chat template itself writes may become a control token. So text passes through here
twice:

    before rendering   `protect` breaks up each added token that a content spells: `<|im_end|>` → `<꧅|im_end|>`
    after rendering    `encode` encodes a text with broken tokens under *secret names*: the tokens that the template
                       wrote get names that no content can know, and a second tokenizer knows them by these names only.
                       Then the breaks are taken out. What content spells is ordinary text to this tokenizer.

The text is encoded in one piece, so merges, prefix spaces and normalisation are what they would be otherwise.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from minstate.errors import BadMessage, UnsupportedModel

BREAK = "\ua9c5"  # a letter that Python and JSON print as it is; content that has this letter has it twice meanwhile


class ControlTokens:
    """The added tokens of a tokenizer, which only a chat template may write.

    Added tokens of white space, which some tokenizers have for indentation, control nothing and are left alone.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.ids = {token.content: i for i, token in added if token.content.strip()}
        by_length = sorted(self.ids, key=len, reverse=True)
        self._spelt = _any_of(by_length)
        # A template may put its own brackets around a name: `<` + key + `>`.
        self._names = {name for token in by_length for name in (token[1:-1], token[2:-1]) if len(name) > 1}
        self._key = secrets.token_hex(8)

    def without_special(self, text: str) -> str:
        """The text without the special tokens that it spells."""
        return "".join(piece for piece, token in self.split(text) if token is None or not self.is_special(token))

    def is_special(self, token: int) -> bool:
        """Whether an added token is left out where special ones are skipped."""
        return self.tokenizer.added_tokens_decoder[token].special

    def protect(self, content: Any, allowed: frozenset[str] = frozenset()) -> Any:
        """A JSON value in whose strings no added token is spelt any more, except those that are `allowed`."""
        if isinstance(content, Mapping):
            return {self.protect(key, allowed): self.protect(value, allowed) for key, value in content.items()}
        if isinstance(content, list | tuple):
            return [self.protect(part, allowed) for part in content]
        if not isinstance(content, str):
            return content
        text = content.replace(BREAK, BREAK + BREAK)
        if text in self._names:
            return _broken(text)
        return self._spelt.sub(
            lambda found: found[0] if found[0] in allowed else found[0][:1] + BREAK + found[0][1:], text
        )

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """The text in pieces: each added token that it spells with its id, and the text between them with None."""
        pieces: list[tuple[str, int | None]] = []
        position = 0
        for found in self._spelt.finditer(text):
            if found.start() > position:
                pieces.append((text[position : found.start()], None))
            pieces.append((found[0], self.ids[found[0]]))
            position = found.end()
        return [*pieces, (text[position:], None)] if position < len(text) else pieces

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text. Raises `BadMessage` if it is not valid text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadMessage(f"a message or tool holds a lone surrogate, which is not valid text: {error}") from error
        if BREAK not in text:
            return self.tokenizer.encode(text, add_special_tokens=False)
        text = self._spelt.sub(lambda found: self._secret_name(self.ids[found[0]]), text)
        return self._knows_secret_names.encode(plain(text), add_special_tokens=False).ids

    def _secret_name(self, token: int) -> str:
        return f"\uf0fe{self._key}.{token}\uf0ff"

    @cached_property
    def _knows_secret_names(self) -> Tokenizer:
        return self.renamed(self.ids)

    def renamed(self, tokens: Mapping[str, int]) -> Tokenizer:
        """The same tokenizer with secret names for some added tokens. Takes as long as to load the tokenizer."""
        secret = {text: self._secret_name(token) for text, token in tokens.items()}
        saved = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in saved["added_tokens"]:
            token["content"] = secret.get(token["content"], token["content"])
        saved["truncation"] = saved["padding"] = None
        model = saved["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {secret.get(text, text): token for text, token in model["vocab"].items()}
        else:  # of a unigram model: pieces with scores
            model["vocab"] = [[secret.get(text, text), score] for text, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = secret.get(model["unk_token"], model["unk_token"])
        if "merges" in model:
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
            model["merges"] = [pair for pair in pairs if secret.keys().isdisjoint((*pair, "".join(pair)))]
        renamed = Tokenizer.from_str(json.dumps(saved))
        if any(renamed.token_to_id(self._secret_name(token)) != token for token in tokens.values()):
            raise UnsupportedModel(
                "content spells a control token, and this tokenizer cannot keep the two apart: open the session with "
                "content_may_control=True if you trust what is sent"
            )
        return renamed


def _broken(token: str) -> str:
    return token[:1] + BREAK + token[1:]


def without(text: str, pieces: Iterable[str]) -> str:
    """The text without the pieces that it holds."""
    for piece in pieces:
        text = text.replace(piece, "")
    return text


def plain(text: str) -> str:
    """The text as it was before it was protected."""
    return re.sub(f"{BREAK}({BREAK}?)", r"\1", text)


def _any_of(tokens: list[str]) -> re.Pattern[str]:
    """Finds the longest of `tokens` (longest first) at each place; nothing if there are none."""
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two lists, or two texts, have in common at their beginning."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def common_tail(a: str, b: str) -> str:
    """The text that two texts have in common at their end."""
    return a[len(a) - common_prefix(a[::-1], b[::-1]) :]
