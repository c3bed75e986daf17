"""Requests in, ragged batches out: continuous batching ([Orca](https://www.usenix.org/conference/osdi22/presentation/yu),
OSDI 2022) with chunked prefill ([Sarathi-Serve](https://arxiv.org/abs/2403.02310)), and drafts beside them.

    submit ──▶ waiting ──admit──▶ running ──▶ done
                  ▲                  │
                  └─────preempt──────┘

A turn is admitted when there is room for its prompt and the beginning of its answer. The turn with the longest prefix
in the cache goes first, as in SGLang (arXiv 2312.07104), but each step of waiting counts as `AGEING` tokens of prefix,
so every turn is admitted at last. No turn overtakes the first in this order. If pages run out all the same, the
youngest running turn is preempted. The oldest never is, so there is always one that ends.

The scheduler reads no clock: the same requests give the same batches.
"""

from collections import abc, deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from minstate.draft_budget import Allotment, Share, allot
from minstate.errors import BrokenInvariant, OutOfPages, UnsupportedSchema
from minstate.paged_kv import pages_for
from minstate.prefix_cache import PrefixCache
from minstate.ragged_batch import Chunk
from minstate.request import Request
from minstate.speculation import Guess, Speculation, Speculator

AGEING = 256  # tokens of cached prefix that a step of waiting makes up for
GROWTH = 64  # new tokens for which a turn is kept room when it or another one is admitted
REMEMBERED = 2**14  # events of the timeline
Batch = TypeVar("Batch")


class Work(NamedTuple):
    """One request's part in a step."""

    request: Request
    count: int  # tokens of its log to forward
    proposed: abc.Sequence[Guess] = ()  # tokens that may follow its log, if the log ends with this step
    draft: abc.Sequence[Guess] = ()  # as many of them as are forwarded too

    def chunk(self) -> Chunk:
        """The tokens that it adds to the batch."""
        return self.request.sequence.chunk(self.count, [guess.token_id for guess in self.draft])


