"""What a reply may be: tool calls that fit their schemas, or JSON that fits one schema.

[llguidance](https://github.com/guidance-ai/llguidance) does the parsing: it tells which tokens may come next, and which
*must*, because the grammar leaves one continuation only. A draft takes in such forced tokens at no risk.

JSON has one spelling here, that of chat templates and of `json.dumps`: `", "` and `": "` between the parts, properties
in the order of the schema, and no other white space. So a call has the same text when the model writes it and when a
template renders it again, and whatever is cached or looked up behind it still fits.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from minstate.chat.tool_calls import AFTER_ARGUMENTS, BEFORE_ARGUMENTS, BEFORE_NAME, CLOSE, OPEN, Tools, function_of
from minstate.errors import BadValue, BrokenInvariant, UnsupportedModel, UnsupportedSchema

SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
CHOICES = ("auto", "required", "none")
TEXT, QUOTE = r"/(?s:.*)/", '"'


class Constraint:
    """A reply's place in its grammar.

    forced  tokens that must come next, one after the other; `()` where there is a choice
    ended   whether the grammar is at its end, and the reply complete

    A run of forced tokens is computed once, at the token before it. So a reply is the same whether it grows token by
    token or by drafts.
    """

    def __init__(self, matcher: LLMatcher, end: int | None):
        self._matcher, self._end = matcher, end
        self.forced: tuple[int, ...] = ()
        self.ended = False
        self._find_forced()

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if self.forced:
            return token == self.forced[0]
        return not self.ended and self._matcher.validate_tokens([token]) == 1

    def mask(self, vocab_size: int) -> np.ndarray:
        """Which tokens may come next: `[vocab]`, bool. Takes up to a millisecond, so don't ask where one is forced."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=vocab_size, bitorder="little").astype(bool)

    def advance(self, token: int) -> None:
        """Move on by `token`, which must be allowed."""
        if not self.allows(token):
            raise BrokenInvariant(
                f"token {token} does not fit the grammar: {self._matcher.get_error() or 'not allowed'}"
            )
        if self._matcher.is_stopped():  # only the end of the reply was missing, of which the parser knows nothing
            self.forced, self.ended = (), True
            return
        self._matcher.try_consume_tokens([token])
        self.forced = self.forced[1:]
        if not self.forced:
            self._find_forced()

    def copy(self) -> "Constraint":
        """A second constraint at the same place. Costs some 20 µs."""
        other = object.__new__(Constraint)
        other._matcher, other._end = self._matcher.deep_copy(), self._end
        other.forced, other.ended = self.forced, self.ended
        return other

    def _find_forced(self) -> None:
        """Compute the next run of forced tokens, or that the grammar is at its end."""
        if not self._matcher.is_stopped():
            self.forced = tuple(self._matcher.compute_ff_tokens())
            return
        if self._matcher.is_error():
            raise UnsupportedSchema(f"the grammar is too much for the parser: {self._matcher.get_error()}")
        if self._matcher.stop_reason() == "NoExtension" and self._end is not None:
            self.forced = (self._end,)
        else:
            self.ended = True


