"""What a request may ask for beside messages, what the server says of itself, and requests that it has to refuse."""

import asyncio
import json

import httpx
import jsonschema
import openai
import pytest
from test_server import GREEDY, ask, respond, running, user

from minstate.serve import http
from minstate.serve.http import EventStream

SHAPE = {
    "type": "object",
    "properties": {"deep": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["deep", "kind"],
    "additionalProperties": False,
}
PLAIN = {"model": "small", "temperature": 0, "max_tokens": 80}


@pytest.fixture(scope="module")
def served():
    with running() as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served[0], api_key="none", max_retries=0) as one:
        yield one


def metrics(url):
    lines = httpx.get(url.removesuffix("/v1") + "/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def text(answer):
    return answer.choices[0].message.content


def test_a_reply_fits_the_schema_that_either_api_is_given(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SHAPE, "strict": True}}
    chat = client.chat.completions.create(messages=[user("fit")], response_format=wanted, **PLAIN)
    jsonschema.validate(json.loads(text(chat)), SHAPE)
    shape = {"format": {"type": "json_schema", "name": "shape", "schema": SHAPE, "strict": True}}
    response = client.responses.create(input="fit", text=shape, model="small", temperature=0, max_output_tokens=80)
    assert json.loads(response.output_text) == json.loads(text(chat))
    with pytest.raises(openai.BadRequestError):
        bad = {"type": "json_schema", "json_schema": {"name": "x"}}
        client.chat.completions.create(messages=[user("fit")], response_format=bad, **PLAIN)


def test_a_reply_ends_before_a_stop_string(client):
    options = {"max_tokens": 12, "logit_bias": {str(token): 50 for token in range(60, 90)}}  # readable characters
    free = text(ask(client, [user("stop")], **options))
    stop = free[4:6]
    wanted = free[: free.index(stop)]
    cut = ask(client, [user("stop")], stop=[stop], **options)
    assert text(cut) == wanted and cut.choices[0].finish_reason == "stop"
    chunks = list(ask(client, [user("stop")], stop=stop, stream=True, **options))
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == wanted
    # The session's log holds the stop string; the client's history does not, and is what counts.
    history = [user("stop"), {"role": "assistant", "content": wanted}, user("go on")]
    with running() as (url, _), openai.OpenAI(base_url=url, api_key="none") as other:
        assert text(ask(client, history, **options)) == text(ask(other, history, **options))


def test_a_biased_token_is_always_or_never_drawn(client):
    options = {"logprobs": True, "max_tokens": 5}
    first = ask(client, [user("bias")], **options).choices[0].logprobs.content[0].token
    entry = {"temperature": 1, "seed": 3}
    always = ask(client, [user("bias")], logit_bias={"70": 100}, **options, **entry)
    drawn = {each.token for each in always.choices[0].logprobs.content}
    assert len(drawn) == 1
    (token,) = drawn
    assert first != token or first in text(always)
    never = ask(client, [user("bias")], logit_bias={"70": -100}, max_tokens=40, **entry)
    assert token not in text(never)
    with pytest.raises(openai.BadRequestError):
        ask(client, [user("bias")], logit_bias={"x": 1})
    with pytest.raises(openai.BadRequestError):
        ask(client, [user("bias")], logit_bias={"999999": 1})


def test_a_response_that_is_not_stored_is_found_by_no_id(client):
    made = respond(client, "forget me", store=False)
    assert made.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError):
        respond(client, "more", previous_response_id=made.id)
    items = [user("forget me"), *[item.model_dump(exclude_none=True) for item in made.output], user("more")]
    cost = respond(client, items, store=False).usage.model_extra["minstate"]
    assert cost["drift"] is None and cost["prefilled"] == cost["delta"]


def test_a_cache_key_that_conversations_share_mixes_nothing_up(client):
    for question in ("first topic", "second topic"):
        cost = ask(client, [user(question)], prompt_cache_key="one app").usage.model_extra["minstate"]
        assert cost["drift"] is None


def test_the_metrics_are_the_sums_of_what_the_answers_say(served, client):
    before = metrics(served[0])
    answers = [ask(client, [user(f"count {i}")]) for i in range(3)]
    grown = {name: value - before[name] for name, value in metrics(served[0]).items()}
    assert grown["minstate:turns_total"] == 3
    assert grown["vllm:generation_tokens_total"] == sum(one.usage.completion_tokens for one in answers)
    assert grown["vllm:prompt_tokens_total"] == sum(one.usage.prompt_tokens for one in answers)
    cached = sum(one.usage.prompt_tokens_details.cached_tokens for one in answers)
    assert grown["vllm:prefix_cache_hits_total"] == cached


def test_health_needs_no_key_and_metrics_do():
    with running({"k": "one"}) as (url, _):
        root = url.removesuffix("/v1")
        assert httpx.get(root + "/health").status_code == 200
        assert httpx.get(root + "/metrics").status_code == 401
        assert httpx.get(root + "/metrics", headers={"authorization": "Bearer k"}).status_code == 200


def test_a_turn_that_takes_too_long_is_given_up_and_its_session_is_as_before():
    with running(turn_s=1e-9) as (url, service), openai.OpenAI(base_url=url, api_key="none", max_retries=0) as one:
        with pytest.raises(openai.APIStatusError) as late:
            ask(one, [user("x")], max_tokens=500)
        assert late.value.status_code == 408 and late.value.code == "timeout"
        assert service.turns == 0 and not service.conversations.stored


@pytest.mark.parametrize(
    ("path", "content", "headers", "status"),
    [
        ("/nothing", "{}", {}, 404),
        ("/chat/completions", "[]", {}, 400),
        ("/chat/completions", '{"model": "small", "messages": [{"role": "user", "content": "\\ud800"}]}', {}, 400),
        ("/chat/completions", "{}", {"content-type": "text/plain"}, 415),
        ("/chat/completions", "{}", {"host": "attacker.example"}, 403),
    ],
)
def test_a_request_that_cannot_be_read_gets_an_error_in_json(served, path, content, headers, status):
    headers = {"content-type": "application/json", **headers}
    answer = httpx.post(served[0] + path, content=content, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_client_that_reads_nothing_counts_as_one_that_has_left(monkeypatch):
    monkeypatch.setattr(http, "STALL_S", 0.01)
    ended = []

    async def events():
        yield {"type": "x"}

    async def finish():
        ended.append(True)

    async def never(*_):
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await never()

    asyncio.run(asyncio.wait_for(EventStream(events(), finish, {})({}, never, send), 10))
    assert ended == [True]


def test_the_client_is_told_which_model_there_is(client):
    (model,) = client.models.list()
    assert client.models.retrieve(model.id).id == GREEDY["model"]
