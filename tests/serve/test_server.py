"""OpenAI's client, unchanged, against the server on a loopback port: both APIs, whole and streamed."""

import asyncio
import json
from contextlib import contextmanager

import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from minstate.lab.engines.small_engine import small_engine
from minstate.lab.serving.local_server import local_server
from minstate.serve.service import Limits

LOOK = {
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {"deep": {"type": "boolean"}},
        "required": ["deep"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": LOOK}
GREEDY = {"model": "small", "temperature": 0, "extra_body": {"ignore_eos": True}}


@contextmanager
def running(keys=None, **limits):
    """A server of a small model."""
    with local_server(lambda: small_engine(num_pages=512), "small", keys=keys, limits=Limits(**limits)) as server:
        yield server.url, server.service


@pytest.fixture(scope="module")
def address():
    with running() as (url, _):
        yield url


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as one:
        yield one


def ask(client, messages, **options):
    return client.chat.completions.create(messages=messages, **{"max_tokens": 6, **GREEDY, **options})


def user(text):
    return {"role": "user", "content": text}


def test_an_unchanged_client_that_sends_its_whole_history_pays_for_what_is_new(client):
    history = [{"role": "system", "content": "Be brief."}, user("first question")]
    first = ask(client, history)
    history += [first.choices[0].message.model_dump(exclude_none=True), user("second")]
    second = ask(client, history)
    cost = second.usage.model_extra["minstate"]
    assert cost["drift"] is None and cost["prefilled"] == cost["delta"] < 40
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - cost["delta"]


def test_an_edited_history_says_where_it_has_drifted(client):
    history = [user("a question of some length"), *[{"role": "assistant", "content": "x"}]]
    first = ask(client, [user("a question of some length")])
    history = [history[0], first.choices[0].message.model_dump(exclude_none=True), user("go on")]
    ask(client, history)
    history[1] = {"role": "assistant", "content": "something else"}
    raw = client.chat.completions.with_raw_response.create(messages=history, max_tokens=4, **GREEDY)
    assert "reason=edited; message=1" in raw.headers["x-minstate-drift"]
    assert raw.parse().usage.model_extra["minstate"]["drift"]["lost"] > 0


def test_a_stream_is_the_whole_answer(client):
    whole = ask(client, [user("stream this")], logprobs=True, top_logprobs=2, n=2, seed=5)
    options = {"logprobs": True, "top_logprobs": 2, "n": 2, "seed": 5, "stream_options": {"include_usage": True}}
    chunks = list(ask(client, [user("stream this")], stream=True, **options))
    for place, choice in enumerate(whole.choices):
        mine = [each.choices[0] for each in chunks if each.choices and each.choices[0].index == place]
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        logprobs = [entry for each in mine if each.logprobs for entry in each.logprobs.content]
        assert [each.token for each in logprobs] == [each.token for each in choice.logprobs.content]
        wanted = [each.logprob for each in choice.logprobs.content]
        assert [each.logprob for each in logprobs] == pytest.approx(wanted) and len(wanted) == 6
        assert mine[-1].finish_reason == choice.finish_reason == "length"
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_seed_decides_what_is_drawn_whichever_session_carries_it(client):
    drawn = [ask(client, [user("draw")], temperature=1, seed=7).choices[0].message.content for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]
    several = ask(client, [user("draw")], temperature=1, seed=7, n=3)
    assert several.choices[0].message.content == drawn[0]
    assert len({choice.message.content for choice in several.choices}) == 3


def test_a_call_and_its_result(client):
    history = [user("look")]
    options = {"tools": [TOOL], "tool_choice": "required", "extra_body": {}, "max_tokens": 80}
    reply = client.chat.completions.create(messages=history, model="small", temperature=0, **options)
    (call,) = reply.choices[0].message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls" and json.loads(call.function.arguments)["deep"] in (
        True,
        False,
    )
    history += [reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "seen"}]
    again = client.chat.completions.create(messages=history, model="small", temperature=0, **options)
    assert again.usage.model_extra["minstate"]["prefilled"] == again.usage.model_extra["minstate"]["delta"]
    chunks = client.chat.completions.create(
        messages=[user("look")], model="small", temperature=0, stream=True, **options
    )
    pieces = [piece.delta.tool_calls[0] for each in chunks for piece in each.choices if piece.delta.tool_calls]
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert pieces[0].function.name == "look"


