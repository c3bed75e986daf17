"""What a request asks of the engine, and the replies as they come: both APIs are spellings of this."""

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from minstate.engine import Engine
from minstate.errors import ContextOverflow, OutOfPages
from minstate.request import Request
from minstate.sampling import Sampling
from minstate.serve.api_errors import ApiError
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.async_session import AsyncSession, AsyncTokenStream, Update
from minstate.serve.conversations import Branch, Conversations, Stored
from minstate.serve.history import Message, extended, keys_of
from minstate.session import Session
from minstate.turn import Turn


@dataclass(frozen=True)
class Limits:
    """What one server takes on from each tenant. What one tenant asks for takes none of it from another."""

    turns: int = 32  # at once, running or waiting; further requests are told to come back
    body_bytes: int = 8 * 2**20
    body_s: float = 30.0  # for a body to arrive
    turn_s: float = 600.0
    new_tokens: int = 4096  # of a reply for which the client sets no limit
    stored_tokens: int = 4_000_000  # of turns that are remembered, texts included
    stored_s: float = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Asked:
    """One request, whichever API it came through."""

    tenant: str
    messages: list[Message]
    tools: Sequence[Mapping[str, Any]]
    sampling: Sampling
    turn: Mapping[str, Any]  # further options of the turn
    most_tokens: int | None
    n: int = 1
    template: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None  # by which the client calls the conversation


@dataclass(eq=False)
class Reply:
    """One answer as it grows."""

    session: AsyncSession
    stream: AsyncTokenStream
    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)  # id, name, arguments
    tokens: list[tuple] = field(default_factory=list)  # (token, logprob, top logprobs), where they were asked for

    @property
    def turn(self) -> Turn:
        """The whole turn, once it is over."""
        assert self.stream.turn
        return self.stream.turn

    @property
    def finish_reason(self) -> str:
        """Why it is over, in the words of the chat API."""
        return "tool_calls" if self.calls and self.turn.finish_reason == "stop" else self.turn.finish_reason

    def add(self, update: Update) -> None:
        """Take in what is new."""
        for delta in update.deltas:
            self.content += delta.content
            self.reasoning += delta.reasoning
            if delta.call is not None:
                if delta.call == len(self.calls):
                    self.calls.append({"id": delta.id, "name": delta.name, "arguments": ""})
                self.calls[delta.call]["arguments"] += delta.arguments
        self.tokens += logprobs_of(update)

    def message(self) -> Message:
        """As the client would send it back."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = [as_tool_call(call) for call in self.calls]
        return message


def as_tool_call(call: Mapping[str, str]) -> dict[str, Any]:
    """A call as the chat API writes it."""
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def logprobs_of(update: Update) -> list[tuple]:
    """The update's tokens with their logprobs; none where they were not asked for."""
    tops = update.top_logprobs or [()] * len(update.logprobs)
    ids = [token.token_id for token in update.tokens]
    return list(zip(ids, update.logprobs, tops, strict=True)) if update.logprobs else []


