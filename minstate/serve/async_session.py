"""What a task sees of an `AsyncEngine`: sessions, and the streams of their turns."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Self

from minstate.chat.drift import Drift
from minstate.engine import Engine
from minstate.errors import EngineClosed, SessionBusy, SessionClosed
from minstate.output import OutputProcessor
from minstate.request import Request
from minstate.serve.streaming import Delta, ReplyStream
from minstate.session import Mark, Session
from minstate.turn import StreamedToken, Turn


class Update(NamedTuple):
    """What one step of the engine has added to a reply."""

    deltas: list[Delta]  # none where the new tokens complete nothing that is certain
    tokens: list[StreamedToken]
    logprobs: list[float]  # of these tokens, if they were asked for
    top_logprobs: list[tuple[tuple[int, float], ...]]


class Answer:
    """A turn between the two threads. Its items are tokens, or updates if `in_updates`."""

    def __init__(self, *, in_updates: bool = False):
        self.in_updates = in_updates
        # Of the event loop.
        self.items: deque[Any] = deque()  # that were not taken yet
        self.news = asyncio.Event()
        self.begun = False
        self.turn: Turn | None = None
        self.error: BaseException | None = None
        self.left = False  # by its reader, before its end
        # Of the owner thread.
        self.request: Request | None = None
        self.sent = 0  # tokens
        self.reply: ReplyStream | None = None

    @property
    def unread(self) -> bool:
        """Whether something is still to be read, or to come."""
        return not self.left and bool(self.items or not (self.turn or self.error))

    def begin(self) -> None:
        """The turn was admitted."""
        self.begun = True
        self.news.set()

    def receive(self, items: list, turn: Turn | None, error: BaseException | None) -> None:
        """Take in what is new. Nothing comes behind a turn or an error."""
        if not self.turn and not self.error:
            self.items += items
            self.turn, self.error = turn, error
        self.news.set()

    def take_new(self, output: OutputProcessor) -> list:
        """In the owner thread: the items that the last step has added."""
        request, sent = self.request, self.sent
        assert request  # it was submitted
        tokens, self.sent = request.tokens[sent:], len(request.tokens)
        if not self.in_updates or not tokens:
            return tokens
        self.reply = self.reply or ReplyStream(output, request)
        return [Update(self.reply.new(), tokens, request.logprobs[sent:], request.top_logprobs[sent:])]


class AsyncTokenStream:
    """The tokens or updates of one turn, as they come; `turn` holds the whole answer once the last one is there."""

    def __init__(self, session: "AsyncSession", answer: Answer):
        self._session, self._answer = session, answer  # so the session stays open until nobody reads its turn
        self._engine = session._engine

    @property
    def turn(self) -> Turn | None:
        """The whole answer; None until the turn is done."""
        return self._answer.turn

    @property
    def read(self) -> bool:
        """Whether the turn is done, and all of it was taken."""
        return self.turn is not None and not self._answer.items

    def __aiter__(self) -> Self:
        return self

    async def begun(self) -> None:
        """Wait until the turn is under way. Raises what `Engine.submit` raises."""
        while not self._answer.begun and self._answer.unread:
            await self._wait()
        if self._answer.error and not self._answer.begun:
            raise self._answer.error

    async def __anext__(self) -> Any:
        answer = self._answer
        while not answer.items:
            if answer.error:
                raise answer.error
            if not answer.unread:
                raise StopAsyncIteration
            await self._wait()
        return answer.items.popleft()

    async def _wait(self) -> None:
        self._answer.news.clear()
        try:
            await self._answer.news.wait()
        except asyncio.CancelledError:
            self._engine.leave(self._answer)
            raise

    async def aclose(self) -> None:
        """Take the turn back, unless its last token was taken. What is asked of the session next comes after that."""
        self._engine.leave(self._answer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._engine.leave(self._answer)


class AsyncSession:
    """One conversation, for one task at a time. Made by `AsyncEngine.open` and `fork`; as `Session`, but awaited.

    It is busy until a turn's last token was taken, or its stream was left: other calls raise `SessionBusy` till then.
    Use it in `async with`, or `close` it; a session that becomes garbage is closed too, by the owner thread.
    """

    def __init__(self, engine, session: Session):
        self._engine, self._session = engine, session
        self._answer: Answer | None = None

    async def call(self, function: Callable[[Session], Any]) -> Any:
        """What a function returns, or raises, that the owner thread calls with the session.

        `await session.call(lambda one: one.messages)` reads the conversation.
        """
        self._require_idle()
        return await self._engine.call(lambda _: function(self._session))

    async def send(self, messages=None, **options) -> Turn:
        """As `Session.send`. If the task that waits is cancelled, the session is as before the turn."""
        stream = self.stream(messages, **options)
        async for _ in stream:
            pass
        assert stream.turn
        return stream.turn

    def stream(self, messages=None, **options) -> AsyncTokenStream:
        """As `Session.stream`, to be read with `async for`, which raises what `Session.send` raises.

        A stream that is left before its last token (`aclose`, `async with`, dropped, or read by a task that is
        cancelled) takes its turn back: the session is as before it.
        """
        return self._begin(Answer(), lambda engine: engine.submit(self._session, messages, **options))

    def updates(self, begin: Callable[[Engine, Session], Request]) -> AsyncTokenStream:
        """As `stream`, an `Update` for each step. The owner thread calls `begin`, which submits the turn."""
        return self._begin(Answer(in_updates=True), lambda engine: begin(engine, self._session))

    def _begin(self, answer: Answer, submit: Callable[[Engine], Request]) -> AsyncTokenStream:
        self._require_idle()
        self._engine.submit(answer, submit)
        self._answer = answer
        return AsyncTokenStream(self, answer)

    async def mark(self) -> Mark:
        """As `Session.mark`."""
        return await self.call(Session.mark)

    async def rollback(self, mark: Mark) -> None:
        """As `Session.rollback`."""
        await self.call(lambda session: session.rollback(mark))

    async def fork(self) -> "AsyncSession":
        """As `Session.fork`."""
        return await self.call(lambda session: AsyncSession(self._engine, session.fork()))

    async def sync(self, messages, tools=None) -> Drift:
        """As `Session.sync`."""
        return await self.call(lambda session: session.sync(messages, tools))

    async def drift(self, messages, tools=None) -> Drift:
        """As `Session.drift`."""
        return await self.call(lambda session: session.drift(messages, tools))

    async def close(self) -> None:
        """As `Session.close`. A task that waits for the session's turn gets `SessionClosed`."""
        if self._answer and self._answer.unread:
            self._engine.leave(self._answer)
            self._answer.receive([], None, SessionClosed("the session was closed during the turn"))
        await self._engine.call(lambda _: self._session.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_) -> None:
        with suppress(EngineClosed):
            await self.close()

    def __del__(self) -> None:
        self._engine.forget(self._session)

    def _require_idle(self) -> None:
        if self._answer and self._answer.unread:
            raise SessionBusy("this session is in the middle of a turn: read it to its end, or close its stream")
