"""What a record of a log is: a request, a request with its response, or a whole conversation; and in which format.

`parse` finds the parts of a record: messages or items, tools, the reply, the time. `minstate.lab.logs.messages` then
brings messages into one form. Formats are told apart by their keys, not by names of files.

| format | told by |
| --- | --- |
| OpenAI chat, tools or functions; mini-swe-agent | "messages" |
| OpenAI Responses | "input", "instructions", "output" |
| Anthropic messages | "system" beside "messages"; content blocks |
| request and response, batch files, proxies | "request", "body", … around one of these, and "response", … |
| [ATIF](https://www.harborframework.com/docs/agents/trajectory-format) | "schema_version": "ATIF-…", "steps" |
| SWE-agent's `.traj` | "trajectory", "history" |
| tau-bench; tau²-bench | "traj"; "simulations" |
| prompt and completion of an evaluation; ShareGPT | "prompt", "completion"; "conversations" |
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from minstate.lab.logs.files import is_conversation
from minstate.lab.logs.messages import text_of
from minstate.lab.traces.records import Mismatch, expect

REQUESTS = ("request", "request_body", "requestBody", "body", "params", "kwargs", "payload", "proxy_server_request")
RESPONSES = ("response", "response_body", "responseBody", "completion", "result")
TIMES = ("timestamp", "time", "ts", "created_at", "startTime", "start_time", "created", "at_s")


@dataclass(frozen=True)
class Parts:
    """The parts of a record, as it has them.

    items     messages of a chat, or items of the Responses API
    reply     the same, of the response; empty if the record has none
    whole     whether the record is a whole conversation, from whose replies its requests follow
    at_s      seconds, from any beginning
    reported  tokens of the prompt, and how many of these the provider says were cached
    """

    format: str
    items: list
    tools: Any = ()
    reply: tuple = ()
    whole: bool = False
    at_s: float | None = None
    model: str = ""
    reported: tuple[int, int] | None = None
    reply_ids: tuple[int, ...] | None = None


def parse(value: Any) -> Iterator[Parts]:
    """The requests or conversations of a record. Raises `Mismatch` if its format is not known."""
    if isinstance(value, str):
        value = _json(value)
    if is_conversation(value):
        yield Parts("messages", list(value), whole=True)
        return
    expect(isinstance(value, Mapping), "a record that is an object, or a list of messages", value)
    if str(value.get("schema_version", "")).startswith("ATIF-"):
        yield from _atif(value)
    elif isinstance(value.get("trajectory"), list) or is_conversation(value.get("history")):
        yield from _swe_agent(value)
    elif isinstance(value.get("traj"), list):
        yield Parts("tau-bench", value["traj"], value.get("tools") or (), whole=True)
    elif isinstance(value.get("simulations"), list):
        yield from _tau2(value)
    elif isinstance(value.get("prompt"), list) and isinstance(value.get("completion"), list):
        yield Parts("prompt and completion", [*value["prompt"], *value["completion"]], value.get("tools"), whole=True)
    elif isinstance(value.get("conversations"), list):
        yield Parts("ShareGPT", value["conversations"], value.get("tools") or (), whole=True)
    else:
        yield _api_call(value)


def _json(text: Any) -> Any:
    """A value that may have been written as text."""
    if isinstance(text, str):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _api_call(value: Mapping) -> Parts:
    """A request of one of the APIs, perhaps inside of others, with the response that stands beside it."""
    request, response, at_s = value, None, None
    for _ in range(4):
        response = next((found for key in RESPONSES if (found := _json(request.get(key)))), response)
        at_s = seconds(next((request[key] for key in TIMES if request.get(key) is not None), None)) or at_s
        if "messages" in request or ("input" in request and not isinstance(_json(request["input"]), Mapping)):
            break
        inner = next((key for key in (*REQUESTS, "input") if isinstance(_json(request.get(key)), Mapping)), None)
        if inner is None:
            break
        request = _json(request[inner])
    reply, reported, ids = _reply(_json(value.get("output")) if response is None else response)
    model = str(request.get("model") or "")
    if "messages" in request:
        items, tools = _json(request["messages"]), request.get("tools") or request.get("functions")
        expect(isinstance(items, list | tuple), 'a list in "messages"', items)
        if request.get("system"):  # Anthropic's, beside the messages
            items = [{"role": "system", "content": text_of(request["system"])}, *items]
        name = "Anthropic messages" if "system" in request or "anthropic_version" in request else "chat"
        whole = not reply and bool(items) and isinstance(items[-1], Mapping) and items[-1].get("role") == "assistant"
        return Parts(name, list(items), tools, reply, whole, at_s, model, reported, ids)
    if "input" in request:
        items = _json(request["input"])
        items = [{"role": "user", "content": items}] if isinstance(items, str) else items
        expect(isinstance(items, list), 'text or a list in "input"', items)
        if request.get("instructions"):
            items = [{"role": "system", "content": request["instructions"]}, *items]
        return Parts("Responses", items, request.get("tools"), reply, False, at_s, model, reported, ids)
    raise Mismatch(
        'a request ("messages" or "input"), a conversation or a trajectory',
        f"an object with the keys {list(value)[:12]}",
    )


def _reply(response: Any) -> tuple[tuple, tuple[int, int] | None, tuple[int, ...] | None]:
    """The messages or items of a response, what it reports of its tokens, and the ids of its tokens if it has them."""
    for _ in range(3):  # batch files and proxies have a body in a response
        inner = _json(response.get("body")) if isinstance(response, Mapping) else None
        response = inner if isinstance(inner, Mapping) else response
    if is_conversation(response):
        return tuple(response), None, None
    if not isinstance(response, Mapping):
        return (({"role": "assistant", "content": response},) if isinstance(response, str) else ()), None, None
    usage, ids = response.get("usage") or {}, None
    reported = _reported(usage) if isinstance(usage, Mapping) else None
    if response.get("choices"):
        choice = response["choices"][0]
        ids = choice.get("token_ids")
        message = choice.get("message") or {"role": "assistant", "content": choice.get("text")}
        ids = tuple(ids) if isinstance(ids, list) and all(type(i) is int for i in ids) else None
        return (message,), reported, ids
    if isinstance(response.get("output"), list):
        return tuple(response["output"]), reported, None
    if "content" in response or "tool_calls" in response:
        return ({"role": "assistant", **response, "type": None},), reported, None
    return (), reported, None


def _reported(usage: Mapping) -> tuple[int, int] | None:
    """Tokens of the prompt, and how many were cached, by OpenAI's or by Anthropic's names."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    if "cache_read_input_tokens" in usage:
        cached, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
        return (usage.get("input_tokens") or 0) + cached + written, cached
    total, cached = usage.get("prompt_tokens", usage.get("input_tokens")), details.get("cached_tokens")
    return (total, cached) if type(total) is int and type(cached) is int else None


