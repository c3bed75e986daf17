"""The agent that two servers are compared on, against minstate's."""

import asyncio

import pandas as pd
import pytest

from minstate.engine import Engine
from minstate.errors import BadValue
from minstate.lab.bench.serve_agents import MODEL, QUESTIONS, REQUESTS, by_server, conversation, crowd, running
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


def test_several_agents_are_clients_at_once():
    with local_server(Engine.from_pretrained, MODEL) as server:
        found = asyncio.run(crowd(server.url, [1, 2]))
    assert [len(rows) for rows in found] == [REQUESTS * len(QUESTIONS)] * 2


def test_requests_are_counted_by_clients_and_server():
    row = {"server": "a", "clients": 2, "all_s": 30.0, "prompt": 10, "cached": 4, "generated": 6, "seconds": 1.0}
    other = row | {"server": "b", "all_s": 60.0}
    table = by_server(pd.DataFrame([row, row | {"seconds": 3.0}, row, row, other]))
    assert dict(table.loc[2, "a"]) == pytest.approx(
        {"requests": 4, "prompt": 40, "computed": 24, "generated": 24, "requests a minute": 8, "tokens/s": 0.8,
         "p50 s a request": 1.0, "p95 s a request": 2.7}
    )  # fmt: skip
    assert table.loc[(2, "b"), "requests a minute"] == 1


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(BadValue, match="nothing here"), running("odd", ["sh", "-c", "echo nothing here; exit 1"], 1):
        pass
