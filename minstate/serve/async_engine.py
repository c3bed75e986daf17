"""An engine for asyncio: one thread owns it, and the tasks of one event loop use it.

    tasks of the event loop                       the owner thread
    engine.open(), session.send(), ...  ──jobs──▶ takes in all jobs; steps once while there are turns, else sleeps
    wakes up: a result, or new tokens   ◀──calls─ hands results and tokens to the loop after each step

An `Engine` belongs to the thread that made it, so the owner thread makes it, and nothing else touches it. Jobs run in
the order in which they were asked for. All turns that are under way share each forward pass, as with `Engine.submit`.

Nothing holds the engine back if a task reads its stream slowly: tokens wait in the stream, at most `max_new_tokens` of
them. If a turn's last token was not taken when its stream is left, the turn is taken back: the session is as before it.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self

from minstate.engine import Engine
from minstate.errors import EngineClosed, EngineMisuse, SessionClosed
from minstate.request import Request
from minstate.serve.async_session import Answer, AsyncSession
from minstate.session import Session

Job = Callable[[Engine], None]


class AsyncEngine:
    """Sessions and turns for the tasks of one event loop. Use it in `async with`, or call `aclose` at the end.

    make  makes the engine, in the thread that then owns it

    The first call starts the thread. If `make`, or a step through no turn's fault, raises an exception, all tasks that
    wait raise it too. Calls after that, and after `aclose`, raise `EngineClosed`; calls from another event loop raise
    `EngineMisuse`.
    """

    def __init__(self, make: Callable[[], Engine]):
        self._make = make
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._closed: Exception | None = None
        # Of the event loop alone.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._waiting: set[asyncio.Future] = set()  # for results
        self._reading: set[Answer] = set()  # whose turn is not over
        self._stopped = asyncio.Event()
        # Of the owner thread alone.
        self._turns: set[Answer] = set()  # under way
        self._draining = False

    @classmethod
    def from_pretrained(cls, *args, **settings) -> Self:
        """Load a model in the owner thread. Takes what `Engine.from_pretrained` takes; calls raise what it raises."""
        return cls(partial(Engine.from_pretrained, *args, **settings))

    async def open(self, *args, **options) -> AsyncSession:
        """A new session. Takes what `Engine.open` takes, and raises what it raises."""
        return await self.call(lambda engine: AsyncSession(self, engine.open(*args, **options)))

    async def call(self, function: Callable[[Engine], Any]) -> Any:
        """What a function returns, or raises, that the owner thread calls with the engine, between two steps.

        A call that is cancelled before the owner thread comes to it does nothing; one that is cancelled later is made.
        """
        future = self._require_open().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)

        def job(engine: Engine) -> None:
            if not future.cancelled():
                try:
                    self._post(_settle, future, function(engine), None)
                except Exception as error:  # noqa: BLE001  it is raised in the task that asked
                    self._post(_settle, future, None, error)

        self._jobs.put(job)
        result, error = await future
        if error:
            raise error
        return result

    async def aclose(self, *, drain: bool = True) -> None:
        """Take no more calls, and end the owner thread: after the last turn, or at once if not `drain`.

        Turns that are then given up raise `EngineClosed` where they are awaited.
        """
        self._closed = self._closed or EngineClosed("this engine is closed: make another one")
        if self._thread is None:
            return
        if not drain:
            for answer in list(self._reading):
                self._end(answer, [], None, EngineClosed("the engine was closed during the turn"))
        self._jobs.put(partial(self._finish, drain))
        await self._stopped.wait()
        self._thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind, *_) -> None:
        await self.aclose(drain=kind is None)

    # In the event loop.

    def _require_open(self) -> asyncio.AbstractEventLoop:
        """The running loop. Starts the owner thread at the first call. Raises `EngineClosed`, `EngineMisuse`."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise EngineClosed(str(self._closed)) from self._closed.__cause__
        if self._loop is None:
            self._loop, self._thread = loop, threading.Thread(target=self._own, name="minstate engine", daemon=True)
            self._thread.start()
        elif loop is not self._loop:
            raise EngineMisuse("an AsyncEngine belongs to the event loop that used it first: make another one")
        return loop

    def submit(self, answer: Answer, begin: Callable[[Engine], Request]) -> None:
        """Begin a turn, whose tokens the answer receives. For `AsyncSession.stream`."""
        self._require_open()
        self._reading.add(answer)

        def job(engine: Engine) -> None:
            try:
                answer.request = begin(engine)
                self._turns.add(answer)
                self._post(answer.begin)
            except Exception as error:  # noqa: BLE001  it is raised where the turn is awaited
                self._post(self._end, answer, [], None, error)

        self._jobs.put(job)

    def leave(self, answer: Answer) -> None:
        """Nobody reads this answer any more. Called by destructors too: in any thread, at any moment."""
        if answer.unread:
            answer.left = True
            self._reading.discard(answer)
            self._jobs.put(partial(self._give_up, answer))

    def forget(self, session: Session) -> None:
        """Nobody uses this session any more: the owner thread closes it. Called by destructors, as `leave` is."""
        self._jobs.put(lambda _: session.close())

    def _end(self, answer: Answer, *news) -> None:
        self._reading.discard(answer)
        answer.receive(*news)

    def _stop(self, error: BaseException | None) -> None:
        """The owner thread ends: nobody waits for it any longer."""
        if error:
            self._closed = EngineClosed(f"the engine has failed: {error!r}: make another one")
            self._closed.__cause__ = error
        for future in list(self._waiting):
            _settle(future, None, error or self._closed)
        for answer in list(self._reading):
            self._end(answer, [], None, error or self._closed)
        self._stopped.set()

    # In the owner thread.

    def _own(self) -> None:
        failure = None
        try:
            engine = self._make()
            while not self._draining or engine.scheduler.requests:
                self._take_jobs(engine)
                if engine.scheduler.requests:
                    engine.step()
                self._deliver(engine)
            engine.flush()  # the next engine finds the prefix cache on the disk, if there is a disk tier
        except BaseException as error:  # noqa: BLE001  it is raised in all tasks that wait
            failure = error
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            self._post(self._stop, failure)

    def _take_jobs(self, engine: Engine) -> None:
        """Do all that was asked for meanwhile. Sleep until there is something to do, unless turns are under way."""
        with suppress(queue.Empty):
            while not self._draining or not self._jobs.empty():
                self._jobs.get(block=not (self._turns or engine.scheduler.requests))(engine)

    def _deliver(self, engine: Engine) -> None:
        """Hand what is new to the event loop, and the ends of turns."""
        for answer in list(self._turns):
            request = answer.request
            assert request  # it was submitted
            try:
                new = answer.take_new(engine.core.output)
            except Exception as error:  # noqa: BLE001  one reply that cannot be read is no reason to stop the others
                request.abort()
                request.error, new = request.error or error, []
            if request.done:
                self._turns.discard(answer)
                aborted = None if request.turn else SessionClosed("the turn was aborted")
                self._post(self._end, answer, new, request.turn, request.error or aborted)
            elif new:
                self._post(answer.receive, new, None, None)

    def _give_up(self, answer: Answer, engine: Engine) -> None:
        self._turns.discard(answer)
        request = answer.request
        if request and request.turn and not request.session.closed:
            request.session.take_back()
        elif request:
            engine.abort(request)

    def _finish(self, drain: bool, engine: Engine) -> None:
        self._draining = True
        if not drain:
            for request in engine.scheduler.requests:
                engine.abort(request)

    def _post(self, function: Callable, *args) -> None:
        assert self._loop
        self._loop.call_soon_threadsafe(function, *args)


def _settle(future: asyncio.Future, result: Any, error: BaseException | None) -> None:
    if not future.done():
        future.set_result((result, error))