def seconds(time: Any) -> float | None:
    """A time as seconds: a number of seconds or milliseconds, or a date in ISO 8601."""
    if type(time) in (int, float):
        return time / 1000 if time > 1e11 else float(time)
    if isinstance(time, str):
        try:
            return datetime.fromisoformat(time).timestamp()
        except ValueError:
            return None
    return None


def _atif(value: Mapping) -> Iterator[Parts]:
    """An ATIF trajectory, and those of its sub-agents."""
    agent = value.get("agent") or {}
    messages: list[dict] = []
    expect(isinstance(value.get("steps"), list), 'a list in "steps"', value.get("steps"))
    for number, step in enumerate(value["steps"], 1):
        expect(isinstance(step, Mapping), f"an object as step {number}", step)
        role = {"agent": "assistant"}.get(step.get("source"), step.get("source"))
        calls = [
            {"id": call.get("tool_call_id"), "name": call.get("function_name"), "arguments": call.get("arguments")}
            for call in step.get("tool_calls") or ()
        ]
        message = {"role": role, "content": step.get("message"), "tool_calls": calls}
        messages.append(message | {"reasoning_content": step.get("reasoning_content")})
        for result in (step.get("observation") or {}).get("results") or ():
            answered, content = result.get("source_call_id"), result.get("content")
            shown = content if isinstance(content, str | list) else json.dumps(content)
            tool = {"role": "tool", "tool_call_id": answered} if answered else {"role": "user"}
            messages.append({**tool, "content": shown})
    at_s = seconds(next((step.get("timestamp") for step in value["steps"]), None))
    yield Parts(
        "ATIF", messages, agent.get("tool_definitions"), whole=True, at_s=at_s, model=agent.get("model_name") or ""
    )
    for below in value.get("subagent_trajectories") or ():
        yield from _atif(below)


def _swe_agent(value: Mapping) -> Iterator[Parts]:
    """The requests of a SWE-agent's steps if the file has them, as it does from version 1 on; else its history."""
    config = ((value.get("replay_config") or {}) if isinstance(value.get("replay_config"), Mapping) else {}).get(
        "agent"
    )
    tools = config.get("tools", {}).get("tool_schemas") if isinstance(config, Mapping) else ()
    steps = [step for step in value.get("trajectory", ()) if isinstance(step, Mapping)]
    queries = [step.get("query") or step.get("messages") for step in steps]
    if steps and all(is_conversation(query) for query in queries):
        for step, query in zip(steps, queries, strict=True):
            reply = {"role": "assistant", "content": step.get("response") or "", "tool_calls": step.get("tool_calls")}
            yield Parts("SWE-agent", [*query], tools, (reply,))
        return
    history = [{k: v for k, v in m.items() if k not in ("thought", "action")} for m in value.get("history", ())]
    expect(history, 'messages in "history"', list(value))
    yield Parts("SWE-agent", history, tools, whole=True)


def _tau2(value: Mapping) -> Iterator[Parts]:
    """The agent's side of tau²-bench: it does not see the simulated user's calls and their results."""
    info = value.get("info") or {}
    policy = (info.get("environment_info") or {}).get("policy")
    for simulation in value["simulations"]:
        system = [{"role": "system", "content": policy}] if policy else []
        asked = {
            c.get("id") for m in simulation["messages"] if m.get("role") == "user" for c in m.get("tool_calls") or ()
        }
        ours = []
        for message in simulation["messages"]:
            if message.get("role") == "tool":
                number = message.get("tool_call_id") or message.get("id")
                if message.get("requestor") != "user" and number not in asked:
                    ours.append({**message, "tool_call_id": number})
            elif message.get("role") != "user" or message.get("content"):
                ours.append({k: v for k, v in message.items() if k != "tool_calls" or message["role"] != "user"})
        yield Parts("tau²-bench", [*system, *ours], whole=True)
