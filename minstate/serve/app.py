"""The server as an ASGI application: routes, and what all of them have in common."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from minstate.engine import Engine
from minstate.serve import chat_completions, responses
from minstate.serve.api_errors import ApiError
from minstate.serve.http import (
    ClientLeft,
    EventStream,
    error_response,
    read_json,
    require_local,
    tenant_of,
    while_connected,
)
from minstate.serve.metrics import metrics_text
from minstate.serve.request_schemas import ChatRequest, ResponsesRequest
from minstate.serve.service import Service, Work

Handler = Callable[[Request, str], Awaitable[Response]]


class Server:
    """The routes of one service.

    keys   tenant by API key; without keys every client is the tenant "default"
    local  whether requests under foreign host names are refused
    """

    def __init__(self, service: Service, keys: Mapping[str, str] | None = None, *, local: bool = True):
        self.service, self.keys, self.local = service, dict(keys or {}), local
        routes = [
            ("/v1/chat/completions", "POST", self.chat),
            ("/v1/responses", "POST", self.respond),
            ("/v1/responses/{id}", "GET", self.response),
            ("/v1/responses/{id}", "DELETE", self.forget),
            ("/v1/responses/{id}/input_items", "GET", self.input_items),
            ("/v1/models", "GET", self.models),
            ("/v1/models/{id:path}", "GET", self.models),
            ("/metrics", "GET", self.metrics),
        ]
        made = [Route(path, self._guarded(handler), methods=[method]) for path, method, handler in routes]
        made.append(Route("/health", self.health))
        unknown = {404: self._unknown, 405: self._unknown}
        self.app = Starlette(routes=made, lifespan=self._lifespan, exception_handlers=unknown)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None]:
        await self.service.engine.call(lambda engine: engine.chat)  # loads the model, and says early if it can't chat
        try:
            yield
        finally:
            self.service.closing = True
            await self.service.engine.aclose()

    def _guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                if self.local:
                    require_local(request)
                return await handler(request, tenant_of(request, self.keys))
            except ClientLeft:
                return Response(status_code=499)
            except Exception as error:  # noqa: BLE001  the client is told
                return error_response(error)

        return endpoint

    async def _unknown(self, request: Request, error: Any) -> Response:
        return error_response(ApiError(error.status_code, f"Invalid URL ({request.method} {request.url.path})"))

    async def _body(self, request: Request) -> dict[str, Any]:
        limits = self.service.limits
        return await read_json(request, limits.body_bytes, limits.body_s)

    async def _tokenizer(self) -> Any:
        return await self.service.engine.call(lambda engine: engine.tokenizer)

    async def chat(self, request: Request, tenant: str) -> Response:
        """`POST /v1/chat/completions`."""
        body = ChatRequest.model_validate(await self._body(request))
        asked = chat_completions.asked_of(self.service, body, tenant, request.headers.get("x-session-id"))
        tokenizer = await self._tokenizer()
        async with AsyncExitStack() as stack:
            work = await stack.enter_async_context(Work(self.service, asked))
            await while_connected(request.receive, work.begin())
            if body.stream:

                async def events() -> AsyncIterator[dict[str, Any]]:
                    async for chunk in chat_completions.chunks(work, tokenizer, body):
                        yield chunk
                    work.keep()

                return EventStream(events(), stack.pop_all().aclose, work.headers())
            await while_connected(request.receive, work.finish())
            work.keep()
            answer = chat_completions.completion(work, tokenizer, bool(body.logprobs))
            return JSONResponse(answer, headers=work.headers())

    async def respond(self, request: Request, tenant: str) -> Response:
        """`POST /v1/responses`."""
        body = ResponsesRequest.model_validate(await self._body(request))
        asked, previous = responses.asked_of(self.service, body, tenant, request.headers.get("x-session-id"))
        tokenizer = await self._tokenizer()
        async with AsyncExitStack() as stack:
            work = await stack.enter_async_context(Work(self.service, asked))
            writer = responses.Writer(work, body, tokenizer)

            async def begin() -> None:
                await work.begin(await responses.branch(self.service, asked, previous))

            await while_connected(request.receive, begin())
            if body.stream:
                return EventStream(writer.events(), stack.pop_all().aclose, work.headers(), named=True)
            await while_connected(request.receive, work.finish())
            return JSONResponse(writer.finished(), headers=work.headers())

    def _found(self, request: Request, tenant: str):
        found = self.service.conversations.get(tenant, request.path_params["id"])
        if not found:
            raise ApiError(404, f"Response with id '{request.path_params['id']}' not found.")
        return found

    async def response(self, request: Request, tenant: str) -> Response:
        """`GET /v1/responses/{id}`."""
        return JSONResponse(self._found(request, tenant).body)

    async def forget(self, request: Request, tenant: str) -> Response:
        """`DELETE /v1/responses/{id}`."""
        found = self._found(request, tenant)
        self.service.conversations.forget(found)
        return JSONResponse({"id": found.id, "object": "response", "deleted": True})

    async def input_items(self, request: Request, tenant: str) -> Response:
        """`GET /v1/responses/{id}/input_items`: a page of them, newest first unless asked otherwise."""
        items, query = list(self._found(request, tenant).items), request.query_params
        if query.get("order", "desc") == "desc":
            items.reverse()
        limit, after = query.get("limit", "20"), query.get("after")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:
            raise ApiError(400, "limit is a number from 1 to 100", param="limit")
        ids = [item["id"] for item in items]
        if after and after not in ids:
            raise ApiError(404, f"Item with id '{after}' not found.", param="after")
        start = ids.index(after) + 1 if after else 0
        page, more = items[start : start + int(limit)], len(items) > start + int(limit)
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return JSONResponse({"object": "list", "data": page, "has_more": more, **ends})

    async def models(self, request: Request, tenant: str) -> Response:  # noqa: ARG002
        """`GET /v1/models`, and one of them."""
        service = self.service
        made = {"object": "model", "created": service.created, "owned_by": "minstate"}
        positions = await service.engine.call(lambda engine: engine.model.config.max_positions)
        model = {"id": service.model, **made, "max_model_len": positions}
        if "id" in request.path_params:
            service.require_model(request.path_params["id"])
            return JSONResponse(model)
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics(self, request: Request, tenant: str) -> Response:  # noqa: ARG002
        """`GET /metrics`."""
        return PlainTextResponse(await metrics_text(self.service), media_type="text/plain; version=0.0.4")

    async def health(self, _: Request) -> Response:
        """`GET /health`: 200 as long as the engine answers."""

        def alive(engine: Engine) -> None:
            engine.guard.tidy(engine)

        try:
            await self.service.engine.call(alive)
        except Exception as error:  # noqa: BLE001  whatever it is, the engine does not serve
            return error_response(ApiError(503, f"the engine does not answer: {type(error).__name__}"))
        return Response(status_code=503 if self.service.closing else 200)
