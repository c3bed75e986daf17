"""A log that a client of an agent writes, from a seed, and the habits by which a client loses the cache.

A conversation is a system prompt, and turns in which a person asks, the agent calls a tool, and the agent answers. A
client sends two requests a turn, each with the whole conversation so far. Every habit of `Client` is a fault that the
doctor can find.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

SENTENCES = """The order was sent on Monday, and its parcel has not come back from the depot yet. So we ask them to
look for it again, while a customer waits for money, or for another box with the same lamp in blue, which costs less."""
WORDS = re.findall(r"\w+", SENTENCES.lower())
MODULES = ("order", "parcel", "refund", "stock", "invoice", "customer", "depot", "label")
START_S = 1_767_600_000  # 2026-01-05, 08:00 UTC
REQUEST_S = 40  # between two requests of a conversation, about


@dataclass(frozen=True)
class Client:
    """What a client does to its requests. By default it has no bad habit.

    clock      the system prompt begins with the time of day
    shuffles   tools are sent in another order each time, as from a set
    serialises the keys of a tool's schema come in another order with each request
    window     only so many of the latest messages are sent, behind the system prompt; 0: all
    shortens   a tool's result is cut to so many characters, as soon as it is not the latest any more; 0: never
    """

    clock: bool = False
    shuffles: bool = False
    serialises: bool = False
    window: int = 0
    shortens: int = 0


def text(draw: random.Random, words: int) -> str:
    """So many words, and a number that makes them unlike any others."""
    return " ".join(draw.choices(WORDS, k=words)) + f" {draw.randrange(10**6)}."


def conversation(draw: random.Random, turns: int, words: int) -> list[dict]:
    """The messages of a conversation, in OpenAI's form. `words` is the length of a tool's result."""
    messages: list[dict] = []
    for turn in range(turns):
        call = {"name": f"find_{draw.choice(MODULES)}", "arguments": json.dumps({"number": draw.randrange(1000)})}
        number = f"call_{turn}"
        messages += [
            {"role": "user", "content": text(draw, 12)},
            {"role": "assistant", "content": "", "tool_calls": [{"id": number, "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": number, "content": text(draw, words)},
            {"role": "assistant", "content": text(draw, 20)},
        ]
    return messages


def tool_schemas(draw: random.Random) -> list[dict]:
    """A tool for each module."""
    found = []
    for module in MODULES:
        parameters = {
            "type": "object",
            "properties": {"number": {"type": "integer", "description": text(draw, 6)}},
            "required": ["number"],
        }
        about = {"name": f"find_{module}", "description": text(draw, 16), "parameters": parameters}
        found.append({"type": "function", "function": about})
    return found


def write_log(client: Client, *, sessions: int = 3, turns: int = 6, words: int = 60, seed: int = 0) -> Iterator[dict]:
    """Yield the requests of `sessions` conversations, interleaved, each with its response and its time."""
    draw = random.Random(f"log {seed}")
    prompt = f"You help the people of a shop. {text(draw, 120)}"
    tools = tool_schemas(draw)
    habit = random.Random(f"habits {seed}")
    for first in range(0, sessions, 8):  # so many people are there at a time
        at_once = [conversation(draw, turns, words) for _ in range(min(8, sessions - first))]
        steps = ((messages, at) for at in range(1, 4 * turns, 2) for messages in at_once)
        for number, (messages, at) in enumerate(steps, 2 * turns * first):
            at_s = START_S + number * REQUEST_S / len(at_once)
            yield _record(client, habit, prompt, tools, messages, at, at_s)


def _record(client: Client, habit: random.Random, prompt: str, tools: list, messages: list, at: int, at_s: float):
    sent = [dict(message) for message in messages[:at]]
    for message in sent[:-1]:
        if client.shortens and message["role"] == "tool" and len(message["content"]) > client.shortens:
            message["content"] = message["content"][: client.shortens] + " [shortened]"
    if client.window and len(sent) > client.window:
        sent = sent[-client.window :]
        while sent[0]["role"] != "user":  # a result cannot stand without its call
            sent.pop(0)
    if client.clock:
        prompt = f"It is {int(at_s) // 3600 % 24:02}:{int(at_s) // 60 % 60:02}:{int(at_s) % 60:02}. {prompt}"
    if client.serialises:
        tools = [_reordered(tool, habit) for tool in tools]
    if client.shuffles:
        tools = habit.sample(tools, len(tools))
    request = {"model": "shop-agent", "messages": [{"role": "system", "content": prompt}, *sent], "tools": tools}
    return {"timestamp": at_s, "request": request, "response": {"choices": [{"message": messages[at]}]}}


def _reordered(value, habit: random.Random):
    if not isinstance(value, dict):
        return value
    return {key: _reordered(value[key], habit) for key in habit.sample(list(value), len(value))}


def as_lines(records: Iterator[dict]) -> Iterator[str]:
    """The records as JSON lines."""
    return chain.from_iterable((json.dumps(record), "\n") for record in records)
