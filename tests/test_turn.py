"""What may be asked of a turn can be looked up, a wrong name is answered with the right one, and a turn can be read."""

import inspect
from dataclasses import MISSING, fields

import pytest
from tiny import LOOK, engine

from minstate import Engine, Sampling, Session
from minstate.turn import TurnOptions

CALL = '<tool_call>\n{"name": "look", "arguments": {"path": "a", "deep": true}}\n</tool_call>'


@pytest.mark.parametrize("method", [Session.send, Session.stream, Engine.submit])
def test_a_turns_options_are_in_the_signature_with_their_defaults(method):
    shown = inspect.signature(method).parameters
    defaults = {each.name: each.default for each in fields(TurnOptions)}
    assert MISSING not in defaults.values() and "token_ids" in shown and "options" not in shown
    assert {name: shown[name].default for name in defaults} == defaults
    assert all(shown[name].kind is inspect.Parameter.KEYWORD_ONLY for name in defaults)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("max_tokens", "max_new_tokens"),
        ("max_completion_tokens", "max_new_tokens"),
        ("max_new_token", "max_new_tokens"),
        ("temperature", "sampling=Sampling(temperature=...)"),
        ("top_p", "sampling=Sampling(top_p=...)"),
        ("seed", "sampling=Sampling(seed=...)"),
        ("stop", "sampling=Sampling(stop=...)"),
        ("stop_sequences", "sampling=Sampling(stop=...)"),
        ("timeout", "timeout_s"),
        ("format", "response_format"),
        ("function_call", "tool_choice"),
        ("token_id", "token_ids"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_is_meant(name, meant):
    e = engine()
    session = e.open()
    for take in (session.send, session.stream, lambda *ask, **options: e.submit(session, *ask, **options)):
        with pytest.raises(TypeError) as raised:
            take("hi", **{name: 1})
        assert str(raised.value) == f"a turn has no option {name}: did you mean {meant}?"
    assert session.token_ids == [] and not e.scheduler.requests
    e.check()


def test_an_option_like_no_other_is_answered_with_all_there_are():
    with pytest.raises(
        TypeError, match=r"no option wibble: there are replay, max_new_tokens, sampling, .*on_overflow$"
    ):
        engine().open().send("hi", wibble=1)


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
    assert options.response_format == {"type": "object"}
    assert session.send("{}", response_format={"type": "json_object"}, max_new_tokens=1).text == "{"


def test_a_session_knows_tools_in_any_form_as_the_same_tools():
    session = engine(positions=4096, num_pages=600).open("hi", tools=[LOOK])
    session.send([], max_new_tokens=4, tool_choice=None, sampling=Sampling(ignore_eos=True))
    wrapped = [{"type": "function", "function": LOOK}]
    assert session.drift(session.messages, tools=wrapped).reason == session.drift(session.messages).reason != "tools"
    assert session.drift(session.messages, tools=[{**LOOK, "name": "ls"}]).reason == "tools"


def test_a_turn_is_shown_as_text_calls_and_counts():
    e = engine(positions=4096, num_pages=600)
    turn = e.open(tools=[LOOK]).send("look", replay=CALL)
    first, call, end, prompt, answer = repr(turn).splitlines()
    assert str(turn) == repr(turn)
    assert first == f"Turn: {CALL!r}" and call == "  call: look(path='a', deep=True)"
    assert end.startswith("  ended by: replay, ") and end.endswith(f" s, {turn.stats.steps} steps")
    delta = turn.stats.delta
    assert prompt == f"  prompt: 0 in context, Δ {delta}, {delta} prefilled"
    assert answer == f"  answer: {turn.stats.generated} generated, 0 of 0 guesses accepted"


def test_a_long_turn_is_shown_in_a_few_short_lines_and_a_malformed_call_as_it_is():
    session = engine(positions=4096, num_pages=600).open(tools=[LOOK])
    shown = repr(session.send("look", replay="word " * 200 + "<tool_call>" + "x" * 200)).splitlines()
    assert len(shown) == 5 and max(map(len, shown)) < 240
    assert shown[0].startswith("Turn: 'word word") and shown[0].endswith("…")
    assert shown[1].startswith("  call: 'xxx") and shown[1].endswith("…: cut off before </tool_call>")
