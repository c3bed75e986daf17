"""Requests in, work for ragged batches out: continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi,
arXiv 2308.16369), in order of arrival, and drafts beside them. Reads no clock: the same requests give the same batches.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import NamedTuple

from minstate.batch import Sequence
from minstate.grammar import Constraint
from minstate.messages import Messages
from minstate.sampling import Sampling
from minstate.speculation import Allotment, Guess, Share, Speculation, Verdict, allot, settle


@dataclass(eq=False)
class Request:
    """One turn on its way: what the scheduler and the engine need to know of it, and what it has cost so far."""

    sequence: Sequence
    log_before: int  # length of the log before the turn; an abort truncates to it
    prompt_length: int  # length of the log with the turn's input
    reused: int  # tokens that had K/V when the turn began
    max_new_tokens: int
    sampling: Sampling
    replay: tuple[int, ...] | None  # the output, where it is given
    tools: Messages = ()  # that it may call
    constraint: Constraint | None = None  # what the output must fit; of a given one, what it seems to
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None  # of each generated token, where they are wanted
    verdicts: list[Verdict] = field(default_factory=list)
    agreed: int = 0  # replayed tokens that the model itself would have chosen
    forced: int = 0  # generated tokens to which the constraint left no alternative
    forwarded: int = 0
    steps: int = 0
    flops: int = 0
    kv_bytes_read: int = 0

    @property
    def remaining(self) -> int:
        """Tokens of the log that have still to be forwarded before the next one can be chosen."""
        return max(0, len(self.sequence.log) - self.sequence.kv_len)

    @property
    def pages_to_come(self) -> int:
        """Free pages that the turn may still take, at its longest. The last new token is never forwarded."""
        longest = self.prompt_length + self.max_new_tokens - 1
        return self.sequence.table.pages_needed(longest - self.sequence.kv_len)


class Work(NamedTuple):
    """One request's part in a step."""

    request: Request
    count: int  # tokens of its log to forward
    proposed: SequenceOf[Guess] = ()  # tokens that may follow its log, if the log ends with this step
    draft: SequenceOf[Guess] = ()  # as many of them as are forwarded too


class Scheduler:
    """Decides which tokens the next forward pass takes: at most `token_budget` of them."""

    def __init__(self, token_budget: int, speculation: Speculation | None = None):
        self.token_budget, self.speculation = token_budget, speculation
        self.running: list[Request] = []  # in order of arrival
        self._drafting: tuple[Allotment, list[Share]] | None = None  # of the step that is under way

    def next_batch(self) -> list[Work]:
        """The requests of the next step, each with its number of query tokens. Empty when nothing runs.

        Decodes go first, since somebody is reading along; prefills share what is left of the budget, oldest first. With
        more decodes than budget, the youngest wait until an older one is done.
        """
        budget = self.token_budget
        work = []
        for request in sorted(self.running, key=lambda request: request.remaining > 1):  # stable: arrival order stays
            count = min(request.remaining, budget)
            if count:
                work.append(Work(request, count))
                budget -= count
        return self._with_drafts(work, budget) if self.speculation and work else work

    def settle(self, work: SequenceOf[Work]) -> None:
        """The step is done: learn from what was said, and enter its costs."""
        if self._drafting:
            allotment, shares = self._drafting
            said = []
            for request, _, proposed, _ in work:
                produced = request.remaining <= 1 and request.verdicts
                said.append(request.verdicts[-1].said if produced else ())
                request.sequence.speculator.learn(proposed, said[-1])
            settle(allotment, shares, [len(tokens) for tokens in said])
            self._drafting = None

    def _with_drafts(self, work: list[Work], budget: int) -> list[Work]:
        """The same with drafts. They go before a prompt that does not end with this step: the last in the batch."""
        shares = []
        for place, (request, count, *_) in enumerate(work):
            ends = count == request.remaining
            work[place] = Work(request, count, self._propose(request) if ends else ())
            shares.append(
                Share(request.sequence.kv_len, count, ends, request.sequence.speculator, work[place].proposed)
            )
        spare = 0 if shares[-1].producing else work[-1].count - 1
        allotment = allot(shares, self.speculation, budget + spare)
        self._drafting = allotment, shares
        for place, (part, drafted) in enumerate(zip(work, allotment.counts, strict=True)):
            work[place] = part._replace(draft=part.proposed[:drafted])
        if (excess := sum(allotment.counts) - budget) > 0:
            work[-1] = work[-1]._replace(count=work[-1].count - excess)
        return work

    def _propose(self, request: Request) -> list[Guess]:
        """Never as many as could end the turn: the last new token is not forwarded, so it needs no page."""
        count = min(self.speculation.max_draft, request.max_new_tokens - len(request.generated) - 1)
        sequence, sure = request.sequence, 0.95 if request.replay is not None or request.sampling.stop else 1.0
        return sequence.speculator.propose(sequence.log, count, request.constraint, sure=sure)
