"""One replica: an engine, and the whole server on it, without a socket. The door hands it requests, one by one."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

from starlette.requests import Request

from minstate.engine import Engine
from minstate.sampling import Sampling
from minstate.serve.api_errors import ApiError
from minstate.serve.app import Server
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.http import tenant_of
from minstate.serve.ray.affinity import DIGITS
from minstate.serve.ray.shared_conversations import SharedConversations, Store
from minstate.serve.service import Limits, Service

KEY: ContextVar[str] = ContextVar("key")  # of the request that a task works on


class Forwarded(NamedTuple):
    """A request, as the door has read it."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    key: str  # by which it was routed


@dataclass(frozen=True)
class Settings:
    """What each replica is made of.

    make   makes its engine
    keys   tenant by API key
    local  whether requests under foreign host names are refused
    """

    make: Callable[[], Engine]
    model: str
    keys: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    defaults: Sampling | None = None
    local: bool = True


class Replica:
    """The server's routes, called by the door. In each answer `name` says which replica has given it."""

    def __init__(self, settings: Settings, store: Store, name: str):
        self.name, self.keys, limits = name, settings.keys, settings.limits
        self.service = Service(AsyncEngine(settings.make), settings.model, limits=limits, defaults=settings.defaults)
        engine = self.service.engine
        self.conversations = SharedConversations(engine, limits.stored_tokens, limits.stored_s, store)
        self.service.conversations = self.conversations
        self.service.new_id = lambda: KEY.get()[:DIGITS] + uuid4().hex[DIGITS:]
        self.app = Server(self.service, settings.keys, local=settings.local).app

    async def start(self) -> None:
        """Load the model."""
        await self.service.engine.call(lambda engine: engine.chat)

    async def stop(self) -> None:
        """Let the turns under way end, and hand over what may go on elsewhere."""
        self.service.closing = True
        await self.conversations.hand_over()
        await self.service.engine.aclose()

    async def answer(self, request: Forwarded) -> AsyncGenerator[dict[str, Any]]:
        """The answer as ASGI messages. If nobody takes them any more, the request's turn is given up."""
        KEY.set(request.key)
        scope = _scope(request)
        await self._fetch(request, scope)
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=16)
        unread, gone = [request.body], asyncio.Event()

        async def receive() -> dict[str, Any]:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-minstate-replica", self.name.encode())]
            if message["type"] != "http.response.start" and not message.get("more_body"):
                await self.conversations.publish()  # before the client may go on from this turn, anywhere
            await messages.put(dict(message))

        async def run() -> None:
            try:
                await self.app(scope, receive, send)
            finally:
                await messages.put(None)

        running = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await running
        finally:
            gone.set()
            while not running.done():  # it may wait for room in the queue
                with suppress(asyncio.QueueEmpty):
                    messages.get_nowait()
                await asyncio.wait([running], timeout=0.01)

    async def _fetch(self, request: Forwarded, scope: dict[str, Any]) -> None:
        """Take over the response that a request names, if another replica has made it. Refuses nothing."""
        id_ = next((part for part in request.path.split("/") if part.startswith("resp_")), None)
        if id_ is None and request.method == "POST" and b"previous_response_id" in request.body:
            with suppress(ValueError, RecursionError):
                asked = json.loads(request.body)
                id_ = asked.get("previous_response_id") if isinstance(asked, dict) else None
        if not isinstance(id_, str):
            return
        with suppress(ApiError):
            tenant = tenant_of(Request(scope), self.keys)
            await self.conversations.fetch(tenant, id_)
            if request.method == "DELETE":
                await self.conversations.drop(tenant, id_)


def _scope(request: Forwarded) -> dict[str, Any]:
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    scope |= {"method": request.method, "path": request.path, "raw_path": request.path.encode()}
    return scope | {"query_string": request.query, "headers": request.headers, "client": None, "server": None}
