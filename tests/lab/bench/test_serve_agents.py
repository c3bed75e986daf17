"""The agent that two servers are compared on, against minstate's."""

import asyncio

import pytest

from minstate.engine import Engine
from minstate.errors import BadValue
from minstate.lab.bench.serve_agents import MODEL, QUESTIONS, REQUESTS, conversation, running
from minstate.lab.serving.local_server import local_server


def test_each_request_is_counted_as_the_server_counts_it():
    with local_server(Engine.from_pretrained, MODEL) as server:
        rows = asyncio.run(conversation(server.url, shop=0, questions=QUESTIONS[:1]))
        costs = [exchange.cost for exchange in server.exchanges]
    assert len(rows) == len(costs) == REQUESTS
    computed = [row["prompt"] - row["cached"] for row in rows]
    assert computed == [cost["prefilled"] for cost in costs]
    assert sum(computed) < 0.5 * sum(row["prompt"] for row in rows), "the server remembers"
    assert [row["generated"] for row in rows] == [
        exchange.answer["usage"]["completion_tokens"] for exchange in server.exchanges
    ]


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(BadValue, match="nothing here"), running("odd", ["sh", "-c", "echo nothing here; exit 1"], 1):
        pass
