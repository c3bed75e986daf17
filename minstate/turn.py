"""One turn: what may be asked of it, what it costs, and what it answers."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar, cast

from minstate.arguments import real_number, token_ids_of, whole_number
from minstate.chat.messages import Message, normalise_choice, normalise_format, normalise_tools
from minstate.chat.tool_calls import ToolCall, Tools
from minstate.errors import BadMessage, BadValue
from minstate.sampling import Sampling
from minstate.speculation import Verdict

F = TypeVar("F", bound=Callable)
GREEDY = Sampling()
OTHER_NAMES = {  # what other APIs call an option of a turn, or of its `Sampling`
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "max_output_tokens": "max_new_tokens",
    "timeout": "timeout_s", "format": "response_format", "functions": "tools", "function_call": "tool_choice",
    "stop_sequences": "stop", "stop_token_ids": "stop",
}  # fmt: skip


@dataclass(frozen=True)
class TurnOptions:
    """How a turn is answered. `Engine.submit` and `Session.send` take these as keyword arguments.

    replay           the output, where it is known beforehand (teacher forcing), as ids, text or message: all the work
                     is done, logits included, and `stats.agreed` counts the tokens that the model itself would choose
    max_new_tokens   the answer's length at most, in tokens
    sampling         how tokens are chosen; ignored where the output is replayed
    tools            JSON schemas of the tools that may be called, the session's if None. They constrain the answer; the
                     model is told of the tools that were passed to `open` or `Session.sync`
    tool_choice      "auto": text, and calls that fit their schemas; "required" or a tool's name: one such call, and
                     nothing else, unless `max_new_tokens` cuts it off; "none": no call; None: nothing is enforced.
                     May be an object as in OpenAI's or Anthropic's API
    parallel_tool_calls
                     whether one answer may have several calls; None: it may where calls are not required
    response_format  instead of a call: a JSON schema that the whole answer fits, or an object around it as in OpenAI's
    logprobs         whether `Turn.logprobs` is wanted
    top_logprobs     how many tokens of each position `Turn.top_logprobs` lists: 20 at most, as in OpenAI's API
    timeout_s        seconds after which the turn is given up between two steps; `send` then raises `TurnTimeout`
    on_overflow      where the turn has no room, in the model's positions or in the pool: "error" refuses it,
                     "drop_oldest" first drops the oldest exchanges of the conversation (see `minstate.overflow`)

    Raises `BadMessage`, `BadValue`.
    """

    replay: tuple[int, ...] | str | Message | None = None
    max_new_tokens: int = 256
    sampling: Sampling = GREEDY
    tools: Tools | None = None
    tool_choice: Any = "auto"  # a string or None, once it is checked
    parallel_tool_calls: bool | None = None
    response_format: Mapping[str, Any] | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    timeout_s: float = math.inf
    on_overflow: str = "error"

    def __post_init__(self) -> None:
        if self.replay is not None and not isinstance(self.replay, str | Mapping):
            ids = tuple(token_ids_of("replay", self.replay))
            if not ids:
                raise BadMessage("replay needs at least one token id")
            object.__setattr__(self, "replay", ids)
        if not isinstance(self.sampling, Sampling):
            raise BadValue(f"sampling must be a Sampling, not {type(self.sampling).__name__}")
        object.__setattr__(self, "max_new_tokens", whole_number("max_new_tokens", self.max_new_tokens, 1))
        object.__setattr__(self, "top_logprobs", whole_number("top_logprobs", self.top_logprobs, 0, 20))
        object.__setattr__(self, "timeout_s", real_number("timeout_s", self.timeout_s, above=True))
        if self.on_overflow not in ("error", "drop_oldest"):
            raise BadValue(f"on_overflow must be 'error' or 'drop_oldest', not {self.on_overflow!r}")
        if self.tools is not None:
            object.__setattr__(self, "tools", normalise_tools(self.tools))
        object.__setattr__(self, "tool_choice", normalise_choice(self.tool_choice))
        object.__setattr__(self, "response_format", normalise_format(self.response_format))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "TurnOptions":
        """The options by name. Raises `TypeError`, which says what may be meant, for a name that is unknown."""
        own = {each.name: each.name for each in fields(cls)}
        unknown = next((name for name in options if name not in own), None)
        if unknown is None:
            return cls(**options)
        known = {each.name: f"sampling=Sampling({each.name}=...)" for each in fields(Sampling)}
        known |= {**own, "token_ids": "token_ids"}
        known |= {other: known[name] for other, name in OTHER_NAMES.items()}
        close = get_close_matches(unknown, known, n=1)
        hint = f"did you mean {known[close[0]]}?" if close else f"there are {', '.join(own)}"
        raise TypeError(f"a turn has no option {unknown}: {hint}")


def takes_turn_options(function: F) -> F:
    """Let `help` and completion show the options of a turn by name, though `function` takes them as `**options`."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind != each.VAR_KEYWORD]
    options = inspect.signature(TurnOptions).parameters.values()
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]
    cast("Any", function).__signature__ = signature.replace(parameters=own + named)
    return function


