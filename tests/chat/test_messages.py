"""Messages, tools, choices and formats as a user may pass them, in the forms of several APIs."""

import math

import pytest

from minstate import BadMessage, BadValue
from minstate.chat.messages import normalise, normalise_choice, normalise_format, normalise_tools
from minstate.chat.tool_calls import ToolCall

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
LS = {"type": "function", "function": {"name": "ls", "description": "Lists files.", "parameters": SCHEMA}}


def normal_call(call):
    (message,) = normalise({"role": "assistant", "tool_calls": [call]})
    return message["tool_calls"][0]


# ---- Messages


@pytest.mark.parametrize("kind", [{"type": "text"}, {"type": "input_text"}, {"type": "output_text"}, {}])
def test_content_may_come_in_parts(kind):
    (message,) = normalise({"role": "user", "content": [{**kind, "text": "a"}, {**kind, "text": "b"}]})
    assert message["content"] == "ab"


@pytest.mark.parametrize(
    "part, named",
    [
        ({"type": "image_url", "image_url": "x"}, "'image_url'"),
        ({"type": "refusal", "text": "no"}, "'refusal'"),
        ({"type": "text", "text": None}, "'text'"),
        ({"text": 5}, "None"),
        ("a", "'str'"),
    ],
)
def test_a_part_that_is_not_text_is_refused_by_its_type(part, named):
    with pytest.raises(BadMessage, match=f"message 0 .user. .* type {named} that is not text"):
        normalise({"role": "user", "content": [{"type": "text", "text": "a"}, part]})


def test_a_developer_stays_one_for_the_template_to_name():
    assert normalise({"role": "developer", "content": "Be brief."}) == ({"role": "developer", "content": "Be brief."},)
    with pytest.raises(BadMessage, match=r"developer.* is empty"):
        normalise({"role": "developer", "content": ""})


def test_calls_and_results_may_have_openais_older_form():
    call = {"role": "assistant", "content": None, "function_call": {"name": "ls", "arguments": '{"path": "."}'}}
    said, result = normalise([call, {"role": "function", "name": "ls", "content": ""}])
    assert said == {"role": "assistant", "content": "", "tool_calls": [{"name": "ls", "arguments": {"path": "."}}]}
    assert result == {"role": "tool", "name": "ls", "content": ""}
    with pytest.raises(BadMessage, match="only the assistant"):
        normalise({**call, "role": "user"})


def test_what_openais_client_leaves_empty_is_no_call():
    said = {"role": "assistant", "content": "hi", "tool_calls": None, "function_call": None}
    assert normalise(said) == ({"role": "assistant", "content": "hi"},)


@pytest.mark.parametrize(
    "arguments", [{"arguments": ""}, {"arguments": " "}, {"arguments": None}, {"arguments": {}}, {}]
)
def test_empty_arguments_are_none(arguments):
    assert normal_call({"function": {"name": "ls", **arguments}}) == {"name": "ls", "arguments": {}}


@pytest.mark.parametrize("call", [{"function": {"name": "ls"}}, {"name": "ls", "arguments": {}}])
def test_calls_and_results_keep_their_ids(call):
    assert normal_call({"id": "c1", "type": "function", **call}) == {"id": "c1", "name": "ls", "arguments": {}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "setup.py"}
    assert normalise(result) == (result,)


def test_results_that_match_no_call_or_the_same_call_are_let_through():
    results = [{"role": "tool", "tool_call_id": number, "content": "x"} for number in ("c1", "c1", "c9")]
    said = {"role": "assistant", "tool_calls": [{"id": "c1", "name": "ls", "arguments": {}}]}
    assert list(normalise([said, *results])[1:]) == results


@pytest.mark.parametrize(
    "call",
    [
        *({"name": "f", "arguments": f'{{"x": {number}}}'} for number in ("NaN", "Infinity", "-Infinity", "1e999")),
        {"name": "f", "arguments": {"x": [math.inf]}},
        ToolCall("f", {"x": math.nan}, ""),
        {"name": "f", "arguments": {}, "id": math.nan},
        {"name": "f", "arguments": "[]"},
        {"name": "f", "arguments": 0},
        {"function": "f"},
        {"name": 5},
        "f",
    ],
)
def test_a_call_is_a_name_and_an_object_that_json_can_hold(call):
    with pytest.raises(BadMessage, match="message 0 has a malformed tool call"):
        normal_call(call)