class Work:
    """The turns of one request. Use it in `async with`: on the way out, sessions that are not kept are closed."""

    def __init__(self, service: "Service", asked: Asked):
        self.service, self.asked, self.id = service, asked, uuid4().hex
        self.branch: Branch | None = None
        self.replies: list[Reply] = []

    async def begin(self, branch: Branch | None = None) -> None:
        """Submit all turns. Raises what `Engine.submit` raises."""
        service, asked = self.service, self.asked
        wanted = asked.messages, asked.tools, asked.template, asked.name
        self.branch = branch or await service.conversations.branch(asked.tenant, *wanted)
        sessions = [self.branch.session]
        sessions += [await service.conversations.fork(sessions[0]) for _ in range(asked.n - 1)]
        for place, session in enumerate(sessions):
            stream = session.updates(self._submit(self.branch.messages, place))
            self.replies.append(Reply(session, stream))
        for reply in self.replies:
            await reply.stream.begun()

    def _submit(self, messages: list[Message], place: int):
        asked, limits = self.asked, self.service.limits
        sampling = asked.sampling.for_fork((place,) if place else ())
        options = {**asked.turn, "sampling": sampling, "timeout_s": limits.turn_s}

        def submit(engine: Engine, session: Session) -> Request:
            most = asked.most_tokens or limits.new_tokens
            while True:
                try:
                    return engine.submit(session, messages, max_new_tokens=most, **options)
                except (ContextOverflow, OutOfPages) as error:
                    lacks = error.needed - error.limit if isinstance(error, ContextOverflow) else 0
                    if isinstance(error, OutOfPages):
                        lacks = (error.needed - error.available) * engine.pool.page_size
                    if asked.most_tokens or lacks < 1 or most <= lacks:
                        raise
                    most -= lacks

        return submit

    async def updates(self) -> AsyncIterator[tuple[int, Reply, Update]]:
        """All updates of the replies, one reply after the other; all turns share the engine's steps meanwhile."""
        for place, reply in enumerate(self.replies):
            async for update in reply.stream:
                reply.add(update)
                yield place, reply, update

    async def finish(self) -> None:
        """Wait for all replies."""
        async for _ in self.updates():
            pass

    def keep(
        self,
        response: str | None = None,
        *,
        body: dict[str, Any] | None = None,
        items: Sequence[dict[str, Any]] = (),
        instructions: str | None = None,
    ) -> None:
        """Remember where the replies end. What the Responses API knows of its one reply is kept with it."""
        asked, service = self.asked, self.service
        keys = keys_of(asked.tenant, asked.tools, asked.template, asked.messages)
        for place, reply in enumerate(self.replies):
            stats, message = reply.turn.stats, reply.message()
            cut = [stop for stop in asked.sampling.stop if isinstance(stop, str)]
            stored = Stored(
                tenant=asked.tenant, session=reply.session, keys=extended(keys, [message]),
                messages=[*asked.messages, message], tools=asked.tools, options=asked.template,
                tokens=stats.context + stats.delta + stats.generated,
                id=response or f"{self.id}-{place}", body=body, items=list(items), instructions=instructions,
            )  # fmt: skip
            # A stop string is in the log, and not in what the client knows of the reply.
            service.conversations.keep(
                stored, name=asked.name, extends=not (cut and reply.turn.finish_reason == "stop")
            )
            service.count(reply.turn)

    def drift(self) -> dict[str, Any] | None:
        """Where and why the history has left what the model saw, if it has."""
        drift = self.branch.drift if self.branch else None
        if not drift or drift.extends:
            return None
        return {"reason": drift.reason, "message": drift.message, "agree": drift.at, "lost": drift.dropped}

    def headers(self) -> dict[str, str]:
        """What the answer's headers say of drift."""
        drift = self.drift()
        return {"x-minstate-drift": "; ".join(f"{key}={value}" for key, value in drift.items())} if drift else {}

    def cost(self) -> dict[str, Any]:
        """What the first reply's prompt has cost, in tokens."""
        stats = self.replies[0].turn.stats
        names = ("context", "delta", "reused", "shared", "recomputed", "prefilled", "forced", "drafted", "accepted")
        return {**{name: getattr(stats, name) for name in names}, "drift": self.drift()}

    async def __aenter__(self) -> "Work":
        limits, service = self.service.limits, self.service
        if service.closing:
            raise ApiError(
                503, "the server is shutting down", code="shutting_down", headers={"x-should-retry": "false"}
            )
        mine = service.under_way[self.asked.tenant]
        if mine + self.asked.n > limits.turns:
            service.refused += 1
            headers = {"retry-after": "1"}
            raise ApiError(429, f"{mine} turns are under way: try again", code="overloaded", headers=headers)
        service.under_way[self.asked.tenant] += self.asked.n
        return self

    async def __aexit__(self, *_) -> None:
        self.service.under_way[self.asked.tenant] -= self.asked.n
        for reply in self.replies:
            await reply.stream.aclose()
        self.replies.clear()


class Service:
    """One engine, and what the server remembers and counts."""

    def __init__(self, engine: AsyncEngine, model: str, *, limits: Limits | None = None, defaults=None):
        self.engine, self.model, self.limits = engine, model, limits or Limits()
        self.defaults: Sampling = defaults or Sampling(temperature=1.0)
        self.conversations = Conversations(engine, self.limits.stored_tokens, self.limits.stored_s)
        self.under_way: Counter[str] = Counter()  # turns, by tenant
        self.refused = 0
        self.closing = False
        self.created = int(time.time())
        self.totals = dict.fromkeys(("prompt", "cached", "prefilled", "generated", "requests", "preempted"), 0)

    @property
    def turns(self) -> int:
        """How many are under way."""
        return self.under_way.total()

    def count(self, turn: Turn) -> None:
        """Add a turn to the totals."""
        stats = turn.stats
        new = (stats.context + stats.delta, stats.reused, stats.prefilled, stats.generated, 1, stats.preempted)
        self.totals = {name: old + more for (name, old), more in zip(self.totals.items(), new, strict=True)}

    def require_model(self, name: str) -> None:
        """Raises `ApiError` unless this is the model that is served."""
        if name != self.model:
            raise ApiError(404, f"The model '{name}' does not exist.", param="model", code="model_not_found")

    @staticmethod
    def seed(asked: int | None) -> int:
        """The seed of a request: any number, where none is asked for."""
        return secrets.randbits(63) if asked is None else asked % 2**64


def restrict(tools: Sequence[Mapping[str, Any]], choice: Any) -> tuple[list[Mapping] | None, Any]:
    """The tools that a reply may call if they are fewer than all, and the choice. Reads the choice `allowed_tools`.

    Raises `ApiError` if that names no tools.
    """
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return None, choice
    allowed = choice.get("allowed_tools", choice)
    wanted = allowed.get("tools") if isinstance(allowed, Mapping) else None
    names = [_name(one) for one in wanted] if isinstance(wanted, list) else []
    if not names or None in names:
        raise ApiError(400, "allowed_tools lists tools by their names", param="tool_choice")
    return [tool for tool in tools if _name(tool) in names], allowed.get("mode", "auto")


def _name(tool: Any) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
