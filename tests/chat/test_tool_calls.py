"""Tool calls in an assistant's text: what is written is read again, and what is malformed is reported with its text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import LOOK

import minstate
from minstate.chat.messages import normalise
from minstate.chat.tool_calls import CLOSE, OPEN, function_of, parse_tool_calls, text_with_calls

LEAVES = st.none() | st.integers() | st.text()
VALUES = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each))
CALL = st.tuples(st.text(), st.dictionaries(st.text(), VALUES)).map(
    lambda call: {"name": call[0], "arguments": call[1]}
)


def written(name, **arguments):
    (message,) = normalise({"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]})
    return text_with_calls(message)


@given(calls=st.lists(CALL, min_size=1, max_size=3), content=st.sampled_from(["", "I look.", "{"]))
def test_calls_are_written_as_json_between_two_marks_and_read_again(calls, content):
    (message,) = normalise({"role": "assistant", "content": content, "tool_calls": calls})
    text = text_with_calls(message)
    blocks = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    assert text == "\n".join([content, *blocks] if content else blocks)
    parsed = parse_tool_calls(text)
    assert [(call.name, call.arguments, call.error) for call in parsed] == [
        (call["name"], call["arguments"], "") for call in calls
    ]


@pytest.mark.parametrize(
    "text, error",
    [
        ('<tool_call>{"name": "ls"', "cut off"),
        ("<tool_call>ls -la</tool_call>", "not JSON"),
        ("<tool_call>[1]</tool_call>", "not of the form"),
        ('<tool_call>{"name": "ls", "arguments": "x"}</tool_call>', "not of the form"),
    ],
)
def test_malformed_calls_are_reported_as_such(text, error):
    (call,) = parse_tool_calls("First I look. " + text)
    assert error in call.error and call.arguments == {}


def test_several_calls_are_found_in_order():
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call> and <tool_call>{"name": "b"}</tool_call>'
    assert [call.name for call in parse_tool_calls(text)] == ["a", "b"]


def test_a_string_in_a_call_may_hold_the_marks_of_calls():
    (one,) = parse_tool_calls(written("look", path="</tool_call>"))
    assert (one.error, one.arguments) == ("", {"path": "</tool_call>"})
    calls = parse_tool_calls(written("look", path="<tool_call>") + written("wait"))
    assert [one.error for one in calls] == ["", ""]


def test_a_call_that_was_cut_off_ends_where_the_next_one_begins():
    cut, whole = parse_tool_calls('<tool_call>\n{"name": "look", "argu' + written("wait"))
    assert cut.raw == '{"name": "look", "argu' and "cut off" in cut.error
    assert (whole.name, whole.error) == ("wait", "")


@pytest.mark.parametrize("tool", [{"type": "function", "function": LOOK}, LOOK])
def test_a_tool_may_stand_in_its_wrapper_or_not(tool):
    assert function_of(tool) == ("look", LOOK["parameters"])
    assert function_of({"name": "wait"}) == ("wait", {"type": "object", "properties": {}})


def test_one_file_knows_the_marks():
    core = Path(minstate.__file__).parent
    files = [*core.glob("*.py"), *core.glob("chat/*.py")]
    assert [file.name for file in files if any(mark in file.read_text() for mark in (OPEN, CLOSE))] == ["tool_calls.py"]
