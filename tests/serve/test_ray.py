"""Two replicas by Ray Serve, one of which is killed: turns stay with their session, and every conversation goes on.

Runs where the extra `ray` is installed: `make test-serve`.
"""

import os
import signal
import socket
from functools import partial

import openai
import pytest
from test_server import GREEDY, running

from minstate.lab.engines.small_engine import small_engine

os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes longer than Ray expects
ray = pytest.importorskip("ray", reason="needs the extra `ray`")
from ray import serve  # noqa: E402  it is there

from minstate.serve.ray.deployment import application  # noqa: E402
from minstate.serve.ray.replica import Settings  # noqa: E402

SESSIONS = 6


@pytest.fixture(scope="module")
def cluster():
    """Where two replicas listen, and the handle by which Ray calls them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(partial(small_engine, num_pages=512), "small")
        serve.run(application(settings, replicas=2, cpus=0.5), name="minstate", route_prefix="/")
        yield f"http://127.0.0.1:{port}/v1", serve.get_deployment_handle("Replica", "minstate")
    finally:
        serve.shutdown()
        ray.shutdown()


def turn(client, session, number, previous):
    """One turn by the Responses API: the replica's name, the id, the text, and what it has cost."""
    options = {"previous_response_id": previous, "max_output_tokens": 6, "extra_headers": session, **GREEDY}
    raw = client.responses.with_raw_response.create(input=f"turn {number}", **options)
    response = raw.parse()
    cost = response.usage.model_extra["minstate"]
    return raw.headers.get("x-minstate-replica"), response.id, response.output_text, cost


def test_turns_stay_with_their_session_and_outlive_their_replica(cluster):
    url, handle = cluster
    names = [{"x-session-id": f"session {place}"} if place % 2 else {} for place in range(SESSIONS)]
    with running() as (alone, _), openai.OpenAI(base_url=alone, api_key="none", max_retries=0) as oracle:
        wanted, ends = {}, dict.fromkeys(range(SESSIONS))
        for number in range(4):
            for place in range(SESSIONS):
                _, ends[place], wanted[place, number], _ = turn(oracle, {}, number + 10 * place, ends[place])
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        ends, homes = dict.fromkeys(range(SESSIONS)), {}

        def next_turns(number):
            costs = {}
            for place in range(SESSIONS):
                home, ends[place], text, costs[place] = turn(client, names[place], number + 10 * place, ends[place])
                assert text == wanted[place, number]
                homes.setdefault(place, []).append(home)
            return costs

        next_turns(0)
        assert all(cost["prefilled"] == cost["delta"] for cost in next_turns(1).values())
        assert all(len(set(replicas)) == 1 for replicas in homes.values()) and len(set(map(str, homes.values()))) == 2
        lost = homes[0][0]
        pids = {}
        while lost not in pids:
            pids.update([handle.whoami.remote().result()])
        os.kill(pids[lost], signal.SIGKILL)
        for number in (2, 3):  # what replaces the lost replica takes over some sessions as well
            for place, cost in next_turns(number).items():
                before, home = homes[place][-2:]
                assert home != lost and bool(cost["recomputed"]) == (home != before)
        assert client.responses.retrieve(ends[0]).output_text == wanted[0, 3]


def test_a_stream_passes_the_door_and_wrong_requests_are_refused(cluster):
    url, _ = cluster
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        history = [{"role": "user", "content": "stream"}]
        chunks = list(client.chat.completions.create(messages=history, max_tokens=6, stream=True, **GREEDY))
        assert chunks[-1].choices[0].finish_reason == "length" and len(chunks) > 2
        assert [model.id for model in client.models.list()] == ["small"]
        with pytest.raises(openai.BadRequestError) as gone:
            turn(client, {}, 1, "resp_nobody")
        assert gone.value.code == "previous_response_not_found"