class Event(NamedTuple):
    """A decision of the scheduler, recorded for the reader."""

    step: int
    request: int  # its number
    what: str  # "wait", "admit", "promote", "compute", "prefill", "decode", "defer", "preempt", "end"
    tokens: int = 0  # of its log that the step forwards, that come from a tier, or that are computed all the same
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

    @property
    def requests(self) -> list[Request]:
        """All turns under way."""
        return self.running + self.waiting

    def require_pages(self, prompt_length: int, max_new_tokens: int) -> None:
        """Raises `OutOfPages` if such a turn could not end even with the pool to itself."""
        num_pages, page_size = self.cache.pool.allocator.num_pages, self.cache.pool.page_size
        longest = pages_for(prompt_length + max_new_tokens - 1, page_size)
        if longest > num_pages:
            raise OutOfPages(
                f"the turn needs {longest} KV pages and the whole pool has {num_pages} (of {page_size} tokens each)",
                needed=longest,
                available=num_pages,
            )

    def submit(self, request: Request) -> None:
        """A new turn, which runs at once if it can."""
        self._wait(request)
        self._note(request, "wait")
        self._admit()

    def prepare(self) -> None:
        """Before a step: admit waiting turns, and extend prompts by what other turns have published of them by now."""
        self._admit()
        for request in self.running:
            if request.remaining > 1:  # still being prefilled
                found = self.cache.extend(request.sequence)
                if not request.preempted:
                    request.reused += found

    def next_waiting(self) -> Request | None:
        """The request to admit next."""
        return min(self.waiting, key=lambda other: (-other.cached - AGEING * other.waited, other.number), default=None)

    def pages_soon(self, request: Request, kv_len: int) -> int:
        """Free pages that it will take for its log and the next `GROWTH` tokens, if `kv_len` tokens have K/V.

        The last new token of a turn is never forwarded, and needs no page.
        """
        page_size = self.cache.pool.page_size
        growth = min(GROWTH, request.options.max_new_tokens - len(request.generated) - 1)
        return pages_for(len(request.sequence.log) + growth, page_size) - kv_len // page_size

    def _admit(self) -> None:
        """Waiting turns run as soon as there is room for their logs and the next `GROWTH` tokens of all turns."""
        while request := self.next_waiting():
            promised = sum(self.pages_soon(other, other.sequence.kv_len) for other in self.running)
            if self.running and promised + self.pages_soon(request, request.cached) > self.cache.num_available:
                break
            self.cache.begin(request.sequence)
            if self.running and promised + self.pages_soon(request, request.sequence.kv_len) > self.cache.num_available:
                request.cached = request.sequence.kv_len  # less than it was, or pages that other turns counted on
                self.cache.pause(request.sequence)
                break
            self.waiting.remove(request)
            self.running.append(request)
            self.running.sort(key=lambda other: other.number)
            self._note(request, "admit")
            self._promote(request)
            if not request.admitted:
                request.admitted, request.reused = True, request.sequence.kv_len
        if request:
            self.cache.read_ahead(request.sequence)

    def _promote(self, request: Request) -> None:
        """Bring K/V back from the tiers below the pool, where this costs less than computing it."""
        promoted = self.cache.promote(request.sequence)
        request.promoted += promoted.tokens
        request.promoted_s += promoted.seconds
        for what, tokens in [("promote", promoted.tokens), ("compute", promoted.computed)]:
            if tokens:
                self._note(request, what, tokens)

    def end(self, request: Request, length: int) -> None:
        """The turn is over, or given up; `length` tokens of its log stay."""
        if request in self.running:
            self.running.remove(request)
            self.cache.end(request.sequence, length)
        else:
            if request in self.waiting:  # where an exception hindered `submit`, it may not be
                self.waiting.remove(request)
            self.cache.rollback(request.sequence, length)
        self._note(request, "end")

    def next_step(self, build: Callable[[list[Chunk]], Batch]) -> tuple[list[Work], Batch | None]:
        """The work of the next step, and what `build` makes of its chunks; nothing if nothing runs.

        `build`, such as `RaggedBatch.build`, makes room in the page tables. If it raises `OutOfPages`, nothing has
        changed, and the step is tried with less: first without drafts; then without copying tails that only idle
        sequences share; then without the youngest turns, which are preempted. If the oldest turn alone finds no room,
        `OutOfPages` is its `error`, and there is no work.
        """
        work, unshared = self.next_batch(), False
        if self.running and not work:
            raise BrokenInvariant("turns are running, and none of them has a token to forward")
        while work:
            try:
                return work, build([part.chunk() for part in work])
            except OutOfPages as error:
                if any(part.draft for part in work):
                    work = self._without_drafts(work)
                elif not unshared:
                    for part in work:
                        self.cache.unshare_tail(part.request.sequence)
                    unshared = True
                elif len(self.running) > 1:
                    self._preempt(self.running[-1])
                    work, unshared = self._without_drafts(self.next_batch()), False  # its tail is an idle one now
                else:
                    self.running[0].error = error
                    return [], None
        return [], None

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        request.preempted += 1
        self.cache.pause(request.sequence)
        self._wait(request)
        self._note(request, "preempt")

    def next_batch(self) -> list[Work]:
        """The requests of the next step, each with its number of query tokens. Empty when nothing runs.

        Decodes go first, since a user reads along; prefills share what is left of the budget, oldest first. So at most
        one budget of work lies between two tokens of a turn, however long the prompts of other turns are. With more
        decodes than budget, the youngest wait until an older one is done.
        """
        budget, work = self.token_budget, []
        for request in sorted(self.running, key=lambda other: other.remaining > 1):  # stable: arrival order stays
            count = min(request.remaining, budget)
            if count and request.remaining > 1 and any(_computes_for(part, request) for part in work):
                self._note(request, "defer")
            elif count:
                work.append(Work(request, count))
                budget -= count
        return self._with_drafts(work, budget, self.speculation) if self.speculation and work else work

    def _without_drafts(self, work: list[Work]) -> list[Work]:
        """The same batch where there is no room for guesses."""
        if self._drafting:
            allotment, shares = self._drafting
            self._drafting = allotment.without_drafts(), shares
        return [part._replace(draft=()) for part in work]

    def finish_step(self, work: abc.Sequence[Work]) -> None:
        """After a forward pass: record the step, and learn from what was sampled what drafts are worth."""
        for request, count, _, draft in work:
            decoded = count == 1 and len(request.verdicts) > 1
            self._note(request, "decode" if decoded else "prefill", count, len(draft))
        self.steps += 1
        for request in self.waiting:
            request.waited += 1
        if self._drafting:
            self._learn(work, *self._drafting)
            self._drafting = None

    def _learn(self, work: abc.Sequence[Work], allotment: Allotment, shares: list[Share]) -> None:
        counts = []
        for (request, _, proposed, _), share in zip(work, shares, strict=True):
            sampled = request.verdicts[-1].sampled if share.producing and not request.error else ()
            _speculator(request).learn(proposed, sampled)
            counts.append(len(sampled))
        # A draft is not to blame for a turn that failed: the savings that it was sure of did not come about either.
        prices = [0.0 if part.request.error else price for part, price in zip(work, allotment.prices, strict=True)]
        allotment._replace(prices=prices).charge(shares, counts)

    def _with_drafts(self, work: list[Work], budget: int, speculation: Speculation) -> list[Work]:
        """The same work with drafts, which take budget before the last prefill chunk does."""
        shares = []
        for place, (request, count, *_) in enumerate(work):
            sequence, producing = request.sequence, count == request.remaining
            proposed = self._propose(request, speculation.max_draft) if producing else []
            work[place] = Work(request, count, proposed)
            chances = [guess.chance for guess in proposed]
            shares.append(Share(sequence.kv_len, count, producing, _speculator(request).ledger, chances))
        spare = 0 if shares[-1].producing else work[-1].count - 1
        allotment = allot(shares, speculation.costs, budget + spare, speculation.max_sequences)
        self._drafting = allotment, shares
        for place, (part, drafted) in enumerate(zip(work, allotment.counts, strict=True)):
            work[place] = part._replace(draft=part.proposed[:drafted])
        if (excess := sum(allotment.counts) - budget) > 0:
            work[-1] = work[-1]._replace(count=work[-1].count - excess)
        return work

    def _propose(self, request: Request, most: int) -> list[Guess]:
        """Never as many as could end the turn: the last new token is not forwarded, so it needs no page."""
        sequence, options = request.sequence, request.options
        count = min(most, options.max_new_tokens - len(request.generated) - 1)
        sure = 0.95 if request.replay is not None or options.sampling.stop else 1.0
        try:
            return _speculator(request).propose(sequence.log, count, request.constraint, sure=sure)
        except Exception as error:  # noqa: BLE001  this turn's fault, and no reason to stop the others
            if request.replay is not None and isinstance(error, UnsupportedSchema):
                request.constraint = None  # which only guesses, and is at its parser's limit
            else:
                request.error = error
            return []

    def _wait(self, request: Request) -> None:
        request.waited, request.cached = 0, self.cache.cached_tokens(request.sequence)
        self.waiting.append(request)

    def _note(self, request: Request, what: str, tokens: int = 0, drafted: int = 0) -> None:
        self.timeline.append(Event(self.steps, request.number, what, tokens, drafted))


def _speculator(request: Request) -> Speculator:
    """Where the engine speculates, every sequence has one."""
    assert request.sequence.speculator is not None
    return request.sequence.speculator


def _computes_for(part: Work, request: Request) -> bool:
    """Whether `part` is about to compute a page or more that `request` needs next, and may share.

    Both have borrowed what is published by now. So if their logs agree, they are at the same place in the tree, and
    only the tokens behind that place have to be compared.
    """
    mine, other = request.sequence, part.request.sequence
    if mine.node is not other.node or mine.table.borrowed != other.table.borrowed:
        return False
    start, end = mine.table.borrowed_tokens, mine.kv_len + mine.table.pool.page_size
    if not other.kv_len <= mine.kv_len < other.kv_len + part.count or len(mine.log) <= end:
        return False
    return other.log[start:end] == mine.log[start:end]
