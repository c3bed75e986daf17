"""What a reply may say: tool calls that fit their schemas, or JSON that fits one schema.

[llguidance](https://github.com/guidance-ai/llguidance) does the parsing: it tells which tokens may come next, and which
*must*, since the grammar leaves one continuation only. Those are said without asking the model; a draft takes them in
at no risk.

JSON has one spelling here, that of chat templates and of `json.dumps`: `", "` and `": "` between the parts, properties
in the order of the schema, and no other white space. So a call that the model wrote, and the same call when a template
renders it again, are the same text, and whatever was cached or looked up behind it still fits.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from minstate.chat.messages import Message, Messages
from minstate.errors import BadValue, BrokenInvariant, UnsupportedModel, UnsupportedSchema

SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
CHOICES = ("auto", "required", "none")
TEXT = r"/(?s:.*)/"
OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEFORE_NAME, QUOTE, ARGUMENTS, BEHIND_ARGUMENTS = '\n{"name": ', '"', '"arguments": ', "}\n" + CLOSE


class Constraint:
    """Where a reply stands in its grammar.

    forced  tokens that must come next, one after the other; `()` where there is a choice
    ended   the grammar has come to its end: the reply is complete

    Forced tokens are settled as a run, at the token before it. So a reply is the same whether it was taken in token by
    token or in drafts.
    """

    def __init__(self, matcher: LLMatcher, end: int | None):
        self._matcher, self._end = matcher, end
        self.forced: tuple[int, ...] = ()
        self.ended = False
        self._settle()

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if self.forced:
            return token == self.forced[0]
        return not self.ended and self._matcher.validate_tokens([token]) == 1

    def mask(self, vocab_size: int) -> np.ndarray:
        """Which tokens may come next: `[vocab]`, bool. Takes up to a millisecond, and where there is a choice only."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=vocab_size, bitorder="little").astype(bool)

    def advance(self, token: int) -> None:
        """`token` comes next. It must be allowed."""
        if not self.allows(token):
            raise BrokenInvariant(
                f"token {token} does not fit the grammar: {self._matcher.get_error() or 'not allowed'}"
            )
        if self._matcher.is_stopped():  # all is said but the end of the reply, of which the parser knows nothing
            self.forced, self.ended = (), True
            return
        self._matcher.try_consume_tokens([token])
        self.forced = self.forced[1:]
        if not self.forced:
            self._settle()

    def copy(self) -> "Constraint":
        """One that goes on by itself. Costs some 20 µs."""
        other = object.__new__(Constraint)
        other._matcher, other._end = self._matcher.deep_copy(), self._end
        other.forced, other.ended = self.forced, self.ended
        return other

    def _settle(self) -> None:
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
    """Makes constraints for one tokenizer. Raises `UnsupportedModel` if llguidance can't read it.

    vocab_size  of the model, which may have more rows than the tokenizer has tokens
    eos_ids     tokens that end a reply
    """

    def __init__(self, tokenizer, vocab_size: int, eos_ids: frozenset[int]):
        own = tokenizer.eos_token_id
        self._end = own if own in eos_ids else min(eos_ids, default=None)
        try:
            self._tokenizer = from_tokenizer(tokenizer, vocab_size, sorted(eos_ids) or own)
        except Exception as error:  # whatever the parser makes of it
            raise UnsupportedModel(
                f"replies can't be constrained with this tokenizer, pass tool_choice=None: {error}"
            ) from error
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def constraint(
        self, tools: Messages, tool_choice: str | None, response_format: Mapping | None
    ) -> Constraint | None:
        """What a turn's reply must fit, from public schemas alone; None if anything goes.

        Raises `BadValue` if there is no such choice, `UnsupportedSchema` if a schema asks for what cannot be enforced.
        """
        grammar = grammar_of(tools, tool_choice, response_format)
        return None if grammar is None else Constraint(self._compiled(grammar).deep_copy(), self._end)

    def _compile(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            raise UnsupportedSchema(f"a schema cannot be enforced: {matcher.get_error().splitlines()[0]}")
        return matcher


def function_of(tool: Message) -> tuple[str, Mapping[str, Any]]:
    """A tool's name, and the JSON schema of its arguments. Raises `UnsupportedSchema`."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    parameters = function.get("parameters") or {"type": "object", "properties": {}} if name else None
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise UnsupportedSchema(f"a tool needs a name and a schema of its parameters: {tool!r:.200}")
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        raise UnsupportedSchema(f"in a schema, properties are an object and required is a list: {tool!r:.200}")
    return name, parameters


def call_opening(tool: Message) -> str:
    """How a call of the tool begins, as far as that is known: up to the first value, if an argument is required."""
    name, parameters = function_of(tool)
    first = next(iter(parameters.get("properties", {})), None)
    opening = f"{OPEN}{BEFORE_NAME}{_json(name)}, {ARGUMENTS}{{"
    return opening + f"{_json(first)}: " if first in parameters.get("required", ()) else opening


def grammar_of(tools: Messages, choice: str | None, response_format: Mapping | None) -> str | None:
    """What a turn's reply must fit, in llguidance's dialect of Lark; None if anything goes.

    Raises `BadValue` if there is no such choice, `UnsupportedSchema` if a tool has none.
    """
    if choice is not None and not isinstance(choice, str):
        raise BadValue(f"tool_choice must be None or a string, not {choice!r:.200}")
    functions = dict(function_of(tool) for tool in tools) if choice not in (None, "none") else {}
    if choice is not None and choice not in CHOICES and choice not in functions:
        known = ", ".join(functions) or "there are none"
        raise BadValue(
            f"tool_choice must be None, one of {', '.join(CHOICES)}, or a tool's name ({known}), not {choice!r}"
        )
    if response_format is not None:
        if choice not in (None, "auto", "none"):
            raise BadValue(f"a reply is either a call (tool_choice={choice!r}) or fits response_format")
        if not isinstance(response_format, Mapping):
            raise BadValue(f"response_format must be a JSON schema, not {type(response_format).__name__}")
        return f"start: {_value(response_format)}"
    if choice == "none":
        return f"start: TEXT\nTEXT: {TEXT} & ~/(?s:.*){OPEN}(?s:.*)/"
    if choice == "required" and not functions:
        raise BadValue("tool_choice='required' needs tools")
    if not functions:
        return None
    if choice not in CHOICES:
        functions = {choice: functions[choice]}
    # A name's opening quote belongs to what all calls have in common.
    calls = [
        f"call_{i}: {_json(_json(name)[1:] + ', ' + ARGUMENTS)} {_value(_closed(schema))}"
        for i, (name, schema) in enumerate(functions.items())
    ]
    which = " | ".join(f"call_{i}" for i in range(len(calls)))
    body = f"{_json(BEFORE_NAME + QUOTE)} ({which}) {_json(BEHIND_ARGUMENTS)}"
    if choice == "auto":
        start = f'start: (begun {body})* TEXT\nbegun[lazy]: TEXT "{OPEN}"\nTEXT: {TEXT}'
    else:
        start = f'start: "{OPEN}" {body}'
    return "\n".join([start, *calls])


def _closed(parameters: Mapping) -> Mapping:
    """A call names the parameters that its tool lists, and invents none, unless the schema says that it may."""
    listed = "properties" in parameters and "patternProperties" not in parameters
    return {"additionalProperties": False, **parameters} if listed else parameters


def _value(schema: Mapping) -> str:
    return f"%json {_json({**schema, 'x-guidance': SPELLING})}"


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()  # a lone surrogate is no text
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise BadValue(f"a schema must be JSON: {error}") from error
