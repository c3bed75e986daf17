"""A server inside the process: it records what clients sent and what it cost, and changes nothing of the answers."""

import json

import httpx
import pytest

from minstate import BadValue
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.serving.local_server import last_object, local_server

BODY = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def test_every_answer_that_cost_something_is_recorded_with_its_request():
    with local_server(small_engine, "small") as server:
        url = server.url + "/chat/completions"
        whole = httpx.post(url, json=BODY).json()
        streamed = httpx.post(url, json=BODY | STREAM)
        assert httpx.post(url, json=BODY | {"model": "other"}).status_code == 404  # it is not in the record
        assert httpx.get(server.url + "/models").status_code == 200
        first, second = server.exchanges
        assert server.call(lambda engine: len(engine.scheduler.requests)) == 0
    assert (
        first.sent == BODY
        and first.answer == whole
        and first.sent_bytes >= len(json.dumps(BODY, separators=(",", ":")))
    )
    assert second.sent == BODY | STREAM and second.cost == last_object(streamed.text)["usage"]["minstate"]
    assert first.cost["prefilled"] == first.cost["delta"] and second.cost["prefilled"] == 1


def test_a_server_that_cannot_begin_says_so():
    def broken():
        raise BadValue("no such model")

    with pytest.raises(RuntimeError, match="did not start"), local_server(broken, "small"):
        pass
