"""How a turn is answered: its options, the output where that is given, and otherwise what the output must fit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minstate.arguments import token_ids_of
from minstate.chat.grammar import Constraint
from minstate.chat.tool_calls import Tools
from minstate.errors import BadValue
from minstate.speculation import GRAMMAR
from minstate.turn import TurnOptions


def read_options(engine: Any, given: Mapping[str, Any]) -> tuple[TurnOptions, tuple[int, ...] | None]:
    """A turn's options, and the token ids of its output, where that is given as ids, text or message."""
    options, vocab_size = TurnOptions.of(given), engine.model.config.vocab_size
    token_ids_of("logit_bias", dict(options.sampling.logit_bias), vocab_size, BadValue)
    if (replay := options.replay) is None:
        return options, None
    if isinstance(replay, str | Mapping):
        replay = tuple(engine.chat.encode_reply(replay))
    replay = tuple(token_ids_of("replay", replay, vocab_size))
    return replace(options, max_new_tokens=len(replay)), replay


def constraint_of(engine: Any, options: TurnOptions, tools: Tools, thinking: bool) -> Constraint | None:
    """What the output must fit. A replayed output is not constrained, but the grammar may guess at it."""
    wanted = tools, options.tool_choice, options.response_format
    how = {"parallel": options.parallel_tool_calls, "thinking": thinking}
    if options.replay is None:
        return engine.grammars.constraint(*wanted, **how)
    guesses = (speculation := engine.scheduler.speculation) is not None and GRAMMAR in speculation.sources
    return engine.grammars.constraint_for_replay(*wanted, **how) if guesses else None
