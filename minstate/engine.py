"""The engine as its user sees it: it opens sessions and takes turns; `step` and `run` move all turns on."""

import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from minstate import persistence
from minstate.arguments import require_embedded, token_ids_of, whole_number
from minstate.chat.conversation import Chat, read_input
from minstate.chat.grammar import Grammars
from minstate.chat.tool_calls import Tools
from minstate.chat.transcript import Continuation, Options, Transcript
from minstate.draft_budget import CostTable
from minstate.engine_core import EngineCore
from minstate.errors import BadValue, EngineMisuse, UnsupportedModel, UnsupportedSchema
from minstate.guard import Guard, entry
from minstate.invariants import check_engine
from minstate.model import Model
from minstate.model_runner import ModelRunner
from minstate.output import OutputProcessor
from minstate.overflow import Admission
from minstate.prefix_cache import PrefixCache
from minstate.prompt_lookup import Corpora, Corpus
from minstate.request import Request
from minstate.scheduler import Scheduler
from minstate.sequence import Sequence
from minstate.session import Session
from minstate.speculation import Speculation, Speculator
from minstate.tiers import Tiers
from minstate.turn import takes_turn_options
from minstate.turn_input import constraint_of, read_options
from minstate.weights import load_model


class Engine:
    """Runs the turns of any number of sessions over one pool of KV pages. Belongs to the thread that made it.

    num_pages     of the pool; None: 65,536 tokens, but at most a quarter of the free memory. `engine.pool` shows both
    kv_dtype      "int8": keys and values in 8 bits, see `kv_int8.py`; None: as the model computes
    token_budget  query tokens of a forward pass at most: longer prompts are prefilled in chunks, between decodes
    prefix_cache  whether sessions of one tenant share what they have in common, or a session with its own forks only
    speculation   whether several tokens are guessed and checked in one forward pass; a `Speculation` says how. The
                  output is the same either way, but for rounding at near-ties, which bfloat16 has many of
    host_tokens   tokens whose K/V host memory keeps when the pool has no room for it; none by default
    disk          a folder of `disk_bytes` at most that keeps what has no room in either, for later engines, too
    clock         seconds, for `timeout_s` and `Session.expect`; no other decision of the engine reads it
    """

    def __init__(
        self,
        model: Model,
        tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        page_size: int = 16,
        num_pages: int | None = None,
        kv_dtype: str | None = None,
        token_budget: int = 512,
        prefix_cache: bool = True,
        speculation: bool | Speculation = False,
        host_tokens: int = 0,
        disk: str | Path | None = None,
        disk_bytes: int = 16 * 10**9,
        clock: Callable[[], float] = time.monotonic,
    ):
        page_size, token_budget = whole_number("page_size", page_size, 1), whole_number("token_budget", token_budget, 1)
        num_pages = None if num_pages is None else whole_number("num_pages", num_pages, 1)
        eos = frozenset(token_ids_of("eos_ids", eos_ids, model.config.vocab_size, BadValue))
        runner = ModelRunner(model, num_pages=num_pages, page_size=page_size, kv_dtype=kv_dtype)
        self.tokenizer, self.eos_ids, self.clock = tokenizer, eos, clock
        speculates = Speculation.of(speculation, costs := "bfloat16" if model.dtype == torch.bfloat16 else "float32")
        tiers = Tiers(runner.pool, speculates.costs if speculates else CostTable.default(costs), host_tokens)
        tiers.add_disk(disk, disk_bytes, model.fingerprint)
        self.pool, self.cache = runner.pool, PrefixCache(runner.pool, clock, tiers)
        self.scheduler = Scheduler(self.cache, token_budget, speculates)
        self.core = EngineCore(runner, OutputProcessor(tokenizer, eos), self.scheduler, clock)
        self.prefix_cache, self.guard, self._corpora = prefix_cache, Guard(), Corpora()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._sessions_made = self._requests_made = 0

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str = "cpu",
        kernels: str = "auto",
        deterministic: bool = False,
        **settings,
    ) -> "Engine":
        """Load a model: a Hugging Face folder, a Hub id, or by default `MINSTATE_MODEL` or the fetched SmolLM2.

        dtype          "float32", "bfloat16", or on a CPU "float64"; None or "auto": float32 on a CPU, bfloat16 on a GPU
        device         "cpu", or "cuda": model and K/V are on the GPU
        kernels        what computes: "auto" is the hand-written kernels for the device, and torch where they cannot;
                       "cpu" and "cuda" insist on them, and "torch" does without
        deterministic  on a CPU: the same logits bit for bit, cold or warm, alone or in a batch, drafted or not
        settings       page_size, num_pages, kv_dtype, token_budget, prefix_cache, speculation, as for `Engine`

        Raises `ModelNotFound`, `UnsupportedModel`, `DamagedWeights`, `BadValue`.
        """
        model, tokenizer, eos_ids = load_model(name, dtype, device, kernels, deterministic)
        return cls(model, tokenizer, eos_ids=eos_ids, **settings)

    @property
    def model(self) -> Model:
        """The model that runs."""
        return self.core.runner.model

    @cached_property
    def chat(self) -> Chat:
        """Messages to token ids. Raises `UnsupportedModel` where the tokenizer has no usable chat template."""
        self.core.output.know(chat := Chat(self.tokenizer, self.eos_ids, self.model.config.max_positions))
        return chat

    @cached_property
    def grammars(self) -> Grammars:
        """Makes constraints for replies."""
        known: dict[str, Any] = {}
        with suppress(UnsupportedModel):  # without a template, calls are written as Hermes does
            known["dialect"] = self.chat.dialect
        return Grammars(self.tokenizer, self.model.config.vocab_size, self.core.output.eos_ids, **known)

    @entry
    def open(
        self,
        messages=(),
        tools=(),
        tenant: str = "default",
        *,
        template_options: Mapping[str, Any] | None = None,
        content_may_control: bool = False,
    ) -> Session:
        """A new session that begins with `messages` and knows `tools` (JSON schemas).

        template_options     variables for the chat template, such as `{"enable_thinking": False}`
        content_may_control  whether text that spells a control token becomes one: its author can then act as the system

        Nothing is computed yet: they are part of the first turn's delta. K/V is shared with sessions of the same
        `tenant`, never with others. Raises `BadMessage`, `BadValue`, `ContextOverflow`, `UnsupportedSchema`.
        """
        transcript = Transcript(options=Options(dict(template_options or {}), content_may_control))
        if messages or tools or not isinstance(messages, list | tuple):
            transcript = self.chat.new_transcript(messages, tools, transcript.options)
        return self.new_session(tenant, self.new_sequence(tenant, transcript.tools), transcript)

    @entry
    def export(self, session: Session | Iterable[int], tenant: str = "default") -> bytes:
        """A session with the K/V that pool and tiers have of it, as bytes that `adopt` takes. The session stays.

        Or a prefix, as token ids, with what `tenant` has of it: once it is adopted, other sessions share its K/V.
        Raises `SessionBusy`, `SessionClosed`, `BadValue`.
        """
        return persistence.export(self, session, tenant)

    @entry
    def load(self, path: str | Path, tenant: str = "default", *, convert: bool = False) -> Session:
        """A session from a file that `Session.save` wrote: `adopt` of its bytes. Raises OSError, too."""
        return self.adopt(Path(path).read_bytes(), tenant, convert=convert)

    @entry
    def adopt(self, data: bytes, tenant: str = "default", *, convert: bool = False) -> Session:
        """A session from bytes that `export` made, here, in another process, or on another device.

        K/V that the tenant's tree has is shared; K/V that another user has signed is computed again. `convert` rounds
        K/V of the same model in another precision, and warns: the tenant's other sessions share it. Raises
        `UnreadableSession`, `BadValue`, and `OutOfPages` if the pool is too small for its K/V.
        """
        return persistence.adopt(self, data, tenant, convert=convert)

    def new_sequence(self, tenant: str, tools: Tools = ()) -> Sequence:
        """A sequence without a log, that shares K/V with the tenant's: for `open`, `export` and `adopt`."""
        if not isinstance(tenant, str):
            raise BadValue(f"tenant must be a string, not {tenant!r}")
        sequence = Sequence(self.pool)
        if self.scheduler.speculation:
            corpus = self._corpora.of(tenant) if self.prefix_cache else Corpus()
            sequence.speculator = Speculator(self.scheduler.speculation, corpus)
        self.prepare_tools(sequence, tools)
        tree = self.cache.tree
        self.cache.enter(sequence, tree.root(tenant) if self.prefix_cache else tree.private_root())
        return sequence

    def prepare_tools(self, sequence: Sequence, tools: Tools) -> None:
        """Do once what a session's tools need: read the tokenizer for grammars, and let drafts know how calls begin."""
        if not tools:
            return
        with suppress(UnsupportedModel, UnsupportedSchema):  # raised again where a constraint is asked for
            self.grammars.prepare()
            if sequence.speculator:
                for tool in tools:
                    sequence.speculator.corpus.add_once(self.chat.encode(self.chat.dialect.opening(tool)))

    def new_session(self, tenant: str, sequence: Sequence, transcript: Transcript, seeds=((), 0)) -> Session:
        """A session around `sequence`: for `open`, `adopt` and `Session.fork`."""
        self._sessions.add(session := Session(self, self._sessions_made, tenant, sequence, transcript, seeds))
        self._sessions_made += 1
        return session

    @entry
    @takes_turn_options
    def submit(self, session: Session, messages=None, *, token_ids: Iterable[int] | None = None, **options) -> Request:
        """Begin a turn; `step` or `run` moves it on.

        messages   a string (the user's), a message, or a list of messages; `[]` after `Session.sync`
        token_ids  instead of messages: raw ids, appended as they are; none at all lets a cut-off answer go on
        options    replay, max_new_tokens, sampling, tools, tool_choice, response_format, logprobs, top_logprobs,
                   timeout_s: see `TurnOptions`

        Raises `BadMessage`, `BadValue`, `ContextOverflow`, `OutOfPages`, `SessionBusy`, `SessionClosed`,
        `EngineMisuse`, `UnsupportedSchema`, and `UnsupportedModel` where messages cannot be rendered or answers not
        constrained; the session is then as before.
        """
        started_s = time.perf_counter()
        if session.engine is not self:
            raise EngineMisuse("the session belongs to another engine: submit it there")
        # 1. Read what was passed before the session is looked at: an iterable may run any code, even a turn of it.
        token_ids = None if token_ids is None else token_ids_of("token_ids", token_ids, self.model.config.vocab_size)
        options, replay = read_options(self, options)
        session.require_idle()
        # 2. What the turn adds to the log, for which there must be room, and what its output must fit.
        tools = session.transcript.tools if options.tools is None else options.tools
        given, dropped = Admission(session, messages, token_ids, options).admit()
        require_embedded(given.ids, self.tokenizer, self.model.config.vocab_size)
        constraint = constraint_of(self, options, tools, given.thinking)
        # 3. From here on the turn is under way.
        request = Request(
            session.sequence,
            number=self._requests_made,
            log_before=given.keep,
            prompt_length=given.keep + len(given.ids),
            dropped=dropped,
            options=replace(options, sampling=options.sampling.for_fork(session.lineage)),
            replay=replay,
            tools=tools,
            session=session,
            transcript=given.transcript,
            thinking=given.thinking,
            constraint=constraint,
            started_s=started_s,
            deadline=self.clock() + options.timeout_s,
        )
        self._requests_made += 1
        self.core.begin(request, given)
        return request

    @entry
    def step(self) -> list[Request]:
        """One forward pass for all running turns; returns those that it ended: with a `turn`, or with an `error`.

        An exception in one turn's sampling, grammar or drafts ends that turn, and the others go on. If the forward pass
        fails, it is tried for each turn alone, and ends those that fail again. Ctrl-C waits for the end of a step. An
        exception that is no turn's fault (Ctrl-C pressed twice, for one) aborts all running turns, and is raised again.
        """
        self.guard.in_step = True
        try:
            return self.core.step()
        finally:
            self.guard.in_step = False

    def run(self) -> list[Request]:
        """Step until nothing runs; returns the turns that ended, in that order: with a `turn`, or with an `error`.

        After Ctrl-C turns are still running: `run` again, or abort them.
        """
        finished = []
        while self.scheduler.requests:
            finished += self.step()
        return finished

    @entry
    def abort(self, request: Request) -> None:
        """Give up a running turn: its session's log is as before it. Does nothing to a turn that is done."""
        self.core.give_up(request)

    @entry
    def flush(self) -> None:
        """Copy the prefix cache to the disk tier, if there is one. Without `flush`, it has only what was evicted."""
        self.cache.tiers.flush(self.cache.tree.nodes(self.cache.tree.tenants.values()))

    @entry
    def check(self) -> None:
        """Recount everything. Raises `BrokenInvariant` if any bookkeeping contradicts itself."""
        self.recount()

    def recount(self) -> None:
        """As `check`, without another `entry`."""
        check_engine(self.cache, list(self._sessions), self.guard.open, self.scheduler.running, self.scheduler.requests)

    def read_input(self, transcript: Transcript, log: list[int], messages, ids: list[int] | None) -> Continuation:
        """What the turn does to the log. Costs nothing per old token, unless messages are pending."""
        return read_input(lambda: self.chat, transcript, log, messages, ids)
