"""The engine owns model, pool and scheduler, and moves every turn on, one forward pass at a time."""

import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch

from minstate import persistence
from minstate.arguments import require_positive, valid_ids
from minstate.attention import TorchAttention
from minstate.chat.grammar import Constraint, Grammars, call_opening, grammar_of
from minstate.chat.messages import Message, Messages, normalise_tools
from minstate.chat.template import Chat, Continuation, Transcript
from minstate.errors import (
    BadMessage,
    BadValue,
    BrokenInvariant,
    ContextOverflow,
    EngineMisuse,
    OutOfPages,
    TurnTimeout,
    UnsupportedModel,
    UnsupportedSchema,
)
from minstate.forward import Scores, forward, gpu_runner
from minstate.guard import entry
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.prefix_cache import PrefixCache
from minstate.prompt_lookup import NGRAM, Corpora, Corpus
from minstate.ragged_batch import RaggedBatch
from minstate.sampling import Sampling
from minstate.scheduler import Request, Scheduler, Work
from minstate.sequence import Sequence
from minstate.session import Session
from minstate.speculation import GRAMMAR, Speculation, Speculator
from minstate.turn import Handle, Turn
from minstate.weights import load_model

GREEDY = Sampling()


class Engine:
    """Runs the turns of any number of sessions over one pool of KV pages. Belongs to the thread that made it.

    token_budget  query tokens a forward pass takes at most: longer prompts are prefilled in chunks, between which
                  running decodes go on
    prefix_cache  whether sessions of one tenant share what they have in common; if not, a session shares with its own
                  forks only
    speculation   whether several tokens are guessed and checked in one pass; a `Speculation` says how. The output is
                  the same either way, but for rounding at near-ties, which bfloat16 has many of
    clock         seconds, for `timeout_s` and `Session.expect`; nothing else that the engine decides reads it
    """

    def __init__(
        self,
        model: Model,
        tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        page_size: int = 16,
        num_pages: int = 4096,
        token_budget: int = 512,
        prefix_cache: bool = True,
        speculation: bool | Speculation = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        for name, value in [("page_size", page_size), ("num_pages", num_pages), ("token_budget", token_budget)]:
            require_positive(name, value)
        self.model, self.tokenizer = model, tokenizer
        try:
            self.eos_ids = frozenset(valid_ids(eos_ids, model.config.vocab_size, "eos_ids"))
        except BadMessage as error:
            raise BadValue(str(error)) from error
        config = model.config
        self.pool = KVPool(
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_pages=num_pages,
            page_size=page_size,
            dtype=model.dtype,
            device=model.device,
        )
        self._gpu = gpu_runner(model, self.pool) if model.device.type == "cuda" else None
        self.clock = clock
        self.cache = PrefixCache(self.pool, clock)
        self.prefix_cache = prefix_cache
        costs = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
        self.scheduler = Scheduler(self.cache, token_budget, Speculation.of(speculation, costs))
        self._corpora = Corpora()
        self._handles: dict[Request, Handle] = {}
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._sessions_made = 0
        self._owner = threading.current_thread()
        self._in_step = False
        self._requests_made = 0
        self.entered = 0  # how many of its methods are on the stack
        self._abandoned: list[Handle] = []
        self.forgotten: list[Sequence] = []  # of sessions that became garbage, which may happen at any moment

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = None, *, dtype: str | None = None, device: str = "cpu", **settings
    ) -> "Engine":
        """Load a model: a Hugging Face folder, a Hub id, or by default `MINSTATE_MODEL` or the fetched SmolLM2.

        dtype     "float32", "bfloat16", or on a CPU "float64"; by default float32 on a CPU, bfloat16 on a GPU
        device    "cpu", or "cuda": model and K/V are on the GPU, and the kernels in `kernels/` compute
        settings  page_size, num_pages, token_budget, prefix_cache, speculation, as for `Engine`

        Raises `ModelNotFound`, `UnsupportedModel`, `DamagedWeights`, `BadValue`.
        """
        model, tokenizer, eos_ids = load_model(name, dtype, device)
        return cls(model, tokenizer, eos_ids=eos_ids, **settings)

    @cached_property
    def chat(self) -> Chat:
        """Messages to token ids. Raises `UnsupportedModel` where the tokenizer has no chat template of use."""
        return Chat(self.tokenizer)

    @cached_property
    def grammars(self) -> Grammars:
        """What makes constraints for replies. Raises `UnsupportedModel` where the tokenizer can't be read for that."""
        return Grammars(self.tokenizer, self.model.config.vocab_size, self.eos_ids)

    @entry
    def open(self, messages=(), tools=(), tenant: str = "default") -> Session:
        """A new session that begins with `messages` and knows `tools` (JSON schemas).

        Nothing is computed yet: they are part of the first turn's delta. K/V is shared with sessions of the same
        `tenant`, never with others. Raises `BadMessage`, `BadValue`.
        """
        self.require_owner()
        if not isinstance(tenant, str):
            raise BadValue(f"tenant must be a string, not {tenant!r}")
        nothing = isinstance(messages, list | tuple) and not messages and not tools
        said = Transcript() if nothing else self.chat.open(messages, tools)
        sequence = Sequence(self.pool)
        if self.scheduler.speculation:
            corpus = self._corpora.of(tenant) if self.prefix_cache else Corpus()
            sequence.speculator = Speculator(self.scheduler.speculation, corpus)
        self.prepare_tools(sequence, said.tools)
        tree = self.cache.tree
        self.cache.enter(sequence, tree.root(tenant) if self.prefix_cache else tree.private_root())
        return self.adopt(tenant, sequence, said)

    @entry
    def load(self, path: str | Path, tenant: str = "default") -> Session:
        """A session from a file that `Session.save` wrote. What is known of its K/V in the tenant's tree is shared.

        Raises OSError, `UnreadableSession`, `BadValue`, and `OutOfPages` if the pool is too small for its K/V.
        """
        self.require_owner()
        log, kv, said, seeds = persistence.read(Path(path), self.model, self.pool)
        session = self.open(tenant=tenant)
        session.said, session.lineage, session.forks = said, tuple(seeds["lineage"]), seeds["forks"]
        session.sequence.log += log
        self.prepare_tools(session.sequence, said.tools)
        try:
            self.cache.fill(session.sequence, kv)
        except BaseException:
            session.close()
            raise
        return session

    def prepare_tools(self, sequence: Sequence, tools: Messages) -> None:
        """What a session's tools make necessary once: grammars, and how calls begin, which speculation may guess."""
        if tools:
            with suppress(UnsupportedModel, UnsupportedSchema):  # whoever asks for a constraint will be told
                self.grammars  # noqa: B018  takes most of a second, which should not be in a turn
                for tool in tools if sequence.speculator else ():
                    sequence.speculator.corpus.add_once(self.chat.encode(call_opening(tool)))

    def adopt(self, tenant: str, sequence: Sequence, said: Transcript, lineage: tuple[int, ...] = ()) -> Session:
        """A session around `sequence`: for `open` and `Session.fork`."""
        session = Session(self, self._sessions_made, tenant, sequence, said, lineage)
        self._sessions_made += 1
        self._sessions.add(session)
        return session

    @entry
    def submit(
        self,
        session: Session,
        messages=None,
        *,
        token_ids: Iterable[int] | None = None,
        replay: Iterable[int] | str | Message | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling = GREEDY,
        tools=None,
        tool_choice: str | None = "auto",
        response_format: Mapping | None = None,
        logprobs: bool = False,
        timeout_s: float = math.inf,
    ) -> Handle:
        """Begin a turn; `step` or `run` moves it on.

        messages        a string (said by the user), a message, or a list of messages; `[]` after `Session.sync`
        token_ids       instead of messages: raw ids, appended as they are; none at all lets a cut-off answer go on
        replay          the answer, where it is given, as ids, text or message: all the work is done, logits included,
                        and `stats.agreed` counts the tokens that the model itself would have chosen
        max_new_tokens  the answer's length at most, in tokens
        tools           JSON schemas of the tools that may be called, the session's if not given. They constrain the
                        answer; the model is told of those that were passed to `open` or `Session.sync`
        tool_choice     "auto": text, and calls that fit their schemas; "required" or a tool's name: one such call, and
                        nothing else, unless `max_new_tokens` cuts it off; "none": no call; None: nothing is enforced
        response_format  instead: a JSON schema that the whole answer fits
        logprobs        whether `Turn.logprobs` is wanted
        timeout_s       seconds after which the turn is given up between two steps; `send` then raises `TurnTimeout`

        Raises `BadMessage`, `BadValue`, `ContextOverflow`, `OutOfPages`, `SessionBusy`, `SessionClosed`,
        `EngineMisuse`, `UnsupportedSchema`, and `UnsupportedModel` where messages cannot be rendered or answers not
        constrained; the session is then as before.
        """
        started_s = time.perf_counter()
        if session.engine is not self:
            raise EngineMisuse("the session belongs to another engine: submit it there")
        # Read before the session is looked at: an iterable may run any code, a turn of this session included.
        vocabulary = self.model.config.vocab_size
        token_ids = None if token_ids is None else valid_ids(token_ids, vocabulary, "token_ids")
        if isinstance(replay, str | Mapping):
            replay = self.chat.reply(replay)
        replay = None if replay is None else tuple(valid_ids(replay, vocabulary, "replay"))
        session.require_idle()
        if not isinstance(sampling, Sampling):
            raise BadValue(f"sampling must be a Sampling, not {type(sampling).__name__}")
        require_positive("max_new_tokens", max_new_tokens)
        if not isinstance(timeout_s, int | float) or not timeout_s > 0:
            raise BadValue(f"timeout_s must be a number of seconds above 0, not {timeout_s!r}")
        deadline = self.clock() + min(timeout_s, sys.float_info.max)
        if replay is not None:
            if not replay:
                raise BadMessage("replay needs at least one token id")
            max_new_tokens = len(replay)
        tools = session.said.tools if tools is None else normalise_tools(tools)
        constraint = self._constraint(replay, tools, tool_choice, response_format)
        sequence = session.sequence
        log_before, new, said = self.read_input(session.said, sequence.log, messages, token_ids)
        length = log_before + len(new) + max_new_tokens
        if length > self.model.config.max_positions:
            raise ContextOverflow(
                f"{log_before} tokens of history, {len(new)} new and {max_new_tokens} to be generated are {length}; "
                f"the model has {self.model.config.max_positions} positions: lower max_new_tokens, or roll back"
            )
        undo = session.cut(log_before) if log_before < len(sequence.log) else None
        try:
            self._before_turn(sequence)
            sequence.log += new
            request = Request(
                sequence,
                number=self._requests_made,
                log_before=log_before,
                prompt_length=log_before + len(new),
                max_new_tokens=max_new_tokens,
                sampling=sampling.for_fork(session.lineage),
                replay=replay,
                tools=tools,
                constraint=constraint,
                logprobs=[] if logprobs else None,
            )
            self.scheduler.require_pages(request)
        except BaseException:
            self.cache.rollback(sequence, log_before)
            session.restore(undo)
            raise
        self._requests_made += 1
        handle = Handle(session, request, said, undo, started_s, deadline)
        session.running = handle
        self._handles[request] = handle
        self.scheduler.submit(request)
        return handle

    @entry
    def step(self) -> list[Handle]:
        """One forward pass for all running turns; returns those that it ended: with a `turn`, or with an `error`.

        An exception in one turn's sampling, grammar or drafts ends that turn, and the others go on. If the forward pass
        fails, it is tried for each turn alone, and ends those that fail again. Ctrl-C waits for the end of a step, and
        leaves its turns running. What nobody can be blamed for (Ctrl-C pressed twice, for one) aborts all turns that
        took part and are not done, and is raised again.
        """
        self.require_owner()
        late = self._give_up_late()
        self.scheduler.admit()
        for request in self.scheduler.running:
            if request.remaining > 1:  # still being prefilled
                found = self.cache.extend(request.sequence)
                request.reused += 0 if request.preempted else found
        handles = [self._handles[request] for request in self.scheduler.running]
        computed = {handle: handle.request.sequence.kv_len for handle in handles}
        try:
            self._in_step = True
            try:
                work, batch = self.scheduler.next_step(RaggedBatch.build)
            except OutOfPages as error:  # of the last turn that runs, and none that rests can make room for it
                (handle,) = (self._handles[request] for request in self.scheduler.running)
                handle.request.error = error
                self._give_up(handle)
                return [*late, handle]
            if not work and handles:
                raise BrokenInvariant("turns are running, and none of them has a token to forward")
            if not work:
                return late
            handles = [self._handles[part.request] for part in work]
            rows = [(1 + len(part.draft)) * (part.request.remaining == 0) for part in work]
            scores = forward(self.logits, batch, rows)
            turns = [self._hear(*each) for each in zip(handles, work, scores, strict=True)]
            self.scheduler.settle(work)
            for handle, turn in zip(handles, turns, strict=True):
                if handle.error:
                    _forget_unwritten(handle, computed)
                    self._give_up(handle)
                elif turn:
                    handle.session.said = handle.said_with(turn, self.tokenizer)
                    self._end(handle, len(handle.request.sequence.log))
                    handle.turn = turn
            return late + [handle for handle in handles if handle.done]
        except BaseException:
            failed = [handle for handle in handles if not handle.done]
            for handle in failed:
                _forget_unwritten(handle, computed)
            for handle in failed:
                self._give_up(handle)
            raise
        finally:
            self._in_step = False

    def run(self) -> list[Handle]:
        """Step until nothing runs; returns the turns that ended, in that order: with a `turn`, or with an `error`.

        After Ctrl-C turns are still running: `run` again, or abort their handles.
        """
        finished = []
        while self._handles:
            finished += self.step()
        return finished

    @entry
    def abort(self, handle: Handle) -> None:
        """Give up a running turn: its session's log is as before it. Does nothing to a turn that is done."""
        self.require_owner()
        if not handle.done:
            self._give_up(handle)

    def abandon(self, handle: Handle) -> None:
        """As `abort`, for a destructor, which may run in any thread and at any moment: done as soon as it is safe."""
        self._abandoned.append(handle)
        if threading.current_thread() is self._owner and not self.entered:
            self.abort(handle)

    @entry
    def check(self) -> None:
        """Recount everything. Raises `BrokenInvariant` if any bookkeeping contradicts itself."""
        self.require_owner()
        sessions = list(self._sessions)
        for session in sessions:
            session.check()
        still_open = [session.sequence for session in sessions if not session.closed]
        self.cache.check(still_open, running=[request.sequence for request in self.scheduler.running])
        turns = {session.running for session in sessions} - {None}
        requests = {*self.scheduler.running, *self.scheduler.waiting}
        if turns != set(self._handles.values()) or set(self._handles) != requests:
            raise BrokenInvariant("the turns of sessions, engine and scheduler are not the same ones")

    def require_owner(self) -> None:
        """Raises `EngineMisuse` in any thread but the engine's own, and inside a step."""
        if threading.current_thread() is not self._owner:
            raise EngineMisuse("an engine belongs to the thread that made it: make one in this thread")
        if self._in_step:
            raise EngineMisuse("the engine is in the middle of a step")
        while self._abandoned:
            self.abort(self._abandoned.pop())
        while self.forgotten:
            self.cache.release(self.forgotten.pop())

    def _before_turn(self, sequence: Sequence) -> None:
        """For engines that remember less: the turn is accepted, and about to begin."""

    def read_input(self, said: Transcript, log: list[int], messages, ids: list[int] | None) -> Continuation:
        """What the turn does to the log. Costs nothing per old token, unless messages wait that are not in the log."""
        if (messages is None) == (ids is None):
            raise BadMessage("send either messages or token_ids")
        if ids is None:
            return self.chat.read(said, log, messages)
        if said.waits:
            return self.chat.read_ids(said, log, ids)
        if not log and not ids:
            raise BadMessage("the first turn needs at least one token")
        return Continuation(len(log), ids, said.asked_in_ids() if ids or not said.messages else said)

    def _constraint(self, replay, tools, tool_choice, response_format) -> Constraint | None:
        speculation = self.scheduler.speculation
        # A given output is not constrained, but the grammar may guess at it.
        with suppress(*(() if replay is None else (UnsupportedModel, UnsupportedSchema))):
            wanted = grammar_of(tools, tool_choice, response_format) is not None
            if wanted and (replay is None or (speculation and GRAMMAR in speculation.sources)):
                return self.grammars.constraint(tools, tool_choice, response_format)
        return None

    def _give_up_late(self) -> list[Handle]:
        now = self.clock()
        late = [handle for handle in self._handles.values() if now > handle.deadline]
        for handle in late:
            handle.request.error = TurnTimeout("the turn took longer than its timeout_s; its session is as before it")
            self._give_up(handle)
        return late

    def logits(self, batch: RaggedBatch) -> torch.Tensor:
        """A forward pass: logits `[R, vocab]`, on the model's device."""
        if self._gpu:
            return self._gpu.logits(batch)
        return self.model.forward(batch, TorchAttention(self.pool, batch))

    def _hear(self, handle: Handle, part: Work, scores: Scores | Exception) -> Turn | None:
        """What the pass says to one turn; the turn, if that ends it. What goes wrong is the turn's `error`."""
        request, sequence = part.request, part.request.sequence
        if isinstance(scores, Exception):
            request.error = scores
        turn = None
        request.account(part.count, len(part.draft), self.model)
        if request.remaining == 0 and not request.error:
            try:
                turn = handle.hear(scores, part.draft, self.tokenizer, self.eos_ids)
            except Exception as error:
                request.error = error
        if not request.error:
            sequence.table.truncate(min(sequence.kv_len, len(sequence.log) - 1))  # without the draft's rejected part
            self.cache.publish(sequence)
        return turn

    def _give_up(self, handle: Handle) -> None:
        """The turn ends without an answer, and its session is as before it."""
        self._end(handle, handle.request.log_before)
        handle.session.restore(handle.undo)
        handle.aborted = True

    def _end(self, handle: Handle, length: int) -> None:
        """The turn no longer runs, however it ended; `length` tokens of the log stay."""
        request, sequence = handle.request, handle.request.sequence
        del self._handles[request]
        handle.session.running = None
        if sequence.speculator and request.generated and length == len(sequence.log):
            # Others may say the like, behind the same last words.
            sequence.speculator.corpus.add(sequence.log[max(0, request.prompt_length - NGRAM) :])
        self.scheduler.end(request, length)


def _forget_unwritten(handle: Handle, computed: Mapping[Handle, int]) -> None:
    """A pass that failed may never have written the slots that were new in it."""
    table = handle.request.sequence.table
    table.truncate(min(computed[handle], table.length))
