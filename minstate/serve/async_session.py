"""What a task sees of an `AsyncEngine`: sessions, and the streams of their turns."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from minstate.chat.drift import Drift
from minstate.errors import EngineClosed, SessionBusy, SessionClosed
from minstate.request import Request
from minstate.session import Mark, Session
from minstate.turn import StreamedToken, Turn


class Answer:
    """A turn between the two threads."""

    def __init__(self):
        # Of the event loop.
        self.tokens: deque[StreamedToken] = deque()  # that were not taken yet
        self.news = asyncio.Event()
        self.turn: Turn | None = None
        self.error: BaseException | None = None
        self.left = False  # by its reader, before its end
        # Of the owner thread.
        self.request: Request | None = None
        self.sent = 0  # tokens

    @property
    def unread(self) -> bool:
        """Whether something is still to be read, or to come."""
        return not self.left and bool(self.tokens or not (self.turn or self.error))

    def receive(self, tokens: list[StreamedToken], turn: Turn | None, error: BaseException | None) -> None:
        """Take in what is new. Nothing comes behind a turn or an error."""
        if not self.turn and not self.error:
            self.tokens += tokens
            self.turn, self.error = turn, error
        self.news.set()


class AsyncTokenStream:
    """The tokens of one turn, as they come; `turn` holds the whole answer once the last one is there."""

    def __init__(self, session: "AsyncSession", answer: Answer):
        self._session, self._answer = session, answer  # so the session stays open until nobody reads its turn
        self._engine = session._engine

    @property
    def turn(self) -> Turn | None:
        """The whole answer; None until the turn is done."""
        return self._answer.turn

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamedToken:
        answer = self._answer
        while not answer.tokens:
            if answer.error:
                raise answer.error
            if not answer.unread:
                raise StopAsyncIteration
            answer.news.clear()
            try:
                await answer.news.wait()
            except asyncio.CancelledError:
                self._engine.leave(answer)
                raise
        return answer.tokens.popleft()

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
        self._require_idle()
        answer = Answer()
        self._engine.submit(answer, self._session, messages, **options)
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
