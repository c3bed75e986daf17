"""Serving without a model: the real scheduler, prefix cache and page allocator, and a clock that is predicted.

Nothing is computed. A step takes as long as `Hardware` predicts, and the traffic draws what the model "answers". So
thousands of sessions pass in minutes. All counts (tokens, pages, evictions) are those that an engine would have on the
same traffic if its steps took that long; **all times are predictions**.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from tqdm import tqdm

from minstate.invariants import check_cache
from minstate.lab.machines.data_sheets import DTYPE, Hardware
from minstate.lab.serving.live_session import LiveSession, sequence_of
from minstate.lab.serving.reuse_modes import ReuseMode
from minstate.lab.serving.serving_stats import ServingStats
from minstate.lab.serving.stub_pool import StubPool, reserve_slots
from minstate.lab.serving.stub_tiers import StubTiers
from minstate.lab.serving.traffic import AgentSession, AgentTurn, TrafficShape, draw_sessions
from minstate.model_config import ModelConfig
from minstate.prefix_cache import PrefixCache
from minstate.request import Request
from minstate.scheduler import Scheduler
from minstate.speculation import Verdict
from minstate.turn import TurnOptions

SAMPLED = Verdict((), (0,))  # one token was sampled; the scheduler does not look at which


@dataclass(eq=False)
class _RunningTurn:
    live: LiveSession
    turn: AgentTurn
    output: list[int]
    sent_s: float
    last_token_s: float | None = None  # when its latest token came


class Simulation:
    """A server and its clients. `run` it, then read `stats`.

    config, hardware  set the pace: all seconds are predicted from them
    mode              what the server reuses from turn to turn
    num_pages         None: as many as the hardware has room for
    token_budget      query tokens of a step at most
    count_from_s      turns that are sent before this time are not counted
    fast_forward      whether to take steps that only add a token to each turn all at once, which changes no outcome
    """

    def __init__(
        self,
        config: ModelConfig,
        hardware: Hardware,
        mode: ReuseMode,
        *,
        num_pages: int | None = None,
        page_size: int = 64,
        token_budget: int = 1024,
        count_from_s: float = 0.0,
        fast_forward: bool = True,
    ):
        self.config, self.hardware, self.mode = config, hardware, mode
        self.count_from_s, self.fast_forward = count_from_s, fast_forward
        self.now_s = 0.0
        page_bytes = page_size * config.kv_bytes_per_token(DTYPE)
        self.pool = StubPool(num_pages or hardware.num_pages(config, page_size), page_size, page_bytes)
        self.tiers = StubTiers(self.pool, config, hardware) if mode.host_tier else None
        self.cache = PrefixCache(self.pool, lambda: self.now_s, self.tiers)
        self.scheduler = Scheduler(self.cache, token_budget)
        self.stats = ServingStats()
        self.live: set[LiveSession] = set()
        self._running: dict[Request, _RunningTurn] = {}
        self._due: list[tuple[float, int, LiveSession, AgentTurn]] = []  # a heap of turns that only wait for their time
        self._turns_due = self._turns_sent = 0  # so far

    def begin(self, live: LiveSession, at_s: float) -> None:
        """A session begins: its first turn, and others that wait for none, become due."""
        self.live.add(live)
        for turn in live.turns:
            if not turn.after:
                self._add_due(live, turn, at_s)

    def run(
        self,
        arrivals: Iterable[AgentSession] = (),
        *,
        until_s: float = inf,
        replacement: Callable[[], LiveSession] | None = None,
        progress: tqdm | None = None,
    ) -> ServingStats:
        """Serve until all sessions are served, or until `until_s`.

        arrivals     sessions in order of their arrival (an open loop); drawn one by one
        replacement  makes the session that begins when another one ends (a closed loop)
        """
        arrivals = iter(arrivals)
        arriving = next(arrivals, None)
        while self.now_s < until_s:
            while arriving and arriving.arrival_s <= self.now_s:
                self.begin(LiveSession.of(arriving), arriving.arrival_s)
                arriving = next(arrivals, None)
            while self._due and self._due[0][0] <= self.now_s:
                sent_s, _, live, turn = heapq.heappop(self._due)
                self._send(live, turn, sent_s)
            next_s = min(self._due[0][0] if self._due else inf, arriving.arrival_s if arriving else inf)
            if self._running:
                for live in self._step(min(next_s, until_s)):
                    self.stats.sessions += 1
                    self.live.remove(live)
                    if progress is not None:
                        progress.update()
                    if replacement:
                        self.begin(replacement(), self.now_s)
            elif next_s < inf:
                self.now_s = next_s
            else:
                break
        return self.stats

    def count_waiting(self) -> None:
        """Count each turn that still waits for its first token, with the seconds that it has waited until now."""
        waiting = [turn for turn in self._running.values() if turn.last_token_s is None]
        self.stats.first_s.extend(self.now_s - turn.sent_s for turn in waiting)

    def check(self) -> None:
        """Recount everything. Raises `BrokenInvariant`."""
        still_open = [sequence for live in self.live for sequence in live.sequences.values()]
        check_cache(self.cache, still_open, [request.sequence for request in self.scheduler.running])

    def _add_due(self, live: LiveSession, turn: AgentTurn, since_s: float) -> None:
        self._turns_due += 1
        heapq.heappush(self._due, (since_s + turn.delay_s, self._turns_due, live, turn))

    def _send(self, live: LiveSession, turn: AgentTurn, sent_s: float) -> None:
        sequence = sequence_of(turn, live.sequences, live.script.application, self.cache)
        self.mode.before_turn(self.cache, sequence)
        before = len(sequence.log)
        new, output = live.script.ids(turn)
        sequence.log += new
        self.scheduler.require_pages(len(sequence.log), turn.output)
        options = TurnOptions(max_new_tokens=turn.output)
        request = Request(sequence, self._turns_sent, before, len(sequence.log), options)
        self._turns_sent += 1
        self._running[request] = _RunningTurn(live, turn, output, sent_s)
        self.scheduler.submit(request)

    def _step(self, next_s: float) -> list[LiveSession]:
        """One step without a forward pass, and the similar steps after it. Returns the sessions that it ends."""
        scheduler = self.scheduler
        scheduler.prepare()
        work, _ = scheduler.next_step(reserve_slots)
        if not work:
            raise scheduler.running[0].error
        flops = context = 0
        for request, count, *_ in work:
            request.sequence.table.commit()
            request.forwarded += count
            kv_len = request.sequence.kv_len
            flops += self.config.flops(count, kv_len, 1 if request.remaining == 0 else 0)
            context += kv_len
        decoding = [part.request for part in work if part.request.remaining == 0]
        self.now_s += self.tiers.take_seconds() if self.tiers else 0.0
        self._advance_clock(flops, context, decoding)
        for request in decoding:
            self._take_output(request, 1)
        if self.fast_forward and len(decoding) == len(work) == len(scheduler.running) and not scheduler.waiting:
            self._fast_forward(decoding, next_s)
        for request, *_ in work:
            self.cache.publish(request.sequence)
        scheduler.finish_step(work)
        self.stats.steps += 1
        ended = [request for request in decoding if len(request.generated) == request.options.max_new_tokens]
        return [live for request in ended if (live := self._end(request))]

    def _fast_forward(self, decoding: list[Request], next_s: float) -> None:
        """Take all steps at once that only add a token to the last page of each turn.

        No page is allocated, and no turn begins or ends meanwhile, so the outcome is that of single steps, to the last
        digit.
        """
        page_size, config, flops, context = self.pool.page_size, self.config, 0, 0
        most = min(
            min(request.options.max_new_tokens - len(request.generated), -request.sequence.kv_len % page_size)
            for request in decoding
        )
        if most == 0 or self.now_s >= next_s:
            return
        for request in decoding:
            flops += config.flops(1, request.sequence.kv_len, 1)
            context += request.sequence.kv_len
        more_flops, steps = len(decoding) * (config.flops(1, 2, 1) - config.flops(1, 1, 1)), 0
        while steps < most and self.now_s < next_s:
            flops, context, steps = flops + more_flops, context + len(decoding), steps + 1
            self._advance_clock(flops, context, decoding)
        for request in decoding:
            request.sequence.table.append(steps)
            request.sequence.table.commit()
            request.forwarded += steps
            self._take_output(request, steps)
        decoding.sort(key=lambda request: request.number)  # the last of these steps takes them in order of arrival
        self.scheduler.steps += steps
        self.stats.steps += steps

    def _advance_clock(self, flops: int, context: int, decoding: list[Request]) -> None:
        """A step takes its time; then each turn in `decoding` has one more token."""
        self.now_s += self.hardware.seconds(flops, self.config.bytes_read(context, DTYPE))
        for request in decoding:
            running = self._running[request]
            if running.sent_s >= self.count_from_s:
                if running.last_token_s is None:
                    self.stats.first_s.append(self.now_s - running.sent_s)
                else:
                    self.stats.between_s.append(self.now_s - running.last_token_s)
            running.last_token_s = self.now_s

    def _take_output(self, request: Request, count: int) -> None:
        """The turn's next `count` tokens are known."""
        at = len(request.generated)
        tokens = self._running[request].output[at : at + count]
        request.sequence.log += tokens
        request.generated += tokens
        request.verdicts.append(SAMPLED)

    def _end(self, request: Request) -> LiveSession | None:
        """The turn ends. Returns its session if that ends, too."""
        running, sequence = self._running.pop(request), request.sequence
        live, turn = running.live, running.turn
        self.scheduler.end(request, len(sequence.log))
        if running.sent_s >= self.count_from_s:
            self._count(request, turn)
        if turn.last:
            del live.sequences[turn.agent]
            self.cache.release(sequence)
        elif self.mode.trust and turn.hint_s is not None:
            self.cache.expect(sequence, self.mode.trust * turn.hint_s)
        for ready in live.end(turn):
            self._add_due(live, ready, self.now_s)
        return live if live.turns_left == 0 else None

    def _count(self, request: Request, turn: AgentTurn) -> None:
        stats, context = self.stats, max(0, request.log_before - 1)
        stats.turns += 1
        stats.prompt_tokens += request.prompt_length
        stats.log_tokens += turn.new + turn.output
        stats.generated += turn.output
        stats.forwarded += request.forwarded
        stats.reused += request.reused
        once = request.prompt_length - request.reused + turn.output - 1
        twice = request.forwarded - once  # tokens that preemption made the turn forward again
        stats.recomputed += max(0, context - request.reused) + twice
        stats.preempted += request.preempted


def simulate_arrivals(
    config: ModelConfig,
    hardware: Hardware,
    mode: ReuseMode,
    shape: TrafficShape,
    *,
    count: int,
    per_s: float,
    seed: int = 0,
    **settings,
) -> Simulation:
    """An open loop: `count` sessions arrive, `per_s` a second on average, and are served to the end.

    settings  of `Simulation`
    """
    simulation = Simulation(config, hardware, mode, **settings)
    with tqdm(total=count, unit="session", mininterval=1) as bar:
        simulation.run(draw_sessions(shape, seed, count=count, per_s=per_s), progress=bar)
    return simulation
