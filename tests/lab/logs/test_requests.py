"""Logs are read in every format and form of file; what cannot be read is named, counted and skipped."""

import gzip
import json

import pytest

from minstate.lab.logs.requests import Reading, read_requests
from minstate.lab.traces.records import TraceError

CALL = {"name": "ls", "arguments": {"path": "."}, "id": "c1"}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}}
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is here?"},
    {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "a.py"},
    {"role": "assistant", "content": "One file."},
]
LEGACY = [
    *CHAT[:2],
    {"role": "assistant", "content": None, "function_call": {"name": "ls", "arguments": '{"path": "."}'}},
    {"role": "function", "name": "ls", "content": "a.py"},
    CHAT[4],
]
RESPONSES = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is here?"}]},
    {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": '{"path": "."}'},
    {"type": "function_call_output", "call_id": "c1", "output": "a.py"},
]
ANTHROPIC = [
    {"role": "user", "content": "What is here?"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "ls", "input": {"path": "."}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "a.py"}]},
]
ATIF = {
    "schema_version": "ATIF-v1.7",
    "agent": {"name": "a", "version": "1", "tool_definitions": [TOOL]},
    "steps": [
        {"step_id": 1, "source": "system", "message": "Be brief."},
        {"step_id": 2, "source": "user", "message": "What is here?"},
        {
            "step_id": 3,
            "source": "agent",
            "message": "",
            "tool_calls": [{"tool_call_id": "c1", "function_name": "ls", "arguments": {"path": "."}}],
            "observation": {"results": [{"source_call_id": "c1", "content": "a.py"}]},
        },
        {"step_id": 4, "source": "agent", "message": "One file."},
    ],
}
REPLY = {
    "choices": [{"message": CHAT[4]}],
    "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}},
}
ANTHROPIC_REPLY = {"role": "assistant", "content": [{"type": "text", "text": "One file."}]}
CLAUDE = [
    {"type": "summary", "summary": "x", "leafUuid": "u"},
    *(
        {"type": m["role"], "uuid": f"u{n}", "parentUuid": f"u{n - 1}" if n else None, "sessionId": "s", "message": m}
        for n, m in enumerate([*ANTHROPIC, ANTHROPIC_REPLY])
    ),
]
CODEX = [
    {"type": "session_meta", "payload": {"id": "s", "base_instructions": {"text": "Be brief."}}},
    *({"type": "response_item", "payload": item} for item in RESPONSES),
    {"type": "response_item", "payload": {"type": "message", "role": "assistant", "content": []}},
]
RECORDS = {
    "a bare list": [CHAT],
    "a conversation": [{"messages": CHAT, "tools": [TOOL]}],
    "a request": [{"messages": CHAT[:4], "tools": [TOOL]}],
    "a request and its response": [{"request": {"messages": CHAT[:4]}, "response": REPLY}],
    "a batch file": [{"custom_id": "1", "method": "POST", "url": "/v1", "body": {"messages": CHAT[:4]}}],
    "text in text": [{"request": json.dumps({"messages": CHAT[:4]}), "response": json.dumps(REPLY)}],
    "function_call": [{"messages": LEGACY}],
    "Responses": [{"instructions": "Be brief.", "input": RESPONSES}],
    "Anthropic": [{"request": {"system": "Be brief.", "messages": ANTHROPIC}, "response": ANTHROPIC_REPLY}],
    "ATIF": [ATIF],
    "SWE-agent": [{"trajectory": [], "history": CHAT}],
    "tau-bench": [{"task_id": 0, "traj": CHAT}],
    "mini-swe-agent": [{"trajectory_format": "mini-swe-agent-1.1", "info": {}, "messages": CHAT}],
    "prompt and completion": [{"prompt": CHAT[:2], "completion": CHAT[2:]}],
    "Claude Code": CLAUDE,
    "Codex": CODEX,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_format_is_read(name):
    reading = Reading()
    *_, last = read_requests(RECORDS[name], strict=True, reading=reading)
    messages = [m for m in last.messages if m["role"] != "system"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool"]
    assert [m["content"] for m in messages] == ["What is here?", "", "a.py"]
    (call,) = messages[1]["tool_calls"]
    assert (call["name"], call["arguments"]) == (CALL["name"], CALL["arguments"])
    assert not reading.skipped and sum(reading.formats.values())


def test_what_the_provider_reports_is_kept():
    (request,) = read_requests(RECORDS["a request and its response"])
    assert request.reported == (9, 4) and request.reply["content"] == "One file."


LINES = "".join(json.dumps(record) + "\n" for record in ({"messages": CHAT[:2]}, {"messages": CHAT[:4]}))
FORMS = {
    "lines": LINES.encode(),
    "a byte order mark": b"\xef\xbb\xbf" + LINES.encode(),
    "gzip": gzip.compress(LINES.encode()),
    "CRLF": LINES.replace("\n", "\r\n").encode(),
    "a list": json.dumps([{"messages": CHAT[:2]}, {"messages": CHAT[:4]}]).encode(),
    "a pretty list": json.dumps([{"messages": CHAT[:2]}, {"messages": CHAT[:4]}], indent=2).encode(),
    "pretty values": "\n".join(json.dumps({"messages": CHAT[:n]}, indent=2) for n in (2, 4)).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_file_is_read(tmp_path, form):
    (tmp_path / "log.json").write_bytes(FORMS[form])
    assert [len(request.messages) for request in read_requests(tmp_path / "log.json", strict=True)] == [2, 4]
    assert [len(request.messages) for request in read_requests(tmp_path)] == [2, 4]


def test_a_conversation_alone_in_a_file_is_one_record(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(CHAT, indent=2))
    assert [len(request.messages) for request in read_requests(tmp_path / "log.json")] == [2, 4]


def test_growing_conversations_give_each_request_once():
    log = [{"messages": CHAT[:3]}, {"messages": CHAT}]
    assert [len(request.messages) for request in read_requests(log)] == [2, 4]


def test_what_cannot_be_read_is_named_counted_and_skipped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(LINES.encode() + b'{"messages": [\n{"no": 1}\n\xff\n' + LINES.encode())
    reading = Reading()
    assert len(list(read_requests(path, reading=reading))) == 4 and reading.skipped == 3
    assert all(problem.startswith(f"{path}, line ") and "expected" in problem for problem in reading.named)
    with pytest.raises(TraceError, match="line 3: expected JSON"):
        list(read_requests(path, strict=True))


def test_an_image_is_opaque_and_two_of_them_differ():
    ask = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:{n}"}}]} for n in (1, 2)]
    reading = Reading()
    first, second = (request.messages[0]["content"] for request in read_requests([ask[:1], ask[1:]], reading=reading))
    assert first != second and first.startswith("[image ") and reading.notes["image parts counted as opaque"] == 2


def test_a_packed_file_says_what_to_do(tmp_path):
    (tmp_path / "log.zip").write_bytes(b"PK\x03\x04....")
    with pytest.raises(TraceError, match="unpack it"):
        list(read_requests(tmp_path / "log.zip"))
