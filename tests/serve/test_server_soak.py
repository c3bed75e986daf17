"""A thousand requests, some of which are nonsense or whose clients leave: no turn is stuck, and no page is lost."""

import asyncio
from random import Random

import httpx
from test_server import running, user

REQUESTS = 1000


async def one(client, draw):
    """One request of a random kind, and its status; 0 if its client has left."""
    body = {"model": "small", "messages": [user("q" * draw.randint(1, 40))], "max_tokens": draw.randint(1, 12)}
    body |= {"ignore_eos": True, "stream": draw.random() < 0.5}
    kind, json_ = draw.random(), {"content-type": "application/json"}
    if kind < 0.1:
        return (await client.post("/chat/completions", content=b'{"model": ', headers=json_)).status_code
    if kind < 0.15:
        return (await client.post("/chat/completions", content=b" " * 30_000, headers=json_)).status_code
    try:
        wait = draw.uniform(0.001, 0.05) if kind < 0.4 else None
        return (await asyncio.wait_for(client.post("/chat/completions", json=body), wait)).status_code
    except TimeoutError:
        return 0


def test_a_thousand_requests_leave_nothing_behind():
    async def main(url):
        draw, seen = Random(1), []
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for _ in range(REQUESTS // 20):
                seen += await asyncio.gather(*(one(client, draw) for _ in range(20)))
            for _ in range(200):
                if (await client.get("/metrics")).status_code and "num_requests_running 0" in (
                    await client.get(url.removesuffix("/v1") + "/metrics")
                ).text:
                    break
                await asyncio.sleep(0.02)
        return seen

    with running(body_bytes=20_000, turns=16) as (url, service):
        seen = asyncio.run(main(url))
        assert {0, 200, 400, 413} <= set(seen) <= {0, 200, 400, 413, 429} and len(seen) == REQUESTS
        lost = []

        def look(engine):
            engine.check()
            for stored in list(service.conversations.stored.values()):
                stored.session._session.close()
            engine.cache.make_room(engine.pool.allocator.num_pages)
            engine.check()
            lost.append(engine.pool.allocator.num_pages - engine.pool.allocator.num_free)
            assert not engine.scheduler.requests

        async def inspect():
            await service.engine.call(look)

        asyncio.run_coroutine_threadsafe(inspect(), service.engine._loop).result(20)
        assert lost == [0] and service.turns == 0
