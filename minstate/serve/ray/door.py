"""The door: reads a request, finds the replica that its conversation is on, and passes the answer on.

It holds no state, so there may be as many doors as requests need. The routing itself is Ray Serve's: its
`ConsistentHashRouter` maps a key to a replica, and to the next ones on the ring where that one is full or gone.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from minstate.serve.api_errors import ApiError
from minstate.serve.http import error_response
from minstate.serve.ray.affinity import DIGITS, routing_key
from minstate.serve.ray.replica import Forwarded

Forward = Callable[[Forwarded], AsyncGenerator[dict[str, Any]]]
TRIES = 3
OF_ONE_ENGINE = ("/", "/page.css", "/page.js", "/activity", "/metrics")


class Gone(Exception):
    """The replica has died during the request."""


async def answer(request: Request, forward: Forward, most_bytes: int) -> Response:
    """The answer of the replica that a request's conversation is on.

    forward  yields the answer as ASGI messages. Raises `ApiError` if all replicas are full, and `Gone`
    """
    try:
        if request.url.path in OF_ONE_ENGINE:
            raise ApiError(404, f"{request.url.path} tells of one engine, and there are several here")
        body = await _body(request, most_bytes)
        key = routing_key(request.url.path, request.headers, body) or uuid4().hex[:DIGITS]
        scope = request.scope
        asked = Forwarded(request.method, scope["path"], scope["query_string"], scope["headers"], body, key)
        return await _forwarded(asked, forward)
    except ApiError as error:
        return error_response(error)


async def _forwarded(asked: Forwarded, forward: Forward) -> Response:
    """The answer as it comes. If the replica dies before it answers, the next one is asked, as if it were the first.

    Nothing of such a turn is kept anywhere, because a replica answers only when the turn's end is in the store.
    """
    for tried in range(TRIES):
        messages = forward(asked)
        try:
            start = await anext(messages)
        except Gone as error:
            if tried < TRIES - 1:
                continue
            raise ApiError(503, "no replica answers: try again", headers={"retry-after": "1"}) from error
        response = StreamingResponse(_bodies(messages), status_code=start["status"])
        response.raw_headers = [(bytes(name), bytes(value)) for name, value in start["headers"]]
        return response
    raise AssertionError("there is a last try")


async def _bodies(messages: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """The parts of a body. If the replica dies between two of them, the connection is cut off."""
    async with aclosing(messages):
        async for message in messages:
            yield message.get("body", b"")


async def _body(request: Request, most_bytes: int) -> bytes:
    """A request's body. Raises `ApiError` before a body that is too large was read."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most_bytes:
            raise ApiError(413, f"the body has more than {most_bytes:,} bytes", headers={"x-should-retry": "false"})
    return bytes(data)
