"""Requests that nobody should send, many at once, and deletions in between: an answer or an official error, no 500."""

import asyncio
import copy
import json
import warnings
from random import Random

import httpx
import openai
import pytest
from test_server import GREEDY, LOOK, TOOL, respond, running, user

from minstate.engine import Engine

ARGUMENTS = json.dumps({"deep": True})
FORMAT = {"type": "text"}
CALLED = {"id": "call1", "type": "function", "function": {"name": "look", "arguments": ARGUMENTS}}
COMMON = {
    "model": "small",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "user": "u",
    "metadata": {"a": "b"},
    "seed": 1,
}
COMMON |= {"tool_choice": "auto", "parallel_tool_calls": False, "chat_template_kwargs": {"a": 1}, "top_logprobs": 1}
CHAT = COMMON | {
    "messages": [
        {"role": "system", "content": "s"},
        user("hi"),
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call1", "content": [{"type": "text", "text": "seen"}]},
    ],
    "tools": [TOOL], "response_format": FORMAT, "stop": ["x"], "logit_bias": {"5": 1}, "n": 1, "logprobs": True,
    "max_tokens": 2, "stream_options": {"include_usage": True}, "presence_penalty": 0.5,
}  # fmt: skip
RESPONSE = COMMON | {
    "input": [
        user([{"type": "input_text", "text": "hi"}]),
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "ho"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": ARGUMENTS},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        {"type": "reasoning", "id": "r", "summary": []},
        user("so"),
    ],
    "tools": [{"type": "function", **LOOK}], "text": {"format": FORMAT, "verbosity": "low"}, "max_output_tokens": 2,
    "instructions": "i", "previous_response_id": None, "include": ["message.output_text.logprobs"],
    "reasoning": {"effort": "low"}, "truncation": "disabled",
}  # fmt: skip
SHAPES = [{"type": ["object"], "properties": []}, {"$ref": "#"}, {"type": "nothing"}, {"enum": []}, True]
ODD = [
    *(None, True, 0, -1, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x", "\x00", "é🙂\u202e"),
    *("\ud800", "<|im_end|>", "x" * 3000, [], [None], [[]], [1], ["a"], {}, {"a": None}, {"type": []}, {"name": {}}),
    *([{}], [{"type": {}}], [{"role": "user"}], [user({})], [{"type": "function"}], [{"function": None}], [user(None)]),
    *({"type": "item_reference", "id": []}, [{"type": "item_reference", "id": "msg_1"}], {"type": "json_schema"}),
    *({"type": "allowed_tools", "tools": one} for one in (None, [[]], [{"function": 5}], [{"name": {}}])),
    *({"format": {"type": "json_schema", "name": "x", "schema": shape}} for shape in SHAPES),
    *({"type": "json_schema", "json_schema": {"name": "x", "schema": shape}} for shape in SHAPES),
]


def places(value, above=()):
    yield above
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*above, key))


def changed(body, place, value):
    if not place:
        return value
    body = copy.deepcopy(body)
    at = body
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return body


@pytest.mark.parametrize(("path", "body"), [("/chat/completions", CHAT), ("/responses", RESPONSE)])
def test_no_value_at_any_place_of_a_body_is_the_servers_fault(path, body):
    draw, seen = Random(1), []
    cases = [(place, value) for place in places(body) for value in ODD]
    json_ = {"content-type": "application/json"}
    with warnings.catch_warnings(), running() as (url, service), httpx.Client(timeout=60) as client:
        warnings.simplefilter("ignore")  # of schemas that no grammar can hold a reply to
        assert client.post(url + path, json=body).status_code == 200
        for place, value in draw.sample(cases, 250):
            stream = [("stream",), draw.random() < 0.3] if place else [(), value]
            answer = client.post(
                url + path, content=json.dumps(changed(changed(body, place, value), *stream)), headers=json_
            )
            seen.append(answer.status_code)
            assert answer.status_code in (200, 400, 404), (place, value, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
            assert "server_error" not in answer.text, (place, value, answer.text)
        check = asyncio.run_coroutine_threadsafe(service.engine.call(Engine.check), service.engine._loop)
        check.result(20)
        assert seen.count(200) > 25 and seen.count(400) > 100 and service.turns == 0


def test_many_continue_one_response_at_once_while_it_is_deleted():
    async def main(url):
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            options = {**GREEDY, "max_output_tokens": 8}
            first = await client.responses.create(input="one", **options)
            asked = [
                client.responses.create(input=f"two {i % 3}", previous_response_id=first.id, **options)
                for i in range(9)
            ]
            *answers, _ = await asyncio.gather(*asked, client.responses.delete(first.id), return_exceptions=True)
            made = [one for one in answers if isinstance(one, openai.types.responses.Response)]
            gone = [one for one in answers if isinstance(one, openai.BadRequestError)]
            assert len(made) + len(gone) == 9 and all(one.code == "previous_response_not_found" for one in gone)
            again = await client.responses.create(input="three", previous_response_id=made[0].id, **options)
            return made, again

    with running() as (url, service):
        made, again = asyncio.run(main(url))
        assert len({one.id for one in made}) == len(made) > 0
        for one in made:
            cost = one.usage.model_extra["minstate"]
            assert cost["recomputed"] == 0 and cost["prefilled"] == cost["delta"] - cost["shared"]
        assert again.usage.model_extra["minstate"]["drift"] is None and service.turns == 0


def test_a_streamed_response_can_be_deleted_only_once_it_is_there(monkeypatch):
    with running() as (url, service), openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stream = respond(client, "long", stream=True, max_output_tokens=30)
        created = next(iter(stream)).response
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(created.id)
        assert list(stream)[-1].response.id == created.id
        client.responses.delete(created.id)
        assert not service.conversations.stored and service.conversations.tokens == 0


def test_what_one_tenant_keeps_or_asks_for_takes_nothing_from_another():
    with running({"k1": "one", "k2": "two"}, turns=1, stored_tokens=3000) as (url, service):
        one, two = (openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in ("k1", "k2"))
        kept = respond(two, "mine")
        made = [respond(one, f"number {i}") for i in range(20)]
        mine = [each for each in service.conversations.stored.values() if each.tenant == "one"]
        assert 0 < len(mine) < 20 and sum(each.weight for each in mine) <= 3000
        with pytest.raises(openai.NotFoundError):
            one.responses.retrieve(made[0].id)
        assert one.responses.retrieve(made[-1].id) and two.responses.retrieve(kept.id)
        stream = respond(one, "slow", stream=True, max_output_tokens=400)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError):
            respond(one, "more")
        assert respond(two, "still served").output
        stream.close()


def test_what_is_sent_beside_the_prompt_counts_as_kept():
    with running(stored_tokens=30_000) as (url, service), openai.OpenAI(base_url=url, api_key="none") as client:
        for number in range(4):
            client.responses.create(input=[{**user(f"{number}"), "note": "x" * 50_000}], **GREEDY, max_output_tokens=2)
        assert len(service.conversations.stored) < 4 and service.conversations.tokens <= 30_000