@dataclass(frozen=True)
class TurnStats:
    """What one turn cost. Counts of tokens unless the name says otherwise.

    With `log` the session's token ids before the turn, as far as its input has kept them, `context + delta` is the
    whole prompt. A session that is still resident prefills `delta`, less what is `shared`; the naive baseline prefills
    `context + delta`. A turn that has `dropped` something cuts the log where the conversation does: what is rendered
    again behind the cut is part of `delta`.

    A turn that is `preempted` may lose K/V that it has computed: tokens that it then forwards twice are in `forwarded`,
    and in none of the counts above it.
    """

    context: int  # max(0, len(log) - 1): tokens that had been forwarded before
    delta: int  # everything after it: the last sampled token, never forwarded yet, and the new input
    reused: int  # how much of context + delta had K/V already, in the pool or in a tier below it
    generated: int
    agreed: int  # replayed tokens that the model itself would have chosen; 0 without replay
    drafted: int  # guessed tokens that were forwarded
    accepted: int  # guessed tokens that were forwarded, and that the model then chose
    forced: int  # generated tokens to which the grammar left no alternative
    forwarded: int  # query tokens of all forward passes, rejected drafts included
    steps: int  # forward passes
    preempted: int  # how often the turn went back to waiting, when pages ran out
    dropped: int  # tokens by which the prompt is shorter because `on_overflow` dropped exchanges
    flops: int
    kv_bytes_read: int
    promoted: int  # tokens whose K/V was brought back from host memory or disk
    promoted_s: float  # seconds that this took: a part of ttft_s
    ttft_s: float  # seconds until the first token
    total_s: float  # seconds of the whole turn

    @property
    def recomputed(self) -> int:
        """Tokens of the context whose K/V had been lost and were computed again."""
        return max(0, self.context - self.reused)

    @property
    def shared(self) -> int:
        """New tokens whose K/V was found in the prefix cache, computed by other sessions."""
        return max(0, self.reused - self.context)

    @property
    def prefilled(self) -> int:
        """Tokens to forward before the first new token could be chosen, each counted once."""
        return self.delta + self.recomputed - self.shared

    @property
    def prefill_s(self) -> float:
        """Seconds from the request to the first token: templating, waiting, prefill."""
        return self.ttft_s

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last."""
        return self.total_s - self.ttft_s


@dataclass(frozen=True)
class Turn:
    """The model's answer."""

    text: str  # without the thoughts in front of it
    token_ids: tuple[int, ...]
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str  # "stop": end of reply or stop condition; "length": max_new_tokens; "replay": end of the replay
    stats: TurnStats
    # Natural logs of probabilities by the softmax of the model's own logits: without temperature, penalties, bias,
    # filters and grammar, so that they do not depend on how the tokens were chosen.
    logprobs: tuple[float, ...] | None  # of each generated token
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None  # (token id, logprob), best first, at each position
    reasoning: str  # the model's thoughts in front of its answer
    content: str  # the text in front of its calls
    verdicts: tuple[Verdict, ...]  # of each forward pass that sampled: what was drafted, and what was sampled

    def __repr__(self) -> str:
        """Text, calls and the most important counts: what fits into a notebook's cell."""
        stats, lines = self.stats, [f"Turn: {_shortened(repr(self.text))}"]
        for call in self.tool_calls:
            arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
            shown = f"{call.name}({arguments})" if call.name else repr(call.raw)
            lines.append(f"call: {_shortened(shown)}" + (f": {_shortened(call.error)}" if call.error else ""))
        lines.append(f"ended by: {self.finish_reason}, {stats.total_s:.2f} s, {stats.steps:,} steps")
        lines.append(f"prompt: {stats.context:,} in context, Δ {stats.delta:,}, {stats.prefilled:,} prefilled")
        lines.append(f"answer: {stats.generated:,} generated, {stats.accepted:,} of {stats.drafted:,} guesses accepted")
        return "\n  ".join(lines)


class StreamedToken(NamedTuple):
    """One new token, and the text that it completes: "" in the middle of a multi-byte character.

    The texts of a turn make up `Turn.text`, with the thoughts in front of it, except that a stop string is not cut off,
    nor a torn last character shown.
    """

    token_id: int
    text: str


def _shortened(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
