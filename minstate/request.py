"""One turn on its way: what scheduler and engine know of it, what it has cost, and its answer once it is done."""

import math
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream

from minstate.chat.grammar import Constraint
from minstate.chat.tool_calls import Tools
from minstate.chat.transcript import Transcript
from minstate.model_runner import ModelRunner
from minstate.sampling import Penalties
from minstate.sequence import Sequence
from minstate.speculation import Verdict
from minstate.turn import StreamedToken, Turn, TurnOptions


@dataclass(eq=False)
class Request:
    """A submitted turn. `Engine.step` moves it on; `turn` is the answer once it is `done`.

    Its user reads `tokens`, `turn`, `error` and `done`, and may `abort` it. Everything else belongs to the engine.
    """

    sequence: Sequence
    number: int  # in order of arrival
    log_before: int  # length of the log before the turn; an abort truncates to it
    prompt_length: int  # length of the log with the turn's input
    options: TurnOptions  # with the seed of the session's fork, and the length of the replay
    replay: tuple[int, ...] | None = None  # the output's token ids, where it is replayed
    tools: Tools = ()  # that the model may call
    session: Any = None  # the `Session` that it belongs to; None in a simulation
    transcript: Transcript = field(default_factory=Transcript)  # with the turn's input, without its answer
    thinking: bool = False  # whether the answer begins inside the model's thoughts
    constraint: Constraint | None = None  # what the output must fit; of a replayed output, what it seems to fit
    dropped: int = 0  # tokens by which the prompt is shorter because exchanges were dropped
    started_s: float = 0.0  # by `time.perf_counter`
    deadline: float = math.inf  # by the engine's clock
    # Written by the scheduler.
    admitted: bool = False  # at least once
    reused: int = 0  # tokens that had K/V when the turn was admitted for the first time
    waited: int = 0  # steps since it was submitted, or preempted
    cached: int = 0  # tokens that had K/V when it began to wait
    preempted: int = 0  # how many times
    promoted: int = 0  # tokens whose K/V was brought back from a lower tier
    promoted_s: float = 0.0
    # Written by the output processor.
    generated: list[int] = field(default_factory=list)
    tokens: list[StreamedToken] = field(default_factory=list)  # the generated ones, with the text that each completes
    text: str = ""
    decoder: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    first_token_s: float = 0.0
    logprobs: list[float] = field(default_factory=list)  # of each generated token, if `options.logprobs`
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)  # if `options.top_logprobs`
    penalties: Penalties | None = None  # from the first choice on, if `options.sampling` has any
    verdicts: list[Verdict] = field(default_factory=list)
    agreed: int = 0  # replayed tokens that the model itself would have chosen
    forced: int = 0  # generated tokens to which the constraint left no alternative
    # Written by the engine.
    forwarded: int = 0
    steps: int = 0
    flops: int = 0
    kv_bytes_read: int = 0
    turn: Turn | None = None
    error: Exception | None = None  # why the turn is given up, unless its user asked for that
    aborted: bool = False

    @property
    def done(self) -> bool:
        """Whether the turn has ended: with an answer, with an error, or by an abort."""
        return self.turn is not None or self.aborted

    @property
    def remaining(self) -> int:
        """Tokens of the log that have still to be forwarded before the next one can be chosen."""
        return max(0, len(self.sequence.log) - self.sequence.kv_len)

    def abort(self) -> None:
        """Give the turn up: the session's log and marks are as before it. Does nothing to a turn that is done."""
        if not self.done and self.session:
            self.session.abort_turn()

    def end(self, turn: Turn | None = None, transcript: Transcript | None = None) -> None:
        """The turn is over: with an answer, and the transcript that includes it; or it was given up."""
        self.turn, self.aborted = turn, turn is None
        if self.session:
            self.session.end_turn(transcript)

    def account(self, count: int, drafted: int, producing: bool, runner: ModelRunner) -> None:
        """Count a forward pass over `count` tokens of the log, and over as many guesses as `drafted` says.

        producing  whether the log ends with them, so that logits were wanted there and at each guess
        """
        context = self.sequence.kv_len + count + drafted
        self.steps += 1
        self.forwarded += count + drafted
        config = runner.model.config
        self.flops += config.flops(count + drafted, context, logit_rows=1 + drafted if producing else 0)
        self.kv_bytes_read += config.kv_bytes_read(count + drafted, context, runner.kv_dtype)
