"""The server beside the types of the `openai` package: fields of requests, whole answers, and the client's helpers."""

import json

import httpx
import openai
import pytest
from openai.types import responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params
from pydantic import BaseModel, TypeAdapter
from test_server import GREEDY, LOOK, TOOL, ask, respond, running, user

from minstate.serve.request_schemas import ChatRequest, ResponsesRequest


@pytest.fixture(scope="module")
def url():
    with running() as (one, _):
        yield one


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as one:
        yield one


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        (completion_create_params.CompletionCreateParamsBase, ChatRequest),
        (responses.response_create_params.ResponseCreateParamsBase, ResponsesRequest),
    ],
)
def test_every_field_of_the_official_schema_is_known(official, ours):
    assert official.__annotations__.keys() <= ours.model_fields.keys()


class Shape(BaseModel):
    deep: bool


CALL = {"tools": [TOOL], "tool_choice": "required"}


@pytest.mark.parametrize("more", [{}, {"logprobs": True, "top_logprobs": 2, "n": 2}, CALL], ids=["text", "n", "call"])
def test_answers_of_the_chat_api_have_all_that_their_type_requires(url, more):
    body = {"model": "small", "temperature": 0, "max_tokens": 60, "messages": [user("type me")], **more}
    answer = httpx.post(url + "/chat/completions", json=body, timeout=60).json()
    ChatCompletion.model_validate(answer, strict=True)
    lines = httpx.post(url + "/chat/completions", json={**body, "stream": True}, timeout=60).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    for line in lines[:-2]:
        ChatCompletionChunk.model_validate_json(line.removeprefix("data: "), strict=True)


@pytest.mark.parametrize("call", [False, True], ids=["text", "call"])
def test_answers_of_the_responses_api_have_all_that_their_type_requires(url, call):
    body = {"model": "small", "temperature": 0, "max_output_tokens": 60, "input": "type me"}
    body |= {"tools": [{"type": "function", **LOOK}], "tool_choice": "required"} if call else {}
    answer = httpx.post(url + "/responses", json=body, timeout=60).json()
    responses.Response.model_validate(answer)
    kinds, previous = TypeAdapter(responses.ResponseStreamEvent), -1
    for event in httpx.post(url + "/responses", json={**body, "stream": True}, timeout=60).text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        read = kinds.validate_json(data.removeprefix("data: "))
        assert name == f"event: {read.type}" and read.sequence_number == previous + 1
        previous = read.sequence_number


def test_the_clients_helpers_for_streams_arrive_at_the_whole_answer(client):
    options = {"tools": [{**TOOL, "function": {**LOOK, "strict": True}}], "tool_choice": "required", "max_tokens": 120}
    with client.chat.completions.stream(model="small", temperature=0, messages=[user("help")], **options) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert message.tool_calls[0].function.parsed_arguments.keys() == {"deep"}
    shape = {"model": "small", "temperature": 0, "text_format": Shape, "max_output_tokens": 120}
    with client.responses.stream(input="help", **shape) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_parsed == client.responses.parse(input="help", **shape).output_parsed
    parsed = client.chat.completions.parse(
        model="small", temperature=0, messages=[user("help")], response_format=Shape, max_tokens=120
    )
    assert isinstance(parsed.choices[0].message.parsed, Shape)


def test_presence_counts_once_and_frequency_each_time(client):
    bias = {"70": 60, "71": 60}  # above all others, and nearer to each other than a penalty is wide

    def drawn(**penalty):
        answer = ask(client, [user("again")], logit_bias=bias, logprobs=True, **penalty)
        tokens = [entry.token for entry in answer.choices[0].logprobs.content]
        names = dict.fromkeys(tokens)
        return [list(names).index(token) for token in tokens]

    assert drawn() == [0, 0, 0, 0, 0, 0]
    assert drawn(presence_penalty=2) == [0, 1, 0, 0, 0, 0]  # both are fined alike from then on
    assert drawn(frequency_penalty=2) == [0, 1, 0, 1, 0, 1]
    assert drawn(presence_penalty=-2) == drawn(frequency_penalty=-2) == [0, 0, 0, 0, 0, 0]


def test_a_page_of_input_items_is_as_long_as_asked(client):
    made = respond(client, [user("one"), user("two"), user("three")])
    first = client.responses.input_items.list(made.id, order="asc", limit=2)
    assert [item.content[0].text for item in first] == ["one", "two", "three"]  # the client turns the pages
    assert first.has_more and len(first.data) == 2
    assert json.loads(client.responses.input_items.list(made.id, limit=1).model_dump_json())["has_more"]
    assert GREEDY["model"] == client.responses.retrieve(made.id).model
