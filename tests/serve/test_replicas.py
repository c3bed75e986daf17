"""Doors and replicas without Ray: which request goes where, and how a replica goes on from another one's turn."""

import asyncio
import json

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from minstate.lab.engines.small_engine import small_engine
from minstate.serve.api_errors import ApiError
from minstate.serve.ray.affinity import routing_key
from minstate.serve.ray.door import TRIES, Gone, answer
from minstate.serve.ray.replica import Forwarded, Replica, Settings
from minstate.serve.ray.turn_store import Record, TurnStore

GREEDY = {"model": "small", "temperature": 0, "ignore_eos": True}
KEY = "0123456789abcdef"


class LocalStore:
    """A `TurnStore` in this process."""

    def __init__(self, **settings):
        self.store = TurnStore(**settings)

    def __getattr__(self, name):
        async def call(*args):
            return getattr(self.store, name)(*args)

        return call


def user(text):
    return {"role": "user", "content": text}


def forwarded(method, path, body=None, key=KEY, api_key="k1"):
    headers = [
        (b"content-type", b"application/json"),
        (b"host", b"localhost"),
        (b"authorization", f"Bearer {api_key}".encode()),
    ]
    return Forwarded(method, path, b"", headers, json.dumps(body).encode() if body else b"", key)


async def ask(replica, *request, **options):
    """Status and JSON of a replica's answer."""
    start, *parts = [message async for message in replica.answer(forwarded(*request, **options))]
    assert (b"x-minstate-replica", replica.name.encode()) in start["headers"]
    return start["status"], json.loads(b"".join(part["body"] for part in parts))


async def respond(replica, text, previous=None, **options):
    body = {**GREEDY, "input": text, "previous_response_id": previous, "max_output_tokens": 6}
    return await ask(replica, "POST", "/v1/responses", body, **options)


def with_replicas(scenario, count=2):
    """Run a scenario with replicas that share a store."""

    async def main():
        settings = Settings(lambda: small_engine(num_pages=512), "small", {"k1": "one", "k2": "two"})
        store = LocalStore()
        replicas = [Replica(settings, store, f"replica {place}") for place in range(count)]
        try:
            return await scenario(*replicas, store)
        finally:
            for replica in replicas:
                if not replica.service.closing:
                    await replica.stop()

    return asyncio.run(main())


def texts(answer):
    return [part["text"] for item in answer["output"] for part in item["content"]]


def test_another_replica_goes_on_from_a_turn_with_the_same_tokens():
    async def scenario(first, second, alone, store):
        _, one = await respond(first, "one")
        _, kept = await respond(alone, "one")
        assert one["id"].startswith(f"resp_{KEY}") and len(one["id"]) == len("resp_") + 32
        status, two = await respond(second, "two", one["id"])
        _, wanted = await respond(alone, "two", kept["id"])
        assert status == 200 and texts(two) == texts(wanted)
        cost, unmoved = two["usage"]["minstate"], wanted["usage"]["minstate"]
        assert cost["context"] == unmoved["context"] == cost["recomputed"] and not unmoved["recomputed"]
        _, three = await respond(second, "three", two["id"])
        assert three["usage"]["minstate"]["prefilled"] == three["usage"]["minstate"]["delta"]
        logs = [list(r.conversations.stored.values())[-1].session._session.token_ids for r in (second, alone)]
        await respond(alone, "three", wanted["id"])
        logs[1] = list(alone.conversations.stored.values())[-1].session._session.token_ids
        assert logs[0] == logs[1]

    with_replicas(scenario, count=3)


def test_a_replica_that_ends_in_peace_hands_over_what_it_has_computed():
    async def scenario(first, second, store):
        _, one = await respond(first, "one")
        small = len(store.store.find("one", one["id"]))
        await first.stop()
        assert len(store.store.find("one", one["id"])) > 2 * small
        _, two = await respond(second, "two", one["id"])
        cost = two["usage"]["minstate"]
        assert cost["reused"] == cost["context"] > 0 and cost["prefilled"] == cost["delta"]
        await second.service.engine.call(lambda engine: engine.check())

    with_replicas(scenario)


def test_a_history_of_another_replica_goes_on_with_its_tokens_and_not_with_its_text():
    async def scenario(first, second, store):
        body = {**GREEDY, "messages": [user("hello")], "max_tokens": 8}
        _, one = await ask(first, "POST", "/v1/chat/completions", body)
        message = one["choices"][0]["message"]
        body["messages"] += [{"role": "assistant", "content": message["content"]}, user("more")]
        _, two = await ask(second, "POST", "/v1/chat/completions", body)
        cost = two["usage"]["minstate"]
        assert cost["context"] > 0 and cost["context"] == cost["recomputed"] and cost["drift"] is None
        _, wanted = await ask(first, "POST", "/v1/chat/completions", body)
        assert wanted["choices"] == two["choices"]

    with_replicas(scenario)


