"""The server's process: it listens, says when it is ready, and ends by a signal once the turns under way are over."""

from collections.abc import Mapping
from socket import socket

import uvicorn

from minstate.engine import Engine
from minstate.serve.app import Server
from minstate.serve.service import Service

DRAIN_S = 60  # after which connections that still wait are cut off


class Announced(uvicorn.Server):
    """A server that prints a line as soon as it answers requests: its address, the model and the pool."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Load the model, then listen. uvicorn calls it."""
        await super().startup(sockets=sockets)
        if not self.started:
            return

        def facts(engine: Engine) -> tuple[int, int]:
            return engine.pool.allocator.num_pages, engine.pool.page_size

        pages, size = await self._service.engine.call(facts)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        print(f"ready: {where} serves {self._service.model} with {pages:,} pages of {size} tokens", flush=True)


def listen(service: Service, keys: Mapping[str, str], *, host: str, port: int, local: bool) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status: 3 if the server could not begin.

    keys, local  as for `Server`
    """
    app = Server(service, keys, local=local).app
    config = uvicorn.Config(
        app, host=host, port=port, ws="none", log_level="warning", timeout_graceful_shutdown=DRAIN_S
    )
    server = Announced(config, service)
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn raises it once more after it has drained
        return 0
    return 0 if server.started else 3
