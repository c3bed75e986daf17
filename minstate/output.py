"""From the logits of a forward pass to tokens, text and the finished turn.

For each turn, the processor chooses a token at the end of the log and compares it with the first token of the draft. As
long as the two agree, it goes on with the draft's next row of logits. A turn ends at the end of a reply, at a stop
condition, at the end of its grammar or of its replay, or when it has reached its length.
"""

import time
from collections import abc

import torch
from tokenizers.decoders import DecodeStream

from minstate.chat.content import without
from minstate.chat.conversation import Chat, decode_reply, numbered
from minstate.chat.dialect import HERMES, Dialect
from minstate.chat.grammar import Constraint
from minstate.errors import BrokenInvariant, NonFiniteLogits, UnsupportedSchema
from minstate.model_runner import Scores
from minstate.request import Request
from minstate.sampling import Penalties, choose
from minstate.speculation import Guess, Verdict
from minstate.turn import StreamedToken, Turn, TurnStats


class OutputProcessor:
    """Generates the tokens of all turns of one engine."""

    def __init__(self, tokenizer, eos_ids: frozenset[int]):
        self.tokenizer, self.eos_ids = tokenizer, eos_ids
        self.chat: Chat | None = None  # from the first message on
        self._learn(HERMES)

    def know(self, chat: Chat) -> None:
        """From now on replies are in the dialect of this chat, and also end as its template ends them."""
        self.chat, self.eos_ids = chat, self.eos_ids | chat.template.ends
        self._learn(chat.dialect)

    def _learn(self, dialect: Dialect) -> None:
        """Read replies in this dialect. Of special tokens, only its `marks` are read; no text shows any."""
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self.dialect, spelling = dialect, dialect.spelling
        self.marks = tuple(text for text in special.values() if text in spelling)
        self._hidden = frozenset(i for i, text in special.items() if text not in spelling)

    def reply_text(self, request: Request) -> str:
        """The reply so far, with the marks of calls and thoughts, and without the token that ends it."""
        return decode_reply(self.tokenizer, request.sequence.log, request.prompt_length, self.eos_ids, self._hidden)

    def process(self, request: Request, scores: Scores, draft: abc.Sequence[Guess]) -> Turn | None:
        """Generate the accepted part of the draft, and one token more. Returns the turn if that ends it.

        scores  a row for the end of the log, and one for each token of the draft
        """
        first, reason = len(request.generated), ""
        if not first and request.options.sampling.has_penalties:
            request.penalties = Penalties(request.options.sampling, request.sequence.log, scores.logits.shape[-1])
        for place in range(1 + len(draft)):
            token = self._choose(request, scores.logits[place], scores.best[place])
            self._append(request, token)
            reason = self._finish_reason(request)
            if reason or place == len(draft) or draft[place].token_id != token:
                break
        request.verdicts.append(Verdict(tuple(draft), tuple(request.generated[first:])))
        return self._finish(request, reason) if reason else None

    def _choose(self, request: Request, logits: torch.Tensor, best: int) -> int:
        """The next token, which no draft can change. `best` is the arg-max of its logits `[vocab]`, as in `Scores`.

        Raises `NonFiniteLogits`.
        """
        constraint, options, position = request.constraint, request.options, len(request.sequence.log)
        if best < 0:
            raise NonFiniteLogits(f"the logits at position {position} hold NaN or +infinity, or are all −infinity")
        if request.replay is None:
            token = choose(logits, options.sampling, position, constraint, best, request.penalties)
        else:
            token = request.replay[len(request.generated)]
            if token == best:
                request.agreed += 1
        if constraint:
            self._advance(request, constraint, token)
        if options.logprobs or options.top_logprobs:
            logprobs = logits.double().log_softmax(0)
            request.logprobs.append(float(logprobs[token]))
            values, ids = logprobs.topk(min(options.top_logprobs, len(logprobs)))
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            request.top_logprobs.append(tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))))
        return token

    def _advance(self, request: Request, constraint: Constraint, token: int) -> None:
        """Move the request's constraint on by `token`, which only a replayed output need not obey."""
        was_forced, fits = bool(constraint.forced), False
        try:
            if fits := constraint.allows(token):
                constraint.advance(token)
        except UnsupportedSchema:  # the parser is at its limit
            if request.replay is None:
                raise
            fits = False
        if not fits and request.replay is None:
            raise BrokenInvariant(f"token {token} was chosen, which the grammar does not allow")
        request.forced += fits and was_forced
        if not fits or (constraint.ended and request.options.sampling.ignore_eos):
            request.constraint = None  # behind its end, and where it does not fit, the output is free

    def _append(self, request: Request, token: int) -> None:
        request.sequence.log.append(token)
        request.generated.append(token)
        if request.penalties:
            request.penalties.generated[token] += 1
        text = self._decode(request, token)
        request.tokens.append(StreamedToken(token, text))
        request.text += text
        if len(request.tokens) == 1:
            request.first_token_s = time.perf_counter()

    def _decode(self, request: Request, token: int) -> str:
        """The text that a token completes."""
        try:
            return request.decoder.step(self.tokenizer.backend_tokenizer, token) or ""
        except Exception:  # noqa: BLE001  bytes that make up no character, which the decoder gives up on
            request.decoder = DecodeStream(skip_special_tokens=True)
            whole = self.tokenizer.decode(request.generated, skip_special_tokens=True)
            return whole[len(request.text) :]

    def _finish_reason(self, request: Request) -> str:
        """Why the turn ends with the last generated token; "" if it goes on."""
        sampling, token = request.options.sampling, request.generated[-1]
        if request.replay is not None:
            return "replay" if len(request.generated) == len(request.replay) else ""
        if token in sampling.stop or (token in self.eos_ids and not sampling.ignore_eos):
            return "stop"
        if request.constraint and request.constraint.ended:
            return "stop"
        if sampling.stop and self._special_token(token) in sampling.stop:  # special tokens do not show in the text
            return "stop"
        if any(stop in request.text for stop in sampling.stop if isinstance(stop, str)):
            return "stop"
        return "length" if len(request.generated) == request.options.max_new_tokens else ""

    def _special_token(self, token: int) -> str | None:
        """How a special token is spelt. None for any other: its spelling in the vocabulary is not that in the text."""
        added = self.tokenizer.added_tokens_decoder.get(token)
        return added.content if added and added.special else None

    def _finish(self, request: Request, reason: str) -> Turn:
        whole = self.reply_text(request)
        if reason == "stop":
            whole = _until_stop(whole, request.options.sampling.stop)
        reply = self.dialect.read(whole, request.tools, thinking=request.thinking)
        return Turn(
            text=without(reply.text, self.marks),
            token_ids=tuple(request.generated),
            tool_calls=numbered(reply.calls, request.transcript, self.dialect),
            finish_reason=reason,
            stats=_stats(request),
            logprobs=tuple(request.logprobs) if request.options.logprobs else None,
            top_logprobs=tuple(request.top_logprobs) if request.options.top_logprobs else None,
            reasoning=reply.reasoning,
            content=without(reply.content, self.marks),
            verdicts=tuple(request.verdicts),
        )


def _until_stop(text: str, stops: tuple[int | str, ...]) -> str:
    """The text up to the first stop string."""
    hits = [text.find(stop) for stop in stops if isinstance(stop, str)]
    return text[: min((hit for hit in hits if hit >= 0), default=len(text))]


def _stats(request: Request) -> TurnStats:
    context = max(0, request.log_before - 1)
    return TurnStats(
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
        dropped=request.dropped,
        flops=request.flops,
        kv_bytes_read=request.kv_bytes_read,
        promoted=request.promoted,
        promoted_s=request.promoted_s,
        ttft_s=request.first_token_s - request.started_s,
        total_s=time.perf_counter() - request.started_s,
    )