def test_no_tenant_finds_a_turn_of_another_and_a_deleted_one_is_gone_everywhere():
    async def scenario(first, second, store):
        _, one = await respond(first, "mine")
        path = f"/v1/responses/{one['id']}"
        assert (await respond(second, "go on", one["id"], api_key="k2"))[0] == 400
        assert (await ask(second, "GET", path, api_key="k2"))[0] == 404
        assert (await ask(second, "DELETE", path, api_key="k2"))[0] == 404
        assert (await ask(second, "GET", path))[1]["id"] == one["id"]
        assert (await ask(first, "DELETE", path))[1]["deleted"]
        assert store.store.find("one", one["id"]) is None
        assert (await respond(second, "x", "resp_nobody"))[0] == 400
        assert (await ask(second, "POST", "/v1/responses", {"previous_response_id": 3}))[0] == 400

    with_replicas(scenario)


def test_a_client_that_leaves_takes_its_turn_with_it():
    async def scenario(replica, store):
        body = {**GREEDY, "messages": [user("long")], "max_tokens": 500, "stream": True}
        messages = replica.answer(forwarded("POST", "/v1/chat/completions", body))
        assert (await anext(messages))["status"] == 200
        await anext(messages)
        await messages.aclose()
        assert replica.service.turns == 0 and not store.store._records
        await replica.service.engine.call(lambda engine: engine.check())
        assert not await replica.service.engine.call(lambda engine: engine.scheduler.requests)

    with_replicas(scenario, count=1)


def test_a_turn_of_another_model_is_computed_from_its_text():
    async def scenario(first, store):
        settings = Settings(lambda: small_engine(seed=1, num_pages=512), "small", {"k1": "one"})
        other = Replica(settings, store, "other")
        body = {**GREEDY, "messages": [user("hello")], "max_tokens": 4}
        _, one = await ask(first, "POST", "/v1/chat/completions", body)
        _, response = await respond(first, "hi")
        body["messages"] += [{"role": "assistant", "content": one["choices"][0]["message"]["content"]}, user("more")]
        status, two = await ask(other, "POST", "/v1/chat/completions", body)
        assert status == 200 and two["usage"]["minstate"]["context"] == 0
        assert (await respond(other, "more", response["id"]))[0] == 400
        await other.stop()

    with_replicas(scenario, count=1)


def test_the_store_drops_what_was_used_least_recently():
    store = TurnStore(most_bytes=100)
    for place in range(3):
        store.put(Record("one", f"r{place}", b"k%d" % place, bytes(40)))
        assert store.find("one", "r0") == bytes(40)
    assert store.find("one", "r1") is None and store.find_ending("one", [b"k1", b"k2"]) == bytes(40)
    assert store.find("two", "r0") is None and store.find_ending("two", [b"k0"]) is None
    store.put(Record("one", "r0", b"k9", bytes(10)))
    assert store.find_ending("one", [b"k0"]) is None and store._bytes == 50


def chat(*messages, **more):
    return json.dumps({"messages": list(messages), **more}).encode()


def test_turns_of_one_conversation_have_one_key():
    first = routing_key("/v1/chat/completions", {}, chat(user("a")))
    later = routing_key("/v1/chat/completions", {}, chat(user("a"), {"role": "assistant", "content": "b"}, user("c")))
    assert first == later and len(first) == 16
    assert first != routing_key("/v1/chat/completions", {}, chat(user("other")))
    assert first != routing_key("/v1/chat/completions", {}, chat(user("a"), tools=[{"type": "function"}]))
    named = routing_key("/v1/responses", {"x-session-id": "mine"}, b"")
    assert named == routing_key("/v1/chat/completions", {"x-session-id": "mine"}, chat(user("z")))
    previous = json.dumps({"previous_response_id": f"resp_{KEY}0000", "input": "x"}).encode()
    assert routing_key("/v1/responses", {}, previous) == routing_key(f"/v1/responses/resp_{KEY}99", {}, b"") == KEY
    for body in (b"", b"{", b"[]", b"[" * 99999):
        assert routing_key("/v1/models", {}, body) is None
    assert routing_key("/v1/responses", {}, b'{"previous_response_id": 3, "input": [1]}')


@pytest.mark.parametrize(("deaths", "status"), [(0, 200), (TRIES - 1, 200), (TRIES, 503)])
def test_the_door_asks_the_next_replica_if_one_dies_before_it_answers(deaths, status):
    asked = []

    async def forward(request):
        asked.append(request.key)
        if len(asked) <= deaths:
            raise Gone
        yield {"type": "http.response.start", "status": 200, "headers": [(b"x-one", b"1")]}
        yield {"type": "http.response.body", "body": b"a", "more_body": True}
        yield {"type": "http.response.body", "body": b"b"}

    found = at_the_door(forward, "POST", "/v1/responses", headers={"x-session-id": "s"})
    assert found.status_code == status and len(set(asked)) == 1
    assert status != 200 or (found.text, found.headers["x-one"]) == ("ab", "1")


def test_the_door_refuses_what_replicas_need_not_see():
    async def full(request):
        raise ApiError(429, "full", headers={"retry-after": "1"})
        yield {}

    assert at_the_door(full, "POST", "/v1/responses").headers["retry-after"] == "1"
    assert at_the_door(full, "POST", "/v1/responses", content=bytes(2000)).status_code == 413
    assert at_the_door(full, "GET", "/metrics").json()["error"]["message"].startswith("/metrics tells of one engine")


def at_the_door(forward, method, path, **request):
    async def endpoint(asked):
        return await answer(asked, forward, 1000)

    async def main():
        app = Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(method, path, **request)

    return asyncio.run(main())
