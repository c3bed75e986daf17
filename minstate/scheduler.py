"""Requests in, work for ragged batches out: continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi,
arXiv 2308.16369), and drafts beside them. Reads no clock: the same requests give the same batches.

    submit ──▶ waiting ──admit──▶ running ──▶ done
                  ▲                  │
                  └─────preempt──────┘

Who waits is admitted when there is room for its prompt and the beginning of its answer: first whoever has the longest
prefix in the cache, as in SGLang (arXiv 2312.07104), but each step of waiting counts as `AGEING` tokens of prefix, so
everybody's turn comes. Nobody overtakes the first in this order. If pages run out all the same, the youngest running
turn goes back to wait; the oldest never does, so there is always one that ends.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from minstate.chat.grammar import Constraint
from minstate.chat.messages import Messages
from minstate.errors import OutOfPages
from minstate.model import Model
from minstate.prefix_cache import PrefixCache
from minstate.sampling import Sampling
from minstate.sequence import Sequence
from minstate.speculation import Allotment, Guess, Share, Speculation, Verdict, allot, settle

AGEING = 256  # tokens of cached prefix that a step of waiting makes up for
GROWTH = 64  # new tokens for which a turn is kept room when it or another one is admitted
REMEMBERED = 2**14  # events of the timeline
Batch = TypeVar("Batch")


@dataclass(eq=False)
class Request:
    """One turn on its way: what the scheduler and the engine need to know of it, and what it has cost so far."""

    sequence: Sequence
    number: int  # in order of arrival
    log_before: int  # length of the log before the turn; an abort truncates to it
    prompt_length: int  # length of the log with the turn's input
    max_new_tokens: int
    sampling: Sampling
    replay: tuple[int, ...] | None  # the output, where it is given
    tools: Messages = ()  # that it may call
    constraint: Constraint | None = None  # what the output must fit; of a given one, what it seems to
    reused: int | None = None  # tokens that had K/V when the turn was admitted for the first time
    waited: int = 0  # steps since it was submitted, or preempted
    cached: int = 0  # tokens that had K/V when it began to wait
    preempted: int = 0  # how many times
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None  # of each generated token, where they are wanted
    verdicts: list[Verdict] = field(default_factory=list)
    agreed: int = 0  # replayed tokens that the model itself would have chosen
    forced: int = 0  # generated tokens to which the constraint left no alternative
    forwarded: int = 0
    steps: int = 0
    flops: int = 0
    kv_bytes_read: int = 0
    error: Exception | None = None  # for which it will be given up

    @property
    def remaining(self) -> int:
        """Tokens of the log that have still to be forwarded before the next one can be chosen."""
        return max(0, len(self.sequence.log) - self.sequence.kv_len)

    def account(self, count: int, drafted: int, model: Model) -> None:
        """It took part in a pass with so many tokens of its log, and guesses."""
        context = self.sequence.kv_len
        self.steps += 1
        self.forwarded += count + drafted
        self.flops += model.config.flops(count + drafted, context, logit_rows=(1 + drafted) * (self.remaining == 0))
        self.kv_bytes_read += context * model.config.kv_bytes_per_token(model.dtype)

    def pages_soon(self, kv_len: int) -> int:
        """Free pages that it will take for its log and the next `GROWTH` tokens, if `kv_len` of these have K/V.

        The last new token of a turn is never forwarded, and needs none.
        """
        page_size = self.sequence.table.pool.page_size
        length = len(self.sequence.log) + min(GROWTH, self.max_new_tokens - len(self.generated) - 1)
        return -(-length // page_size) - kv_len // page_size


class Work(NamedTuple):
    """One request's part in a step."""

    request: Request
    count: int  # tokens of its log to forward
    proposed: SequenceOf[Guess] = ()  # tokens that may follow its log, if the log ends with this step
    draft: SequenceOf[Guess] = ()  # as many of them as are forwarded too


class Event(NamedTuple):
    """A decision of the scheduler, for whoever wants to watch."""

    step: int
    request: int  # its number
    what: str  # "wait", "admit", "prefill", "decode", "defer", "preempt", "end"
    tokens: int = 0  # of its log that the step forwards
    drafted: int = 0  # and guesses beside them