class Grammars:
    """Makes constraints for one tokenizer, which llguidance reads when the first constraint is made.

    vocab_size  of the model, which may have more rows than the tokenizer has tokens
    eos_ids     tokens that end a reply
    """

    def __init__(self, tokenizer, vocab_size: int, eos_ids: frozenset[int]):
        own = tokenizer.eos_token_id
        self._end = own if own in eos_ids else min(eos_ids, default=None)
        self._read_tokenizer = cache(lambda: _read_tokenizer(tokenizer, vocab_size, sorted(eos_ids) or own))
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def prepare(self) -> None:
        """Let llguidance read the tokenizer now, which takes most of a second. Raises `UnsupportedModel`."""
        self._read_tokenizer()

    def constraint(self, tools: Tools, tool_choice: str | None, response_format: Mapping | None) -> Constraint | None:
        """What a turn's reply must fit, from public schemas alone; None if the reply is free.

        Raises `BadValue` if there is no such choice, `UnsupportedSchema` if a schema cannot be enforced, and
        `UnsupportedModel` if llguidance cannot read the tokenizer.
        """
        grammar = grammar_of(tools, tool_choice, response_format)
        return None if grammar is None else Constraint(self._compiled(grammar).deep_copy(), self._end)

    def constraint_for_replay(
        self, tools: Tools, tool_choice: str | None, response_format: Mapping | None
    ) -> Constraint | None:
        """As `constraint`, for an output that is given. It need not fit: the grammar only guesses at it, if it can."""
        with suppress(UnsupportedModel, UnsupportedSchema):
            return self.constraint(tools, tool_choice, response_format)
        return None

    def _compile(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self._read_tokenizer(), LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            raise UnsupportedSchema(f"a schema cannot be enforced: {matcher.get_error().splitlines()[0]}")
        return matcher


def _read_tokenizer(tokenizer, vocab_size: int, eos_ids: list[int] | int) -> LLTokenizer:
    try:
        return from_tokenizer(tokenizer, vocab_size, eos_ids)
    except Exception as error:  # the parser may raise anything
        raise UnsupportedModel(
            f"replies can't be constrained with this tokenizer, pass tool_choice=None: {error}"
        ) from error


def grammar_of(tools: Tools, choice: str | None, response_format: Mapping | None) -> str | None:
    """What a turn's reply must fit, in llguidance's dialect of Lark; None if the reply is free.

    Raises `BadValue` if there is no such choice, `UnsupportedSchema` if a tool has no name or schema.
    """
    functions = _functions(tools, choice)
    if response_format is not None:
        if choice not in (None, "auto", "none"):
            raise BadValue(f"a reply is either a call (tool_choice={choice!r}) or fits response_format")
        if not isinstance(response_format, Mapping):
            raise BadValue(f"response_format must be a JSON schema, not {type(response_format).__name__}")
        return f"start: {_value(response_format)}"
    if choice == "none":
        return f"start: TEXT\nTEXT: {TEXT} & ~/(?s:.*){re.escape(OPEN)}(?s:.*)/"
    if choice == "required" and not functions:
        raise BadValue("tool_choice='required' needs tools")
    if not functions:
        return None
    # A name's opening quote belongs to what all calls have in common.
    calls = [
        f"call_{i}: {_json(_json(name)[1:] + BEFORE_ARGUMENTS)} {_value(_closed(schema))}"
        for i, (name, schema) in enumerate(functions.items())
    ]
    which = " | ".join(f"call_{i}" for i in range(len(calls)))
    body = f"{_json(BEFORE_NAME + QUOTE)} ({which}) {_json(AFTER_ARGUMENTS + CLOSE)}"
    if choice == "auto":
        start = f"start: (begun {body})* TEXT\nbegun[lazy]: TEXT {_json(OPEN)}\nTEXT: {TEXT}"
    else:
        start = f"start: {_json(OPEN)} {body}"
    return "\n".join([start, *calls])


def _functions(tools: Tools, choice: str | None) -> dict[str, Mapping]:
    """Names and schemas of the tools that a reply may call if `choice` is made. Raises as `grammar_of` does."""
    if choice is not None and not isinstance(choice, str):
        raise BadValue(f"tool_choice must be None or a string, not {choice!r:.200}")
    if choice in (None, "none"):
        return {}
    functions = dict(function_of(tool) for tool in tools)
    if choice in CHOICES:
        return functions
    if choice not in functions:
        known = ", ".join(functions) or "there are none"
        raise BadValue(
            f"tool_choice must be None, one of {', '.join(CHOICES)}, or a tool's name ({known}), not {choice!r}"
        )
    return {choice: functions[choice]}


def _closed(parameters: Mapping) -> Mapping:
    """A call names the parameters that its tool lists, and invents none, unless the schema says that it may."""
    listed = "properties" in parameters and "patternProperties" not in parameters
    return {"additionalProperties": False, **parameters} if listed else parameters


def _value(schema: Mapping) -> str:
    return f"%json {_json({**schema, 'x-guidance': SPELLING})}"


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()  # raises on a lone surrogate, which is not valid text
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"a schema must be JSON: {error}") from error
