"""What may be asked of a turn."""

from tiny import LOOK, engine

from minstate import Sampling
from minstate.chat.grammar import grammar_of
from minstate.turn import TurnOptions


def test_options_in_the_form_of_another_api_are_the_same_options():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    ours = TurnOptions(tools=[LOOK], tool_choice="look"), TurnOptions(response_format=schema)
    theirs = (
        TurnOptions(
            tools=[{"type": "function", "function": LOOK}],
            tool_choice={"type": "function", "function": {"name": "look"}},
        ),
        TurnOptions(response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}),
    )
    assert theirs == ours and repr(theirs) == repr(ours)


def test_a_choice_and_a_format_from_another_api_are_enforced():
    e = engine(positions=4096, num_pages=600)
    session = e.open("You look.", tools=[{"name": "look", "inputSchema": LOOK["parameters"]}])
    (call,) = session.send("look", tool_choice={"type": "any"}, max_new_tokens=200).tool_calls
    assert call.name == "look" and not call.error
    options = TurnOptions(response_format={"type": "json_object"})
    assert grammar_of((), None, options.response_format) == grammar_of((), None, {"type": "object"})
    assert session.send("{}", response_format={"type": "json_object"}, max_new_tokens=1).text == "{"


def test_a_session_knows_tools_in_any_form_as_the_same_tools():
    session = engine(positions=4096, num_pages=600).open("hi", tools=[LOOK])
    session.send([], max_new_tokens=4, tool_choice=None, sampling=Sampling(ignore_eos=True))
    wrapped = [{"type": "function", "function": LOOK}]
    assert session.drift(session.messages, tools=wrapped).reason == session.drift(session.messages).reason != "tools"
    assert session.drift(session.messages, tools=[{**LOOK, "name": "ls"}]).reason == "tools"
