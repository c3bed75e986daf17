"""A clean log shows no fault; each fault that is planted in one is found, with its cause and its message."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minstate.chat.conversation import Chat
from minstate.errors import MinstateError
from minstate.lab.doctor.examine import examine
from minstate.lab.doctor.findings import without_text
from minstate.lab.doctor.page import page
from minstate.lab.doctor.prices import Price
from minstate.lab.doctor.report import as_json, changes, summary
from minstate.lab.engines.small_engine import byte_tokenizer
from minstate.lab.engines.template_styles import STYLES
from minstate.weights import find_model, read_tokenizer

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


def plant(fault: str, draw: random.Random) -> tuple[list[dict], int, int | None]:
    """A log of one session with a fault from some request on; that request, and the message in which the fault is."""
    turns = draw.randint(4, 7)
    messages = plain(conversation(draw, turns, f"You are an agent. The time is 08:12:01. {text(draw)} {text(draw)}"))
    log = requests_of(messages)
    at = draw.randrange(2, turns)
    message = draw.randrange(1, 2 * at - 2, 2)  # of a person, and not the latest two
    for request in log[at:]:
        sent = [dict(each) for each in request["request"]["messages"]]
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
            sent[message]["content"] = "Another question altogether. " + sent[message]["content"][30:]
        elif fault == "limit":
            sent[message]["content"] = sent[message]["content"][:30] + " [cut]"
        elif fault == "trimmed":
            del sent[message : message + 2]
        request["request"] |= {"messages": sent, "tools": tools}
    place = {"volatile": 0, "system": 0, "edited": message, "limit": message, "trimmed": message}.get(fault)
    return log, at, place


FAULTS = ("volatile", "system", "tools_order", "tools_form", "tools", "edited", "limit", "trimmed")


@pytest.mark.parametrize("fault", FAULTS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_planted_fault_is_found(fault, seed):
    log, at, message = plant(fault, random.Random(seed))
    found = examine(log, chat=CHATS["qwen2.5"], lookup=False)
    causes = [request.cause for request in found.requests]
    assert causes == [fault if number == at else "" for number in range(len(log))], summary(found)
    assert found.requests[at].message == message and found.requests[at].lost > 50
    assert found.sessions == 1


def test_a_call_that_is_serialised_anew_is_found():
    def call(arguments: str) -> list[dict]:
        return [{"id": "c1", "type": "function", "function": {"name": "read", "arguments": arguments}}]

    draw = random.Random(6)
    first, then = '{"path": "a.py", "line": 1}', '{"line": 1, "path": "a.py"}'
    ask = {"role": "user", "content": text(draw)}
    reply = {"role": "assistant", "content": "", "tool_calls": call(first)}
    again = [ask, reply | {"tool_calls": call(then)}, {"role": "tool", "tool_call_id": "c1", "content": text(draw)}]
    log = [
        {"request": {"messages": [ask], "tools": TOOLS}, "response": {"choices": [{"message": reply}]}},
        {"request": {"messages": again, "tools": TOOLS}},
    ]
    found = examine(log, chat=CHATS["qwen2.5"])
    assert [request.cause for request in found.requests] == ["", "calls"] and found.requests[1].message == 1


def test_a_reply_in_an_odd_spelling_is_found_if_the_log_has_its_tokens():
    tokenizer = read_tokenizer(find_model())
    odd = [*tokenizer.encode(" Par"), *tokenizer.encode("is")] * 40
    reply = {"role": "assistant", "content": tokenizer.decode(odd)}
    ends = tokenizer.encode("<|im_end|>")
    messages = [{"role": "user", "content": "Say a word."}, reply, {"role": "user", "content": "Once more."}]
    response = {"choices": [{"message": reply, "token_ids": [*odd, *ends]}]}
    log = [{"request": {"messages": messages[:1]}, "response": response}, {"request": {"messages": messages}}]
    assert [request.cause for request in examine(log).requests] == ["", "retokenised"]
    del response["choices"][0]["token_ids"]
    assert [request.cause for request in examine(log).requests] == ["", ""]


def test_a_record_that_the_template_cannot_write_is_skipped_or_an_error():
    log = [{"messages": [{"role": "user", "content": "Hello"}]}, {"messages": [{"role": "tool", "content": "alone"}]}]
    found = examine(log, chat=CHATS["qwen2.5"])
    assert len(found.requests) + found.reading.skipped == 2 and found.requests[0].tokens > 0
    with pytest.raises(MinstateError, match="record 2"):
        examine([log[0], {"messages": [{"role": "nobody", "content": "x"}]}], chat=CHATS["qwen2.5"], strict=True)


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
    log, *_ = plant("volatile", random.Random(3))
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


def test_what_is_remembered_is_bounded_and_counts_stay(monkeypatch):
    draw = random.Random(5)
    log = interleaved(draw, [requests_of(plain(conversation(draw, 3, text(draw)))) for _ in range(4)])
    with_room = examine(log, chat=CHATS["qwen2.5"])
    monkeypatch.setattr("minstate.lab.doctor.examine.INDEXED", 1)
    monkeypatch.setattr("minstate.lab.doctor.tokens.REMEMBERED", 2)
    assert examine(log, chat=CHATS["qwen2.5"]).requests == with_room.requests
