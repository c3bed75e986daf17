"""From the logits of a forward pass to tokens, text and the finished turn.

For each turn, the processor chooses a token at the end of the log and compares it with the first token of the draft. As
long as the two agree, it goes on with the draft's next row of logits. A turn ends at the end of a reply, at a stop
condition, at the end of its grammar or of its replay, or when it has reached its length.
"""

import time
from collections import abc

import torch
from tokenizers.decoders import DecodeStream

from minstate.chat.conversation import Chat, decode_reply, numbered
from minstate.chat.dialect import HERMES
from minstate.chat.grammar import Constraint
from minstate.errors import BrokenInvariant
from minstate.model_runner import Scores
from minstate.request import Request
from minstate.sampling import choose
from minstate.speculation import Guess, Verdict
from minstate.turn import StreamedToken, Turn, TurnStats


class OutputProcessor:
    """Generates the tokens of all turns of one engine."""

    def __init__(self, tokenizer, eos_ids: frozenset[int]):
        self.tokenizer, self.eos_ids = tokenizer, eos_ids
        self.chat: Chat | None = None  # from the first message on

    def know(self, chat: Chat) -> None:
        """From now on replies are in the dialect of this chat, and also end as its template ends them."""
        self.chat, self.eos_ids = chat, self.eos_ids | chat.template.ends

    def process(self, request: Request, scores: Scores, draft: abc.Sequence[Guess]) -> Turn | None:
        """Generate the accepted part of the draft, and one token more. Returns the turn if that ends it.

        scores  a row for the end of the log, and one for each token of the draft
        """
        first, reason = len(request.generated), ""
        for place in range(1 + len(draft)):
            token = self._choose(request, scores.logits[place], scores.best[place])
            self._append(request, token)
            reason = self._finish_reason(request)
            if reason or place == len(draft) or draft[place].token_id != token:
                break
        request.verdicts.append(Verdict(tuple(draft), tuple(request.generated[first:])))
        return self._finish(request, reason) if reason else None

    def _choose(self, request: Request, logits: torch.Tensor, best: int) -> int:
        """The next token, which no draft can change. `best` is the arg-max of its logits `[vocab]`."""
        constraint = request.constraint
        if request.replay is None:
            token = choose(logits, request.options.sampling, len(request.sequence.log), constraint, best)
        else:
            token = request.replay[len(request.generated)]
            if token == best:
                request.agreed += 1
        if constraint:
            self._advance(request, constraint, token)
        if request.options.logprobs:
            request.logprobs.append(float(logits.double().log_softmax(0)[token]))
        return token

    def _advance(self, request: Request, constraint: Constraint, token: int) -> None:
        """Move the request's constraint on by `token`."""
        if constraint.allows(token):
            if constraint.forced:
                request.forced += 1
            constraint.advance(token)
            if constraint.ended and request.options.sampling.ignore_eos:
                request.constraint = None  # behind its end, the output is free
        elif request.replay is None:
            raise BrokenInvariant(f"token {token} was chosen, which the grammar does not allow")
        else:  # a replayed output that does not fit: the rest of it may be anything
            request.constraint = None

    def _append(self, request: Request, token: int) -> None:
        request.sequence.log.append(token)
        request.generated.append(token)
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
        log, tokenizer = request.sequence.log, self.tokenizer
        dialect = self.chat.dialect if self.chat else HERMES
        whole = decode_reply(tokenizer, log, request.prompt_length, self.eos_ids)
        shown = decode_reply(tokenizer, log, request.prompt_length, frozenset(), skip_special=True)
        if reason == "stop":
            whole, shown = (_until_stop(text, request.options.sampling.stop) for text in (whole, shown))
        reply = dialect.read(whole, request.tools, thinking=request.thinking)
        if self.chat and (reply.reasoning or dialect.frame):  # their marks may be special tokens themselves
            shown = self.chat.template.control.without_special(reply.text)
        return Turn(
            text=shown,
            token_ids=tuple(request.generated),
            tool_calls=numbered(reply.calls, request.transcript, dialect),
            finish_reason=reason,
            stats=_stats(request),
            logprobs=tuple(request.logprobs) if request.options.logprobs else None,
            reasoning=reply.reasoning,
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
        ttft_s=request.first_token_s - request.started_s,
        total_s=time.perf_counter() - request.started_s,
    )
