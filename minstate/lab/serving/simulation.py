"""Serving without a model: the real scheduler, prefix cache and page allocator, and a clock that is predicted.

Nothing is computed. A step takes as long as `Hardware` says, and what the model "answers" is drawn by the traffic. So
thousands of sessions pass in minutes. All counts (tokens, pages, evictions) are those that an engine would have on the
same traffic, had its steps taken so long; **all times are predictions**.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

import numpy as np
from tqdm import tqdm

from minstate.lab.machines.data_sheets import DTYPE, Hardware
from minstate.lab.serving.live_session import LiveSession
from minstate.lab.serving.traffic import AgentSession, AgentTurn, Shape, sessions
from minstate.model import ModelConfig
from minstate.paged_kv import PageAllocator
from minstate.prefix_cache import PrefixCache
from minstate.sampling import Sampling
from minstate.scheduler import Request, Scheduler
from minstate.sequence import Sequence
from minstate.speculation import Verdict

GREEDY = Sampling()
HEARD = Verdict((), (0,))  # a token was chosen; which one does not matter here


class AnyPage(PageAllocator):
    """Hands out whichever page was freed last. Where pages lie matters to attention; counts do not depend on it."""

    def __init__(self, num_pages: int):
        super().__init__(num_pages)
        self._stack = list(range(num_pages))

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """As the original, but without looking for long runs."""
        if count > self.num_free:
            self.reclaim(count - self.num_free)
        if not 0 <= count <= self.num_free:
            return super().allocate(count)  # which says what is wrong
        pages = [self._stack.pop() for _ in range(count)]
        for page in pages:
            self._take(page, 1)
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """As the original."""
        pages = list(pages)
        super().release(pages)
        self._stack += [page for page in pages if not self.owners[page]]


class Pages:
    """A pool without tensors: who has which page is all there is to know."""

    def __init__(self, num_pages: int, page_size: int):
        self.allocator, self.page_size = AnyPage(num_pages), page_size

    def copy_page(self, source: int, target: int, tokens: int | None = None) -> None:
        """Nothing to copy."""


def take_slots(work: list[tuple[Sequence, int]], drafts: list[list[int]]) -> None:
    """In place of `RaggedBatch.build`: room in the page tables, for all or for none. Raises `OutOfPages`."""
    before = [(sequence, sequence.kv_len) for sequence, _ in work]
    try:
        for (sequence, count), draft in zip(work, drafts, strict=True):
            sequence.table.append(count + len(draft))
    except BaseException:
        for sequence, length in before:
            sequence.table.truncate(length)
        raise


@dataclass(frozen=True)
class Policy:
    """What a server remembers between turns.

    before_turn  what it does to the sequence of a turn that is about to begin
    trust        whether it hears hints, and how many times the announced seconds it counts on; 0: it does not
    """

    name: str
    before_turn: Callable[[PrefixCache, Sequence], None] = lambda cache, sequence: None
    trust: float = 0.0


NAIVE = Policy("naive", lambda cache, sequence: cache.forget(sequence, cache.tree.private_root()))
PREFIX_REUSE = Policy("prefix reuse", lambda cache, sequence: cache.forget(sequence, sequence.root))
STATEFUL = Policy("stateful", trust=8.0)  # nearly all calls are back by then; who is not is given up first


@dataclass
class Tally:
    """Counts of tokens unless the name says otherwise, over turns that have ended."""

    sessions: int = 0
    turns: int = 0
    prompt_tokens: int = 0  # whole logs with the turns' input: what a stateless client sends
    log_tokens: int = 0  # each input and answer once
    generated: int = 0
    forwarded: int = 0
    reused: int = 0  # of the prompts
    recomputed: int = 0  # of the prompts: had been forwarded for this agent before
    preempted: int = 0  # times
    steps: int = 0
    first_s: array = field(default_factory=lambda: array("d"))  # from sending a turn to its first token: predicted
    between_s: array = field(default_factory=lambda: array("d"))  # from one token of a turn to the next: predicted

    def row(self) -> dict:
        """Shares and percentiles, for a table. Times are predictions."""
        late = {
            "p95 to first token (s)": np.percentile(self.first_s, 95) if self.first_s else np.nan,
            "p95 between tokens (ms)": 1000 * np.percentile(self.between_s, 95) if self.between_s else np.nan,
        }
        return {
            "turns": self.turns,
            "hit rate": self.reused / max(1, self.prompt_tokens),
            "recomputed share": self.recomputed / max(1, self.prompt_tokens),
            **late,
        }


@dataclass(eq=False)
class _Running:
    live: LiveSession
    turn: AgentTurn
    output: list[int]
    sent_s: float
    last_s: float | None = None  # when its last token came


class Simulation:
    """A server and its clients. `run` it, then read `tally`.

    config, hardware  set the pace: all seconds are predicted from them
    num_pages         None: as many as the hardware has room for
    token_budget      query tokens of a step at most
    since_s           turns sent before are not counted
    leaps             whether steps that are alike may pass at once, which changes no outcome
    """

    def __init__(
        self,
        config: ModelConfig,
        hardware: Hardware,
        policy: Policy,
        *,
        num_pages: int | None = None,
        page_size: int = 64,
        token_budget: int = 1024,
        since_s: float = 0.0,
        leaps: bool = True,
    ):
        self.config, self.hardware, self.policy = config, hardware, policy
        self.since_s, self.leaps = since_s, leaps
        self.now_s = 0.0
        self.pool = Pages(num_pages or hardware.num_pages(config, page_size), page_size)
        self.cache = PrefixCache(self.pool, clock=lambda: self.now_s)
        self.scheduler = Scheduler(self.cache, token_budget)
        self.tally = Tally()
        self._running: dict[Request, _Running] = {}
        self._coming: list[tuple[float, int, LiveSession, AgentTurn]] = []  # a heap: only time holds them up
        self._scheduled = self._requests = 0
        self.live: set[LiveSession] = set()

    def begin(self, live: LiveSession, at_s: float) -> None:
        """A session comes."""
        self.live.add(live)
        for turn in live.turns:
            if not turn.after:
                self._schedule(live, turn, at_s)

    def run(
        self,
        arrivals: Iterable[AgentSession] = (),
        *,
        until_s: float = inf,
        next_one: Callable[[], LiveSession] | None = None,
        progress: tqdm | None = None,
    ) -> Tally:
        """Serve until all are served, or until `until_s`.

        arrivals  sessions that come by themselves, in order; drawn one by one
        next_one  makes the session that takes the place of one that is over: a closed loop
        """
        arrivals = iter(arrivals)
        coming = next(arrivals, None)
        while self.now_s < until_s:
            while coming and coming.arrival_s <= self.now_s:
                self.begin(LiveSession.of(coming), coming.arrival_s)
                coming = next(arrivals, None)
            while self._coming and self._coming[0][0] <= self.now_s:
                sent_s, _, live, turn = heapq.heappop(self._coming)
                self._send(live, turn, sent_s)
            soon_s = min(self._coming[0][0] if self._coming else inf, coming.arrival_s if coming else inf)
            if self._running:
                for live in self._step(min(soon_s, until_s)):
                    self.tally.sessions += 1
                    self.live.remove(live)
                    if progress is not None:
                        progress.update()
                    if next_one:
                        self.begin(next_one(), self.now_s)
            elif soon_s < inf:
                self.now_s = soon_s
            else:
                break
        return self.tally

    def count_waiting(self) -> None:
        """Enter the turns that have had no first token so far, with the seconds that they have waited until now."""
        self.tally.first_s.extend(self.now_s - one.sent_s for one in self._running.values() if one.last_s is None)

    def check(self) -> None:
        """Recount everything. Raises `BrokenInvariant`."""
        idle = [sequence for live in self.live for sequence in live.sequences.values()]
        self.cache.check(idle, [request.sequence for request in self.scheduler.running])

    def _schedule(self, live: LiveSession, turn: AgentTurn, since_s: float) -> None:
        self._scheduled += 1
        heapq.heappush(self._coming, (since_s + turn.delay_s, self._scheduled, live, turn))

    def _send(self, live: LiveSession, turn: AgentTurn, sent_s: float) -> None:
        sequence = live.sequence_of(turn, self.cache)
        self.policy.before_turn(self.cache, sequence)
        before = len(sequence.log)
        new, output = live.script.ids(turn)
        sequence.log += new
        request = Request(sequence, self._requests, before, len(sequence.log), turn.output, GREEDY, None)
        self.scheduler.require_pages(request)
        self._requests += 1
        self._running[request] = _Running(live, turn, output, sent_s)
        self.scheduler.submit(request)

    def _step(self, soon_s: float) -> list[LiveSession]:
        """A forward pass that does not take place, and those after it that are alike. Returns finished sessions."""
        scheduler, cache = self.scheduler, self.cache
        scheduler.admit()
        for request in scheduler.running:
            if request.remaining > 1:
                found = cache.extend(request.sequence)
                request.reused += 0 if request.preempted else found
        work, _ = scheduler.next_step(take_slots)
        flops = context = 0
        for request, count, *_ in work:
            kv_len = request.sequence.kv_len
            flops += self.config.flops(count, kv_len, int(request.remaining == 0))
            context += kv_len
        answering = [part.request for part in work if part.request.remaining == 0]
        self._pass_time(flops, context, answering)
        for request in answering:
            self._answer(request, 1)
        for request, count, *_ in work:
            request.forwarded += count
        if self.leaps and len(answering) == len(work) == len(scheduler.running) and not scheduler.waiting:
            self._leap(answering, soon_s)
        for request, *_ in work:
            cache.publish(request.sequence)
        scheduler.settle(work)
        self.tally.steps += 1
        ended = [request for request in answering if len(request.generated) == request.max_new_tokens]
        return [live for request in ended if (live := self._end(request))]

    def _leap(self, decoding: list[Request], soon_s: float) -> None:
        """Steps that do nothing but add a token to each turn's last page, at once.

        No page is taken, and nobody comes or goes: what comes of it is what single steps give, to the last digit.
        """
        size, config, flops, context = self.pool.page_size, self.config, 0, 0
        most = min(
            min(request.max_new_tokens - len(request.generated), -request.sequence.kv_len % size)
            for request in decoding
        )
        if not most:
            return
        for request in decoding:
            flops += config.flops(1, request.sequence.kv_len, 1)
            context += request.sequence.kv_len
        more_flops, steps = len(decoding) * (config.flops(1, 2, 1) - config.flops(1, 1, 1)), 0
        while steps < most and self.now_s < soon_s:
            flops, context, steps = flops + more_flops, context + len(decoding), steps + 1
            self._pass_time(flops, context, decoding)
        for request in decoding:
            request.sequence.table.append(steps)
            request.forwarded += steps
            self._answer(request, steps)
        self.scheduler.steps += steps
        self.tally.steps += steps

    def _pass_time(self, flops: int, context: int, answering: list[Request]) -> None:
        """A step takes its time, and then these have one more token."""
        self.now_s += self.hardware.seconds(flops, self.config.bytes_read(context, DTYPE))
        for request in answering:
            one = self._running[request]
            if one.last_s is not None and one.sent_s >= self.since_s:
                self.tally.between_s.append(self.now_s - one.last_s)
            elif one.sent_s >= self.since_s:
                self.tally.first_s.append(self.now_s - one.sent_s)
            one.last_s = self.now_s

    def _answer(self, request: Request, count: int) -> None:
        """Its next tokens are known."""
        at = len(request.generated)
        tokens = self._running[request].output[at : at + count]
        request.sequence.log += tokens
        request.generated += tokens
        request.verdicts.append(HEARD)

    def _end(self, request: Request) -> LiveSession | None:
        """A turn is over. Returns its session if that is over too."""
        one, sequence = self._running.pop(request), request.sequence
        live, turn = one.live, one.turn
        self.scheduler.end(request, len(sequence.log))
        if one.sent_s >= self.since_s:
            self._count(request, turn)
        if turn.last:
            del live.sequences[turn.agent]
            self.cache.release(sequence)
        elif self.policy.trust and turn.hint_s is not None:
            self.cache.expect(sequence, self.policy.trust * turn.hint_s)
        for ready in live.over(turn):
            self._schedule(live, ready, self.now_s)
        return None if live.left else live

    def _count(self, request: Request, turn: AgentTurn) -> None:
        tally, context = self.tally, max(0, request.log_before - 1)
        tally.turns += 1
        tally.prompt_tokens += request.prompt_length
        tally.log_tokens += turn.new + turn.output
        tally.generated += turn.output
        tally.forwarded += request.forwarded
        tally.reused += request.reused
        once = request.prompt_length - request.reused + turn.output - 1
        tally.recomputed += max(0, context - request.reused) + request.forwarded - once  # the latter: after preemption
        tally.preempted += request.preempted


def serve_arrivals(
    config: ModelConfig, hardware: Hardware, policy: Policy, shape: Shape, *, count: int, per_s: float, **settings
) -> Simulation:
    """`count` sessions that come by themselves, `per_s` a second, served to the end. Settings as for `Simulation`."""
    seed = settings.pop("seed", 0)
    simulation = Simulation(config, hardware, policy, **settings)
    with tqdm(total=count, unit="session", mininterval=1) as bar:
        simulation.run(sessions(shape, seed, count=count, per_s=per_s), progress=bar)
    return simulation
