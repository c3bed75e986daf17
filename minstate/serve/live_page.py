"""The page at `/`: what the server does, live. It is three files that a browser loads as they are.

The page asks `/activity` for what it shows, once a second. It needs no key itself: without one, a server that has keys
answers with totals alone. A browser is told to load nothing from anywhere else, and to run no script but the page's
own; what clients and models wrote goes into the page as text.
"""

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minstate.serve.http import error_response, require_local, tenant_of
from minstate.serve.service import Service

FOLDER = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def page_routes(service: Service, keys: Mapping[str, str], *, local: bool) -> list[Route]:
    """The page's files, and `/activity`. `keys` and `local` as for `Server`."""

    async def activity(request: Request) -> Response:
        asked = keys and "authorization" not in request.headers
        tenant = None if asked else tenant_of(request, keys)
        seen = await service.activity.snapshot(service.engine, tenant)
        seen |= {"model": service.model, "refused": service.refused}
        return JSONResponse({**seen, "done": service.totals["requests"]}, headers=HEADERS)

    async def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((FOLDER / name).read_bytes(), headers=HEADERS, media_type=kind)

    def guarded(handler):
        async def endpoint(request: Request) -> Response:
            try:
                if local:
                    require_local(request)
                return await handler(request)
            except Exception as error:  # noqa: BLE001  the browser is told
                return error_response(error)

        return endpoint

    return [Route("/activity", guarded(activity)), *(Route(path, guarded(file)) for path in FILES)]
