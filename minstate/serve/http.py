"""Between HTTP and the two APIs: keys, limits of bodies, clients that leave, and streams of server-sent events."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from minstate.serve.api_errors import ApiError, api_error

STALL_S = 60.0  # that a client may leave what was sent to it unread
LOCAL = ("localhost", "127.0.0.1", "[::1]", "testserver")


class ClientLeft(Exception):
    """The client has closed its connection."""


def tenant_of(request: Request, keys: Mapping[str, str]) -> str:
    """The tenant whose key the request carries. Raises `ApiError`.

    All keys are compared, each in constant time, so the time tells nothing of where a wrong key differs.
    """
    if not keys:
        return "default"
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    given = given if scheme.lower() == "bearer" else ""
    found = [name for key, name in keys.items() if hmac.compare_digest(key.encode(), given.strip().encode())]
    if not found:
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
    return found[0]


def require_local(request: Request) -> None:
    """Raises `ApiError` for a request that a foreign web page has made under a name of its own for this machine."""
    host = request.headers.get("host", "").rpartition(":")
    if (host[0] or host[2]) not in LOCAL and request.headers.get("host") not in LOCAL:
        raise ApiError(403, "this server answers under names of this machine only")


async def read_json(request: Request, most_bytes: int, most_s: float) -> dict[str, Any]:
    """The body as an object. Raises `ApiError`, and does so before a body that is too large was read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a foreign web page may send other types without asking
        raise ApiError(415, "the body must be application/json")
    too_large = ApiError(413, f"the body has more than {most_bytes:,} bytes", headers={"x-should-retry": "false"})
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most_bytes:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(most_s):
            async for part in request.stream():
                data += part
                if len(data) > most_bytes:
                    raise too_large
        body = json.loads(data)
        # Python reads NaN and 1e999, which JSON cannot hold, and half a surrogate pair, which no tokenizer takes.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except TimeoutError as error:
        raise ApiError(408, "the body took too long to arrive", headers={"x-should-retry": "false"}) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


async def while_connected(receive: Receive, work: Awaitable[Any]) -> Any:
    """What the work returns or raises; it is cancelled if the client leaves, and `ClientLeft` is raised."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    worker, watcher = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return await worker
        raise ClientLeft
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


class EventStream(Response):
    """Server-sent events as long as the client reads them. `finish` is awaited at the end, however it comes.

    A client that stays connected and reads nothing for `STALL_S` seconds counts as one that has left: it would keep its
    turn, one of a limited number, for ever.
    """

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any]],
        finish: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
        *,
        named: bool = False,
    ):
        super().__init__(None, media_type="text/event-stream", headers={"cache-control": "no-cache", **headers})
        del self.headers["content-length"]
        self._events, self._finish, self._named = events, finish, named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """As ASGI asks for it."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await while_connected(receive, self._send_all(send))
        except ClientLeft:
            pass
        finally:
            await self._finish()

    async def _send_all(self, send: Send) -> None:
        async def put(text: str, more: bool = True) -> None:
            try:
                async with asyncio.timeout(STALL_S):
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
            except TimeoutError:
                raise ClientLeft from None

        try:
            async for event in self._events:
                name = f"event: {event['type']}\n" if self._named else ""
                await put(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n")
        except ClientLeft:
            raise
        except Exception as error:  # noqa: BLE001  the status has been sent: the stream says what went wrong
            body = api_error(error).body()
            body = {"type": "error", "sequence_number": 10**6, **body["error"]} if self._named else body
            await put(f"{'event: error' if self._named else ''}\ndata: {json.dumps(body)}\n\n".lstrip("\n"))
        await put("" if self._named else "data: [DONE]\n\n", more=False)


def error_response(error: Exception) -> Response:
    """The answer that says what went wrong."""
    told = api_error(error)
    return JSONResponse(told.body(), told.status, told.headers)
