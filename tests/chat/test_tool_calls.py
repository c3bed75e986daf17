"""Tool calls in an assistant's text: what is written is read again, and what is malformed is reported with its text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import LOOK

from minstate.chat.dialect import HERMES
from minstate.chat.messages import normalise
from minstate.chat.tool_calls import function_of

LEAVES = st.none() | st.integers() | st.text()
VALUES = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each))
CALL = st.tuples(st.text(), st.dictionaries(st.text(), VALUES)).map(
    lambda call: {"name": call[0], "arguments": call[1]}
)


def written(name, **arguments):
    (message,) = normalise({"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]})
    return HERMES.write_message(message)


@given(calls=st.lists(CALL, min_size=1, max_size=3), content=st.sampled_from(["", "I look.", "{"]))
def test_calls_are_written_as_json_between_two_marks_and_read_again(calls, content):
    (message,) = normalise({"role": "assistant", "content": content, "tool_calls": calls})
    text = HERMES.write_message(message)
    blocks = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
    assert text == "\n".join([content, *blocks] if content else blocks)
    parsed = HERMES.read(text).calls
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
    (call,) = HERMES.read("First I look. " + text).calls
    assert error in call.error and call.arguments == {}


def test_several_calls_are_found_in_order():
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call> and <tool_call>{"name": "b"}</tool_call>'
    assert [call.name for call in HERMES.read(text).calls] == ["a", "b"]


def test_a_string_in_a_call_may_hold_the_marks_of_calls():
    (one,) = HERMES.read(written("look", path="</tool_call>")).calls
    assert (one.error, one.arguments) == ("", {"path": "</tool_call>"})
    calls = HERMES.read(written("look", path="<tool_call>") + written("wait")).calls
    assert [one.error for one in calls] == ["", ""]


def test_a_call_that_was_cut_off_ends_where_the_next_one_begins():
    cut, whole = HERMES.read('<tool_call>\n{"name": "look", "argu' + written("wait")).calls
    assert cut.raw == '{"name": "look", "argu' and "cut off" in cut.error
    assert (whole.name, whole.error) == ("wait", "")


@pytest.mark.parametrize("tool", [{"type": "function", "function": LOOK}, LOOK])
def test_a_tool_may_stand_in_its_wrapper_or_not(tool):
    assert function_of(tool) == ("look", LOOK["parameters"])
    assert function_of({"name": "wait"}) == ("wait", {"type": "object", "properties": {}})


def test_a_call_fits_a_schema_with_types_from_elsewhere():
    """As the Berkeley Function-Calling Leaderboard publishes them."""
    parameters = {"type": "dict", "properties": {"x": {"type": "float"}}, "required": ["x"]}
    for value, error in ((1.5, ""), ("a", "is not of type 'number'")):
        text = HERMES.write([{"name": "f", "arguments": {"x": value}}])
        (call,) = HERMES.read(text, [{"name": "f", "parameters": parameters}]).calls
        assert error in call.error and bool(error) == bool(call.error)
