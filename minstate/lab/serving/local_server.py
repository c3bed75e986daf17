"""A server inside this process, and a record of what clients sent to it and what each request cost.

    with local_server(Engine.from_pretrained, "SmolLM2-135M-Instruct") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none")
        ...
        server.exchanges[-1].cost["prefilled"]

The server listens on a free port of this machine, in a thread of its own. Clients use it over HTTP, as they would use
any other: what is recorded are the bytes that passed the socket.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minstate.engine import Engine
from minstate.serve import AsyncEngine
from minstate.serve.app import Server
from minstate.serve.service import Limits, Service


@dataclass(frozen=True)
class Exchange:
    """One request to one of the two APIs, and its answer."""

    path: str
    sent: dict[str, Any]  # the request's JSON
    sent_bytes: int
    answer: dict[str, Any]  # of a stream: its last object, which has the usage

    @property
    def cost(self) -> dict[str, Any]:
        """What the answer says of its turn's tokens: context, delta, reused, prefilled, and so on."""
        return self.answer["usage"]["minstate"]


@dataclass(frozen=True)
class LocalServer:
    """A server that runs."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop  # of the server's thread
    exchanges: list[Exchange] = field(default_factory=list)  # in the order in which their answers were complete

    def call(self, function: Callable[[Engine], Any]) -> Any:
        """What a function returns that the engine's own thread calls, between two steps."""
        return asyncio.run_coroutine_threadsafe(self.service.engine.call(function), self.loop).result()


def recorded(app: ASGIApp, exchanges: list[Exchange]) -> ASGIApp:
    """An application that answers as `app` does, and appends what was sent and answered to `exchanges`."""

    async def recording(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await app(scope, receive, send)
        sent, answered = bytearray(), bytearray()

        async def receive_and_keep() -> Message:
            message = await receive()
            sent.extend(message.get("body", b""))
            return message

        async def keep_and_send(message: Message) -> None:
            answered.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answer = last_object(answered.decode())
                if "usage" in answer:
                    exchanges.append(Exchange(scope["path"], json.loads(sent), len(sent), answer))
            await send(message)

        return await app(scope, receive_and_keep, keep_and_send)

    return recording


def last_object(text: str) -> dict[str, Any]:
    """The answer's JSON; of server-sent events the last object that has the usage. `{}` if there is none."""
    if text.startswith("{"):
        return json.loads(text)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    objects = [event.get("response", event) for event in events]
    return next((one for one in reversed(objects) if one.get("usage")), {})


@contextmanager
def local_server(
    make: Callable[[], Engine], model: str, *, keys: Mapping[str, str] | None = None, limits: Limits | None = None
) -> Iterator[LocalServer]:
    """Serve the engine that `make` makes, under the name `model`, until the `with` statement ends.

    keys, limits  as for `Server` and `Service`
    """
    service, loop = Service(AsyncEngine(make), model, limits=limits), asyncio.new_event_loop()
    exchanges: list[Exchange] = []
    app = recorded(Server(service, keys).app, exchanges)
    server = uvicorn.Server(uvicorn.Config(app, ws="none", log_level="error"))
    with closing(loop), socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        serving = server.serve([listening])
        thread = threading.Thread(target=lambda: loop.run_until_complete(serving), name="minstate server")
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
                if not thread.is_alive():
                    raise RuntimeError("the server did not start: see what it has logged above")
            yield LocalServer(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", service, loop, exchanges)
        finally:
            server.should_exit = True
            thread.join()
