"""What a reply may be: tool calls that fit their schemas, or JSON that fits one schema.

[llguidance](https://github.com/guidance-ai/llguidance) does the parsing: it tells which tokens may come next, and which
*must*, because the grammar leaves one continuation only. A draft takes in such forced tokens at no risk.

JSON has one spelling here, that of chat templates and of `json.dumps`: `", "` and `": "` between the parts, properties
in the order of the schema, and no other white space. So a call has the same text when the model writes it and when a
template renders it again, and whatever is cached or looked up behind it still fits.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from functools import cache, cached_property, lru_cache
from typing import TypeVar

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from minstate.chat.call_grammar import TEXT, CallGrammar, Calls
from minstate.chat.content import ControlTokens
from minstate.chat.dialect import HERMES, Dialect
from minstate.chat.tool_calls import Tools, function_of
from minstate.errors import BadValue, BrokenInvariant, UnsupportedModel, UnsupportedSchema

T = TypeVar("T")
CHOICES = ("auto", "required", "none")


class Constraint:
    """A reply's place in its grammar.

    forced  tokens that must come next, one after the other; `()` where there is a choice
    ended   whether the grammar is at its end, and the reply complete

    A run of forced tokens is computed once, at the token before it. So a reply is the same whether it grows token by
    token or by drafts.

    Past a limit of its resources, the parser raises nothing and allows only the end of the reply. So every method asks
    for its error, and raises `UnsupportedSchema`. Before that it calls `forget`: copies of a matcher share what has
    reached the limit.
    """

    def __init__(self, matcher: LLMatcher, end: int | None, forget: Callable[[], None] = lambda: None):
        self._matcher, self._end, self._forget = matcher, end, forget
        self.forced: tuple[int, ...] = ()
        self.ended = False
        self._find_forced()

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if self.forced:
            return token == self.forced[0]
        return not self.ended and self._sound(self._matcher.validate_tokens([token])) == 1

    def mask(self, vocab_size: int) -> np.ndarray:
        """Which tokens may come next: `[vocab]`, bool. Takes up to a millisecond, so don't ask where one is forced."""
        bits = np.frombuffer(self._sound(self._matcher.compute_bitmask()), dtype=np.uint8)
        return np.unpackbits(bits, count=vocab_size, bitorder="little").astype(bool)

    def advance(self, token: int) -> None:
        """Move on by `token`, which must be allowed."""
        if not self.allows(token):
            raise BrokenInvariant(f"token {token} does not fit the grammar")
        if self._matcher.is_stopped():  # only the end of the reply was missing, of which the parser knows nothing
            self.forced, self.ended = (), True
            return
        if self._sound(self._matcher.try_consume_tokens([token])) != 1:
            raise BrokenInvariant(f"the parser does not move on by the forced token {token}")
        self.forced = self.forced[1:]
        if not self.forced:
            self._find_forced()

    def copy(self) -> "Constraint":
        """A second constraint at the same place. Costs some 20 µs."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def _find_forced(self) -> None:
        """Compute the next run of forced tokens, or that the grammar is at its end."""
        if not self._sound(self._matcher.is_stopped()):
            self.forced = tuple(self._sound(self._matcher.compute_ff_tokens()))
        elif self._matcher.stop_reason() == "NoExtension" and self._end is not None:
            self.forced = (self._end,)
        else:
            self.ended = True

    def _sound(self, answer: T) -> T:
        """What the parser has answered, unless it has reached a limit."""
        if self._matcher.is_error():
            self._forget()
            raise UnsupportedSchema(f"the grammar is too much for the parser: {self._matcher.get_error()!s:.200}")
        return answer


class Grammars:
    """Makes constraints for one tokenizer, which llguidance reads when the first constraint is made.

    vocab_size  of the model, which may have more rows than the tokenizer has tokens
    eos_ids     tokens that end a reply
    dialect     in which the model writes calls and thoughts
    """

    def __init__(self, tokenizer, vocab_size: int, eos_ids: frozenset[int], dialect: Dialect = HERMES):
        own = tokenizer.eos_token_id
        self._end = own if own in eos_ids else min(eos_ids, default=None)
        self._read_tokenizer = cache(lambda: _read_tokenizer(self._control, vocab_size, sorted(eos_ids) or own))
        self._compiled = lru_cache(maxsize=64)(self._compile)
        self._warned: set[str] = set()
        self._control, self._eos_ids, self._dialect = ControlTokens(tokenizer), eos_ids, dialect

    def prepare(self) -> None:
        """Let llguidance read the tokenizer now, which takes most of a second. Raises `UnsupportedModel`."""
        self._read_tokenizer()

    def constraint(
        self,
        tools: Tools,
        choice: str | None,
        response_format: Mapping | None,
        *,
        parallel: bool | None = None,
        thinking: bool = False,
    ) -> Constraint | None:
        """What a turn's reply must fit, from public schemas alone; None if the reply is free.

        choice, response_format, parallel  as in `TurnOptions`
        thinking                           whether the reply begins inside the model's thoughts

        Raises `BadValue` if there is no such choice, `UnsupportedSchema` if a schema cannot be enforced, and
        `UnsupportedModel` if llguidance cannot read the tokenizer.
        """
        grammar = self._grammar(tools, choice, response_format, parallel, thinking)
        if grammar is None:
            return None
        return Constraint(self._compiled(grammar).deep_copy(), self._end, self._compiled.cache_clear)

    def constraint_for_replay(self, *wanted, **how) -> Constraint | None:
        """As `constraint`, for an output that is given. It need not fit: the grammar only guesses at it, if it can."""
        with suppress(UnsupportedModel, UnsupportedSchema):
            return self.constraint(*wanted, **how)
        return None

    def _grammar(
        self, tools: Tools, choice: str | None, schema: Mapping | None, parallel: bool | None, thinking: bool
    ) -> str | None:
        """What a turn's reply must fit, in llguidance's dialect of Lark; None if the reply is free."""
        functions = _functions(tools, choice)
        if schema is not None:
            if choice not in (None, "auto", "none"):
                raise BadValue(f"a reply is either a call (tool_choice={choice!r}) or fits response_format")
            if not isinstance(schema, Mapping):
                raise BadValue(f"response_format must be a JSON schema, not {type(schema).__name__}")
            return self._writer.value(schema, thinking=thinking)
        if choice == "none":
            return self._writer.none(thinking=thinking)
        if choice == "required" and not functions:
            raise BadValue("tool_choice='required' needs tools")
        if not functions:
            return None
        how = {"parallel": parallel, "thinking": thinking}
        calls = self._enforceable(functions, must_be=choice != "auto")
        return self._writer.free(calls, **how) if choice == "auto" else self._writer.required(calls, **how)

    def _enforceable(self, functions: Mapping[str, Mapping], *, must_be: bool) -> Calls:
        """The schemas of tools, and None for a schema that cannot be enforced, unless all of them must be."""
        ends = [text for text, token in self._writer.atoms.items() if token in self._eos_ids]
        if hidden := [end for end in ends if end in self._dialect.calls]:
            raise UnsupportedModel(f"this model's calls hold {hidden[0]!r}, which ends a reply: pass tool_choice=None")
        calls: dict[str, Mapping | None] = dict(functions)
        for name, schema in functions.items():
            if problem := self._writer.problem_with(name, schema):
                if must_be:
                    raise UnsupportedSchema(f"{problem}; or pass tool_choice='auto', which leaves its arguments free")
                if problem not in self._warned:
                    warnings.warn(f"a call's arguments are left free: {problem}", stacklevel=7)
                self._warned.add(problem)
                calls[name] = None
        return calls

    @cached_property
    def _writer(self) -> CallGrammar:
        """Writes grammars. A control token that llguidance takes for its text is written as text."""
        anything = LLMatcher(
            self._read_tokenizer(), LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {TEXT}"), log_level=0
        )
        atoms = {text: i for text, i in self._control.ids.items() if not anything.validate_tokens([i])}
        spoken = {i for text, i in atoms.items() if text in self._dialect.spelling or not self._control.is_special(i)}
        return CallGrammar(self._dialect, atoms, frozenset(spoken - self._eos_ids))

    def _compile(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self._read_tokenizer(), LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            raise UnsupportedSchema(f"a schema cannot be enforced: {matcher.get_error().splitlines()[0]}")
        return matcher


def _read_tokenizer(control: ControlTokens, vocab_size: int, eos_ids: list[int] | int) -> LLTokenizer:
    """The tokenizer for llguidance, in which special tokens have secret names.

    So what a constant spells is never forced as a special token, which would end the reply or stand for no text.
    """
    try:
        special = {text: token for text, token in control.ids.items() if control.is_special(token)}
        return LLTokenizer(control.renamed(special).to_str(), n_vocab=vocab_size, eos_token=eos_ids)
    except Exception as error:  # the parser may raise anything
        raise UnsupportedModel(
            f"replies can't be constrained with this tokenizer, pass tool_choice=None: {error}"
        ) from error


def _functions(tools: Tools, choice: str | None) -> dict[str, Mapping]:
    """Names and schemas of the tools that a reply may call if `choice` is made.

    Raises `BadValue` if there is no such choice, `UnsupportedSchema` if a tool has no name or schema.
    """
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