def respond(client, text, **options):
    return client.responses.create(input=text, **{**GREEDY, "max_output_tokens": 6, **options})


def test_a_response_goes_on_from_an_earlier_one_and_costs_what_is_new(client):
    one = respond(client, "one", instructions="Be brief.")
    two = respond(client, "two", instructions="Be brief.", previous_response_id=one.id)
    other = respond(client, "other", instructions="Be brief.", previous_response_id=one.id)
    for later in (two, other):
        cost = later.usage.model_extra["minstate"]
        assert cost["prefilled"] == cost["delta"] - cost["shared"] and cost["drift"] is None and not cost["recomputed"]
        assert later.usage.input_tokens_details.cached_tokens == later.usage.input_tokens - cost["prefilled"]
    assert respond(client, "two", instructions="Be brief.", previous_response_id=one.id).output_text == two.output_text
    assert client.responses.retrieve(two.id).output_text == two.output_text
    assert client.responses.input_items.list(two.id).data[0].content[0].text == "two"
    client.responses.delete(one.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(one.id)
    with pytest.raises(openai.BadRequestError) as gone:
        respond(client, "two", previous_response_id=one.id)
    assert gone.value.code == "previous_response_not_found"
    assert respond(client, "three", instructions="Be brief.", previous_response_id=two.id).output


def test_every_event_of_a_streamed_response_is_as_the_client_types_it(client):
    options = {"instructions": "x", "tools": [{"type": "function", **LOOK, "strict": True}]}
    for more in ({}, {"tool_choice": "required", "extra_body": {}, "max_output_tokens": 80}):
        whole = respond(client, "events", **options, **more)
        events = list(respond(client, "events", stream=True, **options, **more))
        for event in events:
            TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump(by_alias=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1].response
        assert last.output_text == whole.output_text and last.status == whole.status
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == whole.output_text
        assert client.responses.retrieve(last.id).status == last.status
        assert [item.type for item in last.output] == [item.type for item in whole.output]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"extra_body": {"wibble": 1}}, openai.BadRequestError),
        ({"messages": [{"role": "nobody", "content": "x"}]}, openai.BadRequestError),
        ({"messages": [user("x" * 5000)]}, openai.BadRequestError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, openai.BadRequestError),
    ],
)
def test_what_is_wrong_is_refused_in_the_official_shape(client, change, error):
    with pytest.raises(error) as refused:
        client.chat.completions.create(**{**GREEDY, "max_tokens": 4, "messages": [user("x")], **change})
    assert refused.value.type == "invalid_request_error" and refused.value.message


def test_the_async_client_shares_the_engine():
    async def main(url):
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as one:
            wanted = [one.chat.completions.create(messages=[user(f"q {i}")], max_tokens=5, **GREEDY) for i in range(8)]
            answers = await asyncio.gather(*wanted)
            stream = await one.responses.create(input="hi", stream=True, max_output_tokens=5, **GREEDY)
            return len(answers), [event.type async for event in stream][-1]

    with running() as (url, service):
        assert asyncio.run(main(url)) == (8, "response.incomplete")
        assert service.totals["requests"] == 9 and service.turns == 0


def test_keys_are_tenants_and_a_full_server_says_so():
    with running({"k1": "one", "k2": "two"}, turns=2) as (url, _):
        one, two = (openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in ("k1", "k2"))
        made = respond(one, "mine")
        assert respond(two, "mine").usage.input_tokens_details.cached_tokens == 0
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(made.id)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="k3").models.list()
        with pytest.raises(openai.RateLimitError) as full:
            ask(one, [user("x")], n=3)
        assert full.value.response.headers["retry-after"] == "1"
        assert [model.id for model in one.models.list()] == ["small"]
