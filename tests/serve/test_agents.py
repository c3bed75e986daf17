"""Agent frameworks, unchanged, with tools that really run, against a server of the default model.

The model is small: a grammar carries it (`tool_choice="required"`, arguments out of a list), and the framework's own
setting ends a run after some calls.
"""

import asyncio
from itertools import pairwise
from typing import Literal

import agents
import openai
import pytest
import smolagents

from minstate import Engine
from minstate.lab.serving.local_server import local_server

MODEL = "SmolLM2-135M-Instruct"
SHELVES = {"teapot": 7, "kettle": 0, "cup": 31}
CALLS = 2  # of a run
agents.set_tracing_disabled(True)  # else the framework reports its runs to OpenAI


@pytest.fixture(scope="module")
def server():
    with local_server(Engine.from_pretrained, MODEL) as one:
        yield one
        one.call(Engine.check)
        assert one.service.turns == 0


def shop(kind, server, address):
    """An agent with two tools, and the list in which its tools' calls are noted. It ends a run after some calls."""
    done = []

    @agents.function_tool
    def count(article: Literal["teapot", "kettle", "cup"]) -> str:
        """How many pieces of an article are on the shelf."""
        done.append(article)
        return f"{SHELVES[article]} pieces"

    @agents.function_tool
    def order(article: Literal["teapot", "kettle", "cup"], pieces: int) -> str:
        """Order more of an article."""
        done.append(article)
        return f"ordered {pieces} for the shelf of {SHELVES[article]}"

    def enough(_, results):
        return agents.ToolsToFinalOutputResult(len(done) % CALLS == 0, results[-1].output)

    client = openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0)
    settings = agents.ModelSettings(
        temperature=0, tool_choice="required", max_tokens=60, parallel_tool_calls=False, include_usage=True
    )
    agent = agents.Agent(
        "clerk", f"You look after the shelves at {address}.", model=kind(MODEL, client), model_settings=settings,
        tools=[count, order], tool_use_behavior=enough, reset_tool_choice=False,
    )  # fmt: skip
    return agent, done


async def run(agent, question, streamed=False, **options):
    if not streamed:
        return await agents.Runner.run(agent, question, **options)
    result = agents.Runner.run_streamed(agent, question, **options)
    async for _ in result.stream_events():
        pass
    return result


def cached(exchange):
    usage = exchange.answer["usage"]
    return (usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))["cached_tokens"]


def require_delta(exchanges):
    """Each request goes on where the last one ended, to the token, and computes what is new and nothing else."""
    for before, after in pairwise(exchanges):
        usage, cost = before.answer["usage"], after.cost
        log = usage["total_tokens"]
        assert cost["context"] == log - 1 and cost["drift"] is None and cost["recomputed"] == 0
        assert cost["prefilled"] == cost["delta"] - cost["shared"] and 0 < cost["delta"] < 45
        assert cached(after) == cost["reused"] >= cost["context"]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel])
def test_the_agents_sdk_pays_for_what_is_new_in_each_request(server, kind, streamed):
    agent, done = shop(kind, server, f"{kind.__name__} {streamed}")
    begun = len(server.exchanges)

    async def conversation():
        first = await run(agent, "How many teapots are there? Order more if there are none.", streamed)
        again = [*first.to_input_list(), {"role": "user", "content": "And how many kettles?"}]
        return first.final_output, (await run(agent, again, streamed)).final_output

    outputs = asyncio.run(conversation())
    exchanges = server.exchanges[begun:]
    assert len(exchanges) == len(done) == 2 * CALLS and set(done) <= set(SHELVES)
    assert all("pieces" in output or "ordered" in output for output in outputs)
    require_delta(exchanges)
    sent = [exchange.sent_bytes for exchange in exchanges]
    assert sent == sorted(sent) and sent[-1] > 1.5 * sent[0]  # the whole history, each time


def test_the_agents_sdk_sends_only_what_is_new_if_the_server_remembers(server):
    agent, done = shop(agents.OpenAIResponsesModel, server, "by id")
    begun = len(server.exchanges)

    async def conversation():
        first = await run(agent, "How many cups are there?", auto_previous_response_id=True)
        return await run(agent, "And teapots?", previous_response_id=first.last_response_id)

    asyncio.run(conversation())
    exchanges = server.exchanges[begun:]
    assert len(exchanges) == len(done) == 2 * CALLS
    require_delta(exchanges)
    for before, after in pairwise(exchanges):
        assert after.sent["previous_response_id"] == before.answer["id"] and len(after.sent["input"]) == 1
    assert max(one.sent_bytes for one in exchanges) < 1.2 * min(one.sent_bytes for one in exchanges)


class Count(smolagents.Tool):
    name, description, output_type = "count", "How many pieces of an article are on the shelf.", "string"
    inputs = {"article": {"type": "string", "description": "the article", "enum": list(SHELVES)}}  # noqa: RUF012

    def forward(self, article):
        return f"{SHELVES[article]} pieces of {article}"


def test_smolagents_rewrites_each_reply_and_pays_for_what_it_rewrote(server):
    """It sends its calls back as text: a drift in each request, which costs that message and the result behind it."""
    model = smolagents.OpenAIServerModel(MODEL, server.url, "none", temperature=0, max_tokens=60)
    agent = smolagents.ToolCallingAgent([Count()], model, max_steps=3, verbosity_level=smolagents.LogLevel.OFF)
    agent.prompt_templates["system_prompt"] = "You count what is on a shelf. First call `count`."
    begun = len(server.exchanges)
    agent.run("How many teapots are on the shelf? Call count.")
    first, *others = server.exchanges[begun : begun + 3]
    observed = [step.observations for step in agent.memory.steps if isinstance(step, smolagents.ActionStep)]
    assert any("pieces of" in (text or "") for text in observed)
    assert first.cost["drift"] is None and first.cost["prefilled"] > 200
    for place, after in enumerate(others):
        cost = after.cost
        assert cost["drift"]["reason"] == "edited" and cost["drift"]["message"] == 2 + 2 * place
        assert cost["recomputed"] == 0 and cost["prefilled"] == cost["delta"] - cost["shared"] < 100
        assert cached(after) > 0.8 * after.answer["usage"]["prompt_tokens"] - 50
