"""One turn: what it costs, what it answers, and how to follow it while it runs."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from tokenizers.decoders import DecodeStream

from minstate.chat.messages import ToolCall, parse_tool_calls
from minstate.chat.template import Transcript
from minstate.errors import BrokenInvariant
from minstate.forward import Scores
from minstate.sampling import choose
from minstate.scheduler import Request
from minstate.speculation import Guess, Verdict

if TYPE_CHECKING:
    from minstate.session import Session


@dataclass(frozen=True)
class TurnStats:
    """What one turn cost. Counts of tokens unless the name says otherwise.

    With `log` the session's token ids before the turn, `context + delta` is the whole prompt. A session that is still
    resident prefills `delta`, less what is `shared`; the naive baseline prefills `context + delta`.

    A turn that is `preempted` may lose what it has computed: what it then computes twice is in `forwarded`, and in none
    of the counts above it.
    """

    context: int  # max(0, len(log) - 1): tokens that had been forwarded before
    delta: int  # everything after it: the last sampled token, never forwarded yet, and the new input
    reused: int  # how much of context + delta had K/V already
    generated: int
    agreed: int  # replayed tokens that the model itself would have chosen; 0 without replay
    drafted: int  # guessed tokens that were forwarded
    accepted: int  # and that were what the model then said
    forced: int  # generated tokens to which the grammar left no alternative
    forwarded: int  # query tokens of all forward passes, rejected drafts included
    steps: int  # forward passes
    preempted: int  # how often it was put back to wait, when pages ran out
    flops: int
    kv_bytes_read: int
    ttft_s: float  # seconds until the first token
    total_s: float  # seconds of the whole turn

    @property
    def recomputed(self) -> int:
        """Tokens of the context whose K/V had been lost and were computed again."""
        return max(0, self.context - self.reused)

    @property
    def shared(self) -> int:
        """New tokens whose K/V was found elsewhere."""
        return max(0, self.reused - self.context)

    @property
    def prefilled(self) -> int:
        """Tokens to forward before the first new token could be chosen, once each."""
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
    """What the model answered."""

    text: str
    token_ids: tuple[int, ...]
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str  # "stop": end of reply or stop condition; "length": max_new_tokens; "replay": output given
    stats: TurnStats
    logprobs: tuple[float, ...] | None  # natural log of each token's probability, before any sampling setting
    verdicts: tuple[Verdict, ...]  # of each forward pass that said something: what was drafted, and what was said


class StreamedToken(NamedTuple):
    """One new token, and the text that it completes: "" in the middle of a multi-byte character.

    The texts of a turn make up `Turn.text`, except that a stop string is not cut off, nor a torn last character shown.
    """

    token_id: int
    text: str


class Handle:
    """A submitted turn. `Engine.step` moves it on; `turn` is the answer once it is `done`."""

    def __init__(self, session: "Session", request: Request, said: Transcript, undo, started_s: float, deadline: float):
        self.session, self.request = session, request
        self.said = said  # what has been said once this turn is done, but for its answer
        self.undo = undo  # of what the turn's input has cut off the log, if anything
        self.tokens: list[StreamedToken] = []
        self.turn: Turn | None = None
        self.aborted = False
        self.deadline = deadline  # on the engine's clock
        self._started_s = started_s
        self._first_token_s = 0.0
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._text = ""

    @property
    def error(self) -> Exception | None:
        """Why the turn was given up, if nobody asked for that."""
        return self.request.error

    @property
    def done(self) -> bool:
        """Whether the turn has ended, with an answer or by an abort."""
        return self.turn is not None or self.aborted

    def abort(self) -> None:
        """Give the turn up: the session's log and marks are as before it. Does nothing to a turn that is done."""
        if not self.done:
            self.session.engine.abort(self)

    def hear(self, scores: Scores, draft: Sequence[Guess], tokenizer, eos_ids: Collection[int]) -> Turn | None:
        """Say what comes next: the accepted part of the draft, and one token more. Returns the turn if that ends it.

        scores  a row behind the log's end, and one behind each token of the draft
        """
        first, reason = len(self.tokens), ""
        for place in range(1 + len(draft)):
            token = self._next(scores.logits[place], scores.best[place])
            self._take(token, tokenizer)
            reason = self._finish_reason(tokenizer, eos_ids)
            if reason or place == len(draft) or draft[place].token_id != token:
                break
        self.request.verdicts.append(Verdict(tuple(draft), tuple(self.request.generated[first:])))
        return self._answer(reason, tokenizer) if reason else None

    def _next(self, logits: torch.Tensor, best: int) -> int:
        """The next token, as without any draft. `best` is the arg-max of its logits `[vocab]`."""
        request, constraint = self.request, self.request.constraint
        if request.replay is None:
            token = choose(logits, request.sampling, len(request.sequence.log), constraint, best)
        else:
            token = request.replay[len(request.generated)]
            request.agreed += best == token
        if constraint and constraint.allows(token):
            request.forced += bool(constraint.forced)
            constraint.advance(token)
            if constraint.ended and request.sampling.ignore_eos:
                request.constraint = None  # what follows is free
        elif constraint and request.replay is None:
            raise BrokenInvariant(f"token {token} was chosen, which the grammar does not allow")
        elif constraint:  # a given output that does not fit: the rest of it may be anything
            request.constraint = None
        if request.logprobs is not None:
            request.logprobs.append(float(logits.double().log_softmax(0)[token]))
        return token

    def _take(self, token: int, tokenizer) -> None:
        self.request.sequence.log.append(token)
        self.request.generated.append(token)
        text = self._decoder.step(tokenizer.backend_tokenizer, token) or ""
        self.tokens.append(StreamedToken(token, text))
        self._text += text
        if len(self.tokens) == 1:
            self._first_token_s = time.perf_counter()

    def said_with(self, turn: Turn, tokenizer) -> Transcript:
        """What has been said, the reply included."""
        return self.said.completed(self.request.sequence.log, self.request.prompt_length, turn.text, tokenizer)

    def _answer(self, reason: str, tokenizer) -> Turn:
        request = self.request
        text = tokenizer.decode(request.generated, skip_special_tokens=True)
        if reason == "stop":
            hits = [text.find(stop) for stop in request.sampling.stop if isinstance(stop, str)]
            text = text[: min((hit for hit in hits if hit >= 0), default=len(text))]
        context = max(0, request.log_before - 1)
        stats = TurnStats(
            context=context,
            delta=request.prompt_length - context,
            reused=request.reused,
            generated=len(request.generated),
            agreed=request.agreed,
            drafted=sum(len(verdict.draft) for verdict in request.verdicts),
            accepted=sum(verdict.accepted for verdict in request.verdicts),
            forced=request.forced,
            forwarded=request.forwarded,
            steps=request.steps,
            preempted=request.preempted,
            flops=request.flops,
            kv_bytes_read=request.kv_bytes_read,
            ttft_s=self._first_token_s - self._started_s,
            total_s=time.perf_counter() - self._started_s,
        )
        return Turn(
            text,
            tuple(request.generated),
            parse_tool_calls(text, request.tools),
            reason,
            stats,
            None if request.logprobs is None else tuple(request.logprobs),
            tuple(request.verdicts),
        )

    def _finish_reason(self, tokenizer, eos_ids: Collection[int]) -> str:
        request, sampling = self.request, self.request.sampling
        token = request.generated[-1]
        if request.replay is not None:
            return "replay" if len(request.generated) == len(request.replay) else ""
        if token in sampling.stop or (token in eos_ids and not sampling.ignore_eos):
            return "stop"
        if request.constraint and request.constraint.ended:
            return "stop"
        if sampling.stop and _special(tokenizer, token) in sampling.stop:  # special tokens do not show in the text
            return "stop"
        if any(stop in self._text for stop in sampling.stop if isinstance(stop, str)):
            return "stop"
        return "length" if len(request.generated) == request.max_new_tokens else ""


def _special(tokenizer, token: int) -> str | None:
    """How a special token is spelt; None for any other, which is spelt otherwise in the vocabulary than in text."""
    added = tokenizer.added_tokens_decoder.get(token)
    return added.content if added and added.special else None


class TokenStream:
    """The tokens of one turn, as they come; `turn` holds the whole answer once the last one is out."""

    def __init__(self, handle: "Handle"):
        self._handle = handle
        self._delivered = 0

    @property
    def turn(self) -> Turn | None:
        return self._handle.turn

    def __iter__(self) -> Iterator[StreamedToken]:
        return self

    def __next__(self) -> StreamedToken:
        while self._delivered == len(self._handle.tokens):
            if self._handle.error:
                raise self._handle.error
            if self._handle.done:
                raise StopIteration
            self._handle.session.engine.step()
        self._delivered += 1
        return self._handle.tokens[self._delivered - 1]

    def close(self) -> None:
        """Abort the turn unless it is done."""
        self._handle.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self._handle.session.engine.abandon(self._handle)
