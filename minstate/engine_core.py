"""The engine's loop: schedule, forward, take in the results. Below sessions and messages, there are only requests."""

from collections.abc import Callable, Mapping

from minstate.chat.transcript import Continuation
from minstate.errors import TurnTimeout
from minstate.model_runner import ModelRunner, Scores
from minstate.output import OutputProcessor
from minstate.prompt_lookup import NGRAM
from minstate.ragged_batch import RaggedBatch
from minstate.request import Request
from minstate.scheduler import Scheduler, Work
from minstate.turn import Turn


class EngineCore:
    """Moves all requests on, one forward pass at a time."""

    def __init__(self, runner: ModelRunner, output: OutputProcessor, scheduler: Scheduler, clock: Callable[[], float]):
        self.runner, self.output, self.clock = runner, output, clock
        self.scheduler, self.cache = scheduler, scheduler.cache

    def step(self) -> list[Request]:
        """One forward pass for all running turns; returns those that it ended: with a `turn`, or with an `error`.

        An exception that is no turn's fault aborts all running turns, and is raised again.
        """
        self._expire()
        ended = self._end_turns({})
        try:
            # 1. Schedule: which turns run, and which tokens of their logs and drafts go into the batch.
            self.scheduler.prepare()
            work, batch = self.scheduler.next_step(RaggedBatch.build)
            turns: dict[Request, Turn | None] = {}
            if batch is not None:
                # 2. Forward: logits of all sequences, K/V into their pages.
                results = self.runner.run(batch)
                # 3. Take in the results: tokens into the logs, full pages into the tree.
                for part, result in zip(work, results, strict=True):
                    turns[part.request] = self._receive(part, result)
                self.scheduler.finish_step(work)
            # 4. End the turns that are complete, or have failed.
            return ended + self._end_turns(turns)
        except BaseException:
            for request in list(self.scheduler.running):
                self.give_up(request)
            raise

    def begin(self, request: Request, given: Continuation) -> None:
        """The turn is under way; or an exception is raised, and its session is as before it."""
        try:
            request.session.begin_turn(request, given)
            self.scheduler.submit(request)
        except BaseException:
            if request.session.running is request:
                self.give_up(request)
            raise

    def give_up(self, request: Request) -> None:
        """End a turn without an answer, unless it is done: its session is as before it."""
        if not request.done:
            self.scheduler.end(request, request.log_before)
            request.end()

    def _expire(self) -> None:
        now = self.clock()
        for request in self.scheduler.requests:
            if now > request.deadline:
                request.error = TurnTimeout("the turn took longer than its timeout_s; its session is as before it")

    def _receive(self, part: Work, result: Scores | Exception) -> Turn | None:
        """Take in the result of a forward pass for one turn; returns the turn if that completes it.

        An exception in sampling or in the grammar becomes the turn's `error`, as one in the forward pass does. The K/V
        that the forward pass has written then does not count.
        """
        request, sequence, turn = part.request, part.request.sequence, None
        if isinstance(result, Exception):
            request.error = result
        if request.error or isinstance(result, Exception):
            return None
        producing = part.count == request.remaining
        request.account(part.count, len(part.draft), producing, self.runner)
        try:
            turn = self.output.process(request, result, part.draft) if producing else None
        except Exception as error:  # noqa: BLE001  one turn's fault, and no reason to stop the others
            request.error = error
            return None
        sequence.table.commit()
        sequence.table.truncate(min(sequence.kv_len, len(sequence.log) - 1))  # K/V of rejected drafts goes
        self.cache.publish(sequence)
        return turn

    def _end_turns(self, turns: Mapping[Request, Turn | None]) -> list[Request]:
        """End the turns that have failed or are complete; returns them."""
        ended = []
        for request in self.scheduler.requests:
            if request.error:
                self.give_up(request)
            elif turn := turns.get(request):
                self._complete(request, turn)
            if request.done:
                ended.append(request)
        return ended

    def _complete(self, request: Request, turn: Turn) -> None:
        sequence, length = request.sequence, request.prompt_length
        if sequence.speculator:  # other sessions may generate the like, behind the same last tokens
            sequence.speculator.corpus.add(sequence.log[max(0, length - NGRAM) :])
        chat = self.output.chat
        transcript = chat.after_turn(request.transcript, sequence.log) if chat else request.transcript
        self.scheduler.end(request, len(sequence.log))
        request.end(turn, transcript)