def test_a_key_for_the_template_is_one_that_json_can_hold():
    with pytest.raises(BadMessage, match="what JSON cannot"):
        normalise({"role": "user", "content": "x", "when": math.nan})


# ---- Tools


@pytest.mark.parametrize(
    "tools", ["ls", [5], [{"f": object()}], {"name": "ls"}, [{"type": "function", "function": "f"}]]
)
def test_tools_must_be_schemas(tools):
    with pytest.raises(BadMessage, match="tools"):
        normalise_tools(tools)


@pytest.mark.parametrize(
    "tool",
    [
        LS,
        {"function": LS["function"]},
        LS["function"],
        {"type": "function", **LS["function"]},
        {"name": "ls", "description": "Lists files.", "input_schema": SCHEMA},
        {"type": "custom", "name": "ls", "description": "Lists files.", "input_schema": SCHEMA},
        {"name": "ls", "description": "Lists files.", "inputSchema": SCHEMA},
    ],
)
def test_the_model_is_told_of_a_tool_in_one_form_whatever_api_it_was_written_for(tool):
    (told,) = normalise_tools([tool])
    assert told == LS and list(told["function"]) == list(LS["function"])
    assert normalise_tools((told,)) == (told,)


def test_a_tool_that_is_no_function_is_refused():
    with pytest.raises(BadMessage, match="must be functions, and one is of type 'web_search'"):
        normalise_tools([LS, {"type": "web_search", "name": "web"}])


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(BadMessage, match="two tools have the name 'ls'"):
        normalise_tools([LS, {"name": "ls"}])


# ---- What a reply must be


@pytest.mark.parametrize(
    "choice, meant",
    [
        *((choice, choice) for choice in (None, "auto", "required", "ls")),
        ({"type": "function", "function": {"name": "ls"}}, "ls"),
        ({"type": "function", "name": "ls"}, "ls"),
        ({"type": "tool", "name": "ls"}, "ls"),
        ({"name": "ls"}, "ls"),
        ({"type": "any"}, "required"),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"),
        ({"type": "none"}, "none"),
    ],
)
def test_a_tool_choice_may_be_an_object(choice, meant):
    assert normalise_choice(choice) == meant


@pytest.mark.parametrize("choice", [{}, {"type": "tool"}, {"type": "function", "function": "ls"}, {"name": 5}])
def test_a_choice_that_names_no_tool_is_refused(choice):
    with pytest.raises(BadValue, match="names no tool"):
        normalise_choice(choice)


@pytest.mark.parametrize(
    "given, schema",
    [
        *((schema, schema) for schema in (None, SCHEMA, {"enum": [1]}, {"type": ["object", "null"]})),
        ({"type": "json_schema", "json_schema": {"name": "path", "strict": True, "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "name": "path", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
    ],
)
def test_a_response_format_may_be_an_object_around_its_schema(given, schema):
    assert normalise_format(given) == schema


@pytest.mark.parametrize("inner", [{}, {"json_schema": None}, {"json_schema": {"name": "path"}}, {"schema": "object"}])
def test_a_wrapper_without_a_schema_is_refused(inner):
    with pytest.raises(BadValue, match="needs a schema"):
        normalise_format({"type": "json_schema", **inner})


def test_a_call_whose_function_is_its_name_is_a_call():
    call = {"id": "c1", "function": "ls", "arguments": {"path": "."}}
    (message,) = normalise({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message["tool_calls"] == [{"id": "c1", "name": "ls", "arguments": {"path": "."}}]


def test_a_part_without_a_type_is_refused_by_its_keys():
    with pytest.raises(BadMessage, match=r"message 0 \(user\) has a content part of type \['toolUse'\]"):
        normalise({"role": "user", "content": [{"toolUse": {}}]})
