"""Chat logs in OpenAI's style become traces, and no message is lost."""

import json
from collections.abc import Iterator

import pytest
import tiny
from trace_examples import TOOL, assistant, user

from minstate.lab.traces.openai_logs import from_openai
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import Opening, Trace, TraceError, read_trace, write_trace


def openai_call(number: int, **arguments) -> dict:
    return {"id": f"c{number}", "type": "function", "function": {"name": "ls", "arguments": json.dumps(arguments)}}


WHOLE = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "here?"}]},
    {"role": "assistant", "content": None, "tool_calls": [openai_call(1, folder="."), openai_call(2, folder="ü")]},
    {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
    {"role": "tool", "tool_call_id": "c2", "content": "b.py"},
    {"role": "assistant", "content": "Two files.", "refusal": None},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Any time."},
]


def all_messages(trace: Trace, session: str = "main") -> Iterator[dict]:
    """The messages of a session, in order."""
    yield from trace.header.sessions[session].messages
    for turn in trace.turns:
        if turn.session == session:
            yield from (*turn.messages, turn.output)


def test_a_whole_conversation_becomes_turns(tmp_path):
    trace = from_openai([{"messages": WHOLE, "tools": [TOOL]}], name="chat")
    assert trace.header.sessions == {"main": Opening(({"role": "system", "content": "Be brief."},), (TOOL,))}
    first, second, third = trace.turns
    assert first.messages == ({"role": "user", "content": "What is here?"},)
    assert first.output["tool_calls"][1] == {"name": "ls", "arguments": {"folder": "ü"}, "id": "c2"}
    assert [message["name"] for message in second.messages] == ["ls", "ls"]
    assert third.output == assistant("Any time.")
    write_trace(tmp_path / "t.jsonl", trace.header, trace.turns)
    assert tuple(read_trace(tmp_path / "t.jsonl").turns) == trace.turns


def test_no_message_is_lost():
    back = []
    for message in all_messages(from_openai([{"messages": WHOLE}])):
        calls = [openai_call(int(call["id"][1:]), **call["arguments"]) for call in message.get("tool_calls", [])]
        back.append(message | ({"tool_calls": calls, "content": None} if calls else {}))
    plain = [{key: of for key, of in message.items() if key != "refusal"} for message in WHOLE]
    plain[0]["role"], plain[1]["content"] = "system", "What is here?"
    assert [{k: v for k, v in m.items() if not (m["role"] == "tool" and k == "name")} for m in back] == plain


def test_growing_requests_are_one_conversation():
    requests = [{"messages": WHOLE[:end]} for end in (2, 5, 7, 5)]  # the last one was sent twice
    assert list(all_messages(from_openai(requests))) == list(all_messages(from_openai([{"messages": WHOLE[:6]}])))
    assert from_openai([*requests, {"messages": WHOLE}]).turns == from_openai([{"messages": WHOLE}]).turns


def test_interleaved_conversations_keep_their_order():
    other = [user("Hello"), assistant("Hi."), user("Bye"), assistant("Ciao.")]
    log = [
        {"messages": WHOLE[:2]},
        {"messages": other[:1]},
        {"messages": other[:3]},
        {"messages": WHOLE},
        {"messages": other},
    ]
    trace = from_openai(log)
    assert [turn.session for turn in trace.turns] == ["chat-1", "chat-2", "chat-2", "chat-1", "chat-1"]
    assert list(all_messages(trace, "chat-2")) == other


def test_diverging_conversations_and_other_tools_are_separate_sessions():
    trace = from_openai([{"messages": WHOLE}, {"messages": [*WHOLE[:6], user("No."), assistant("Oh.")]}])
    assert len(trace.header.sessions) == 2
    assert len(from_openai([{"messages": WHOLE}, {"messages": WHOLE, "tools": [TOOL]}]).header.sessions) == 2


@pytest.mark.parametrize("form", ["lines", "list"])
def test_logs_are_read_from_files(tmp_path, form):
    records = [{"messages": WHOLE[:5]}, {"messages": WHOLE}]
    text = json.dumps(records) if form == "list" else "\n".join(map(json.dumps, records)) + "\n"
    (tmp_path / "log.json").write_text(text)
    trace = from_openai(tmp_path / "log.json")
    assert trace.header.name == "log" and trace.turns == from_openai(records).turns


BAD_LOGS = {
    "no messages": ({"tools": []}, r"expected a request \("),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "content parts that are text in message 1",
    ),
    "broken arguments": (
        {"messages": [*WHOLE[:2], assistant("", {"function": {"name": "ls", "arguments": "{"}})]},
        "arguments of ls that are JSON in message 3",
    ),
    "arguments that are a list": (
        {"messages": [*WHOLE[:2], assistant("", {"function": {"name": "ls", "arguments": "[1]"}})]},
        "an object of arguments of ls in message 3",
    ),
    "an unknown call": ({"messages": [*WHOLE[:2], WHOLE[3]]}, "one of the calls so far, found 'c1'"),
    "an empty reply": ({"messages": [user("hi"), {"role": "assistant", "content": None}]}, "in message 2, found ''"),
    "two replies": (
        {"messages": [user("hi"), assistant("a"), assistant("b")]},
        "found two messages of the assistant in a row",
    ),
    "no reply": ({"messages": [user("hi")]}, "at least one reply of an assistant"),
}


@pytest.mark.parametrize("problem", BAD_LOGS)
def test_a_log_that_cannot_be_replayed_is_an_error(tmp_path, problem):
    record, message = BAD_LOGS[problem]
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(TraceError, match=message):
        from_openai(tmp_path / "log.jsonl", strict=True)
    with pytest.raises(TraceError, match=r"^(record 1|the log): expected"):
        from_openai([record], strict=True)


def test_what_cannot_be_replayed_is_skipped_and_counted():
    trace = from_openai([{"messages": WHOLE}, *(record for record, _ in BAD_LOGS.values()), {"messages": [*WHOLE]}])
    assert trace.header.more["skipped"] == 3  # no messages, an empty reply, two replies; the others are repaired


def test_a_converted_log_can_be_replayed():
    engine = tiny.engine(num_pages=1024, positions=4096)
    for record, turn in replay(engine, from_openai([{"messages": WHOLE, "tools": [TOOL]}])):
        assert [call.arguments for call in turn.tool_calls] == [
            call["arguments"] for call in record.output.get("tool_calls", [])
        ]
