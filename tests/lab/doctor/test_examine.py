"""A clean log shows no fault; each fault that is planted in one is found, with its cause and its message."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minstate.chat.conversation import Chat
from minstate.lab.doctor.examine import examine
from minstate.lab.doctor.findings import without_text
from minstate.lab.doctor.page import page
from minstate.lab.doctor.prices import Price
from minstate.lab.doctor.report import as_json, changes, summary
from minstate.lab.engines.small_engine import byte_tokenizer
from minstate.lab.engines.template_styles import STYLES

TEXT = "the parser reads a token and returns its node while tests for this module still fail in two places"
WORDS = re.findall(r"\w+", TEXT)
CHATS = {name: Chat(byte_tokenizer(*STYLES[name])) for name in ("qwen2.5", "qwen3")}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"to {name}", "parameters": {"type": "object"}}}
    for name in ("read", "write", "search", "run")
]


def text(draw: random.Random, low: int = 12, high: int = 40) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high))) + f" {draw.randrange(10**9)}"


def conversation(draw: random.Random, turns: int, system: str) -> list[dict]:
    messages = [{"role": "system", "content": system}]
    for _ in range(turns):
        messages.append({"role": "user", "content": text(draw)})
        messages.append({"role": "assistant", "content": text(draw), "reasoning_content": text(draw)})
    return messages


def plain(messages: list[dict]) -> list[dict]:
    return [{k: v for k, v in message.items() if k != "reasoning_content"} for message in messages]


def requests_of(messages: list[dict], *, replies: bool = True, tools=TOOLS) -> list[dict]:
    ends = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    answer = lambda at: {"response": {"choices": [{"message": messages[at]}]}} if replies else {}  # noqa: E731
    return [{"request": {"messages": messages[:at], "tools": tools}} | answer(at) for at in ends]


def interleaved(draw: random.Random, logs: list[list[dict]]) -> list[dict]:
    logs, merged = [list(log) for log in logs], []
    while any(logs):
        merged.append(draw.choice([log for log in logs if log]).pop(0))
    return merged


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_a_clean_log_shows_no_fault(seed, sessions, replies):
    draw = random.Random(seed)
    system = text(draw)
    logs = []
    for _ in range(sessions):
        messages = plain(conversation(draw, draw.randint(1, 4), system))
        logs.append(requests_of(messages, replies=replies))
        if draw.random() < 0.4:  # a sub-agent that begins with what its parent has had so far
            at = draw.randrange(1, len(messages), 2)
            ask = [{"role": "user", "content": text(draw)}, {"role": "assistant", "content": text(draw)}]
            logs[-1] += requests_of([*messages[:at], *ask], replies=replies)[-1:]
    found = examine(interleaved(draw, logs), chat=CHATS["qwen2.5"])
    assert not found.causes() and not found.total("lost"), summary(found)
    assert found.total("old") + found.total("new") == found.total("tokens")
    assert found.prefilled()["session"] == found.prefilled()["exact to the token"]


def plant(fault: str, draw: random.Random) -> tuple[list[dict], int | None]:
    """A log in which one request, the third, has a fault; and the message in which it is."""
    thoughts = fault == "thought"
    messages = conversation(draw, 4, f"You are an agent. The time is 08:12:01. {text(draw)} {text(draw)}")
    messages = messages if thoughts else plain(messages)
    log = requests_of(messages)
    for request in log[2:]:
        sent = [dict(message) for message in request["request"]["messages"]]
        tools = [dict(tool) for tool in TOOLS]
        if fault == "volatile":
            sent[0]["content"] = sent[0]["content"].replace("08:12:01", "08:13:44")
        elif fault == "system":
            sent[0]["content"] = "Quite another prompt, of somebody else. " + sent[0]["content"][40:]
        elif fault == "tools_order":
            tools.reverse()
        elif fault == "tools_form":
            tools = [{"function": dict(reversed(tool["function"].items())), "type": "function"} for tool in tools]
        elif fault == "tools":
            tools = tools[1:]
        elif fault == "edited":
            sent[1]["content"] = "Another question altogether. " + sent[1]["content"][30:]
        elif fault == "limit":
            sent[1]["content"] = sent[1]["content"][:30] + " [cut]"
        elif fault == "trimmed":
            del sent[1:3]
        request["request"] |= {"messages": sent, "tools": tools}
    return log, {"volatile": 0, "system": 0, "edited": 1, "limit": 1, "trimmed": 1}.get(fault)


FAULTS = ("volatile", "system", "tools_order", "tools_form", "tools", "edited", "limit", "trimmed")


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_planted_fault_is_found(fault, seed):
    log, message = plant(fault, random.Random(seed))
    found = examine(log, chat=CHATS["qwen2.5"])
    causes = [request.cause for request in found.requests]
    assert causes == ["", "", fault, ""], summary(found)
    assert found.requests[2].message == message and found.requests[2].lost > 50
    assert found.sessions == 1


def test_a_dropped_thought_and_a_template_that_drops_thoughts_are_told_apart():
    draw = random.Random(1)
    messages = [{"role": "user", "content": text(draw)}]
    for _ in range(3):
        messages += [
            {"role": "assistant", "content": text(draw), "reasoning_content": text(draw)},
            {"role": "user", "content": text(draw)},
        ]
    kept = examine(requests_of(messages, tools=[]), chat=CHATS["qwen3"])
    assert {request.cause for request in kept.requests} == {"", "template"}
    log = requests_of(messages, tools=[])
    for request in log:
        request["request"]["messages"] = plain(request["request"]["messages"])
    assert {request.cause for request in examine(log, chat=CHATS["qwen3"]).requests} == {"", "thought"}


def test_a_system_prompt_with_the_time_costs_every_new_session():
    draw = random.Random(2)
    rest, log = text(draw, 60, 80), []
    for minute in range(5):
        log += requests_of(plain(conversation(draw, 1, f"It is 10:0{minute} on 2026-11-29. {rest}")))
    found = examine(log, chat=CHATS["qwen2.5"])
    assert [request.cause for request in found.requests] == ["", *["volatile"] * 4] and found.sessions == 5


def test_the_report_says_it_in_words_and_can_do_without_text():
    log, _ = plant("volatile", random.Random(3))
    found = examine(log, chat=CHATS["qwen2.5"])
    (words, lost), *_ = changes(found)
    assert "move it from the system prompt to the last message" in words and lost == found.total("lost")
    shown = page(found, Price(3, 0.3))
    assert "08:13:44" in shown and "<script" not in shown and "http" not in shown
    assert not re.search("08:1|parser|agent", page(without_text(found)) + as_json(without_text(found)))


def test_blocks_cost_at_most_a_block_more():
    draw = random.Random(4)
    found = examine(requests_of(plain(conversation(draw, 4, text(draw)))), chat=CHATS["qwen2.5"])
    for request in found.requests:
        exact = request.tokens - request.old
        assert all(exact <= request.blocks[b] < exact + b for b in request.blocks)