class Scheduler:
    """Decides which tokens the next forward pass takes: at most `token_budget` of them."""

    def __init__(self, cache: PrefixCache, token_budget: int, speculation: Speculation | None = None):
        self.cache, self.token_budget, self.speculation = cache, token_budget, speculation
        self.running: list[Request] = []  # in order of arrival
        self.waiting: list[Request] = []
        self.timeline: deque[Event] = deque(maxlen=REMEMBERED)
        self.steps = 0
        self._drafting: tuple[Allotment, list[Share]] | None = None  # of the step that is under way

    def require_pages(self, request: Request) -> None:
        """Raises `OutOfPages` if the turn could not end even with the pool to itself."""
        num_pages, page_size = self.cache.pool.allocator.num_pages, self.cache.pool.page_size
        longest = -(-(request.prompt_length + request.max_new_tokens - 1) // page_size)
        if longest > num_pages:
            raise OutOfPages(
                f"the turn needs {longest} KV pages and the whole pool has {num_pages} (of {page_size} "
                "tokens each): build the engine with a larger num_pages, or lower max_new_tokens"
            )

    def submit(self, request: Request) -> None:
        """A new turn, which runs at once if it can."""
        self._wait(request)
        self._note(request, "wait")
        self.admit()

    def next_waiting(self) -> Request | None:
        """Whom to admit next."""
        return min(self.waiting, key=lambda one: (-one.cached - AGEING * one.waited, one.number), default=None)

    def admit(self) -> None:
        """Turns that wait run as soon as there is room for their logs and the next `GROWTH` tokens of everybody."""
        while request := self.next_waiting():
            promised = sum(other.pages_soon(other.sequence.kv_len) for other in self.running)
            if self.running and promised + request.pages_soon(request.cached) > self.cache.num_available:
                return
            self.cache.begin(request.sequence)
            if self.running and promised + request.pages_soon(request.sequence.kv_len) > self.cache.num_available:
                request.cached = request.sequence.kv_len  # less than it was, or pages that others counted on
                self.cache.pause(request.sequence)
                return
            if request.reused is None:
                request.reused = request.sequence.kv_len
            self.waiting.remove(request)
            self.running.append(request)
            self.running.sort(key=lambda one: one.number)
            self._note(request, "admit")

    def end(self, request: Request, length: int) -> None:
        """The turn is over, or given up; `length` tokens of its log stay."""
        if request in self.running:
            self.running.remove(request)
            self.cache.end(request.sequence, length)
        else:
            self.waiting.remove(request)
            self.cache.rollback(request.sequence, length)
        self._note(request, "end")

    def next_step(
        self, build: Callable[[list[tuple[Sequence, int]], list[list[int]]], Batch]
    ) -> tuple[list[Work], Batch | None]:
        """The work of the next step, and what `build` makes of it; nothing if nothing runs.

        `build`, such as `RaggedBatch.build`, makes room in the page tables or raises `OutOfPages`, and nothing has
        changed. The step is then tried without drafts; without copying tails that only idle sessions share; without
        the youngest turns, which wait again.
        """
        work, disowned = self.next_batch(), False
        while work:
            drafts = [[guess.token_id for guess in part.draft] for part in work]
            try:
                return work, build([(part.request.sequence, part.count) for part in work], drafts)
            except OutOfPages:
                if any(drafts):
                    work = self._without_drafts(work)
                elif not disowned:
                    for part in work:
                        self.cache.disown_tail(part.request.sequence)
                    disowned = True
                elif len(self.running) > 1:
                    youngest = self.running.pop()
                    youngest.preempted += 1
                    self.cache.pause(youngest.sequence)
                    self._wait(youngest)
                    self._note(youngest, "preempt")
                    work, disowned = self._without_drafts(self.next_batch()), False  # its tail is an idle one now
                else:
                    raise
        return [], None

    def next_batch(self) -> list[Work]:
        """The requests of the next step, each with its number of query tokens. Empty when nothing runs.

        Decodes go first, since somebody is reading along; prefills share what is left of the budget, oldest first. So
        between two tokens of a turn lies at most one budget of work, however long the prompts are that others send.
        With more decodes than budget, the youngest wait until an older one is done.
        """
        budget, work = self.token_budget, []
        for request in sorted(self.running, key=lambda one: one.remaining > 1):  # stable: arrival order stays
            count = min(request.remaining, budget)
            if count and request.remaining > 1 and any(_computes_for(part, request) for part in work):
                self._note(request, "defer")
            elif count:
                work.append(Work(request, count))
                budget -= count
        return self._with_drafts(work, budget) if self.speculation and work else work

    def _without_drafts(self, work: list[Work]) -> list[Work]:
        """The same batch where there is no room for guesses."""
        if self._drafting:
            allotment, shares = self._drafting
            self._drafting = allotment._replace(counts=[0] * len(work), prices=[0.0] * len(work)), shares
        return [part._replace(draft=()) for part in work]

    def settle(self, work: SequenceOf[Work]) -> None:
        """The step is done: learn from what was said, and enter its costs."""
        for request, count, _, draft in work:
            decoded = count == 1 and len(request.verdicts) > 1
            self._note(request, "decode" if decoded else "prefill", count, len(draft))
        self.steps += 1
        for request in self.waiting:
            request.waited += 1
        if self._drafting:
            allotment, shares = self._drafting
            said = []
            for (request, _, proposed, _), share in zip(work, shares, strict=True):
                heard = share.producing and not request.error
                said.append(request.verdicts[-1].said if heard else ())
                request.sequence.speculator.learn(proposed, said[-1])
            # A draft is not to blame for a turn that failed: what it was sure to save was not saved either.
            prices = [0.0 if part.request.error else price for part, price in zip(work, allotment.prices, strict=True)]
            settle(allotment._replace(prices=prices), shares, [len(tokens) for tokens in said])
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
        try:
            return sequence.speculator.propose(sequence.log, count, request.constraint, sure=sure)
        except Exception as error:  # this turn's fault, and no reason for the others to stop
            request.error = error
            return []

    def _wait(self, request: Request) -> None:
        request.waited, request.cached = 0, self.cache.peek(request.sequence)
        self.waiting.append(request)

    def _note(self, request: Request, what: str, tokens: int = 0, drafted: int = 0) -> None:
        self.timeline.append(Event(self.steps, request.number, what, tokens, drafted))


def _computes_for(part: Work, request: Request) -> bool:
    """Whether `part` is about to compute a page or more that `request` needs next, and may share.

    Both know what is published by now. So where they say the same they are at the same place in the tree, and only what
    comes behind it has to be compared.
    """
    mine, other = request.sequence, part.request.sequence
    if mine.node is not other.node or mine.table.borrowed != other.table.borrowed:
        return False
    start, end = mine.table.borrowed_tokens, mine.kv_len + mine.table.pool.page_size
    if not other.kv_len <= mine.kv_len < other.kv_len + part.count or len(mine.log) <= end:
        return False
    return other.log[start:end] == mine.log[start:end]
