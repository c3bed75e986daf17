"""Whatever a schema, a tool or a message holds: a turn ends with a valid value, with an error, or at its length."""

import json
from functools import cache

import pytest
import tiny
from jsonschema import Draft202012Validator

from minstate import Sampling, Speculation, UnsupportedSchema
from minstate.chat.dialect import HERMES
from minstate.chat.families import NAMED
from minstate.chat.grammar import Constraint
from minstate.lab.engines.stub_model import stub_engine

END = "<|im_end|>"
TOO_MUCH = {"type": "string", "pattern": r"^(?:\S+\s+){0,99}\S+$", "maxLength": 5000}  # for the parser's lexer


@cache
def real(speculation: bool = False):
    """An engine with the default model's tokenizer, whose model takes any token for as likely as any other."""
    return stub_engine(num_pages=200, speculation=Speculation(tiny.FLAT) if speculation else False)


def reply(e, seed=0, tenant="a", **options):
    """A turn that has ended, with an answer or with an error."""
    session = e.open(tenant=tenant)
    settings = {"max_new_tokens": 200, "sampling": Sampling(temperature=1.0, seed=seed)}
    request = e.submit(session, token_ids=[50 + seed], **{**settings, **options})
    e.run()
    e.check()
    assert request.done and bool(request.error) == (not session.token_ids), "an error leaves the session as it was"
    return request


# ---- The parser's limits


@pytest.mark.parametrize("speculation", [False, True])
def test_a_parser_at_its_limit_ends_one_turn_with_an_error_and_no_other(speculation):
    """llguidance would raise nothing, allow the end of the reply, and do so in every copy of the matcher."""
    e = real(speculation)
    for tenant in "abc":
        request = reply(e, tenant=tenant, response_format=TOO_MUCH)
        assert isinstance(request.error, UnsupportedSchema) and "too much for the parser" in str(request.error)
        simple = reply(e, tenant=tenant, response_format={"const": "fine"})
        assert simple.turn.text == '"fine"'


def test_what_has_reached_the_limit_is_not_used_again():
    grammars = real().grammars
    spent = grammars.constraint((), None, TOO_MUCH)
    with pytest.raises(UnsupportedSchema):
        for token in real().tokenizer.encode('"one two three four'):
            spent.advance(token)
            spent.mask(49152)
    fresh = grammars.constraint((), None, TOO_MUCH)
    assert fresh.allows(18) and not fresh.allows(2), "a quote, and not the end"


def test_a_copy_of_a_constraint_reports_the_limit_too():
    constraint = real().grammars.constraint((), None, TOO_MUCH)
    copy = constraint.copy()
    with pytest.raises(UnsupportedSchema, match="too much"):
        while True:
            copy.advance(int(copy.mask(49152).nonzero()[0][-1]))
    assert real().grammars.constraint((), None, TOO_MUCH).allows(18)


@pytest.mark.parametrize("call", ["allows", "advance", "copy"])
@pytest.mark.parametrize("speculation", [False, True])
def test_a_replay_needs_no_parser(call, speculation, monkeypatch):
    """Its grammar only guesses. A parser at its limit guesses nothing, and the turn goes on."""
    e, calls = real(speculation), []

    def limited(self, *arguments):
        calls.append(call)
        if len(calls) > 1:
            raise UnsupportedSchema("too much for the parser")
        return original(self, *arguments)

    original = getattr(Constraint, call)
    monkeypatch.setattr(Constraint, call, limited)
    output = e.tokenizer.encode('"one two three four five six"')
    assert reply(e, replay=output, response_format={"type": "string"}).turn.token_ids == tuple(output)
    assert len(calls) == 2 or not speculation


# ---- Constants that spell control tokens


SPELT = ["a<|im_end|>b", "<|im_start|>", "<|im_end|>", "<|endoftext|><|im_start|>system", "x <|im_end|>", "im_end|>"]


@pytest.mark.parametrize("speculation", [False, True])
@pytest.mark.parametrize("text", SPELT)
@pytest.mark.parametrize("engine", [real, lambda s: (tiny.drafting if s else tiny.engine)(num_pages=100)])
def test_a_forced_text_that_spells_a_control_token_is_written_in_letters(text, speculation, engine):
    e = engine(speculation)
    named = {"type": "object", "properties": {text: {"enum": [text, text + "!"]}}, "required": [text]}
    pattern = {"type": "string", "pattern": "^" + "".join(f"[{char}]" for char in text) + "$"}
    for schema in ({"const": text}, pattern, {**named, "additionalProperties": False}):
        turn = reply(e, response_format=schema).turn
        assert turn.finish_reason == "stop"
        Draft202012Validator(schema).validate(json.loads(turn.text))
        specials = set(e.tokenizer.all_special_ids) | set(e.tokenizer.added_tokens_decoder)
        assert not specials & set(turn.token_ids[:-1])
    tool = {"name": text, "parameters": {**named, "additionalProperties": False}}
    turn = reply(e, tools=[tool], tool_choice="required").turn
    (call,) = turn.tool_calls
    assert (call.name, call.error, turn.finish_reason) == (text, "", "stop")


# ---- Calls are checked, whatever their schema


def wrong(schema, **arguments):
    """What is wrong with a call, according to its schema."""
    tool = {"name": "f", "parameters": {"type": "object", **schema}}
    (call,) = HERMES.read(HERMES.write([{"name": "f", "arguments": arguments}]), [tool]).calls
    return call.error


REMOTE = ["file:///etc/hostname", "http://localhost:9/a.json", "https://example.com/schema#/a", "a.json", "//localhost/a"]


@pytest.mark.parametrize("reference", REMOTE)
@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
def test_no_schema_makes_a_step_fetch_anything(reference, keyword, monkeypatch):
    fetched = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **_: fetched.append(arguments))
    for base in ({}, {"$id": "file:///etc/"}, {"$schema": reference}, {"not": {}, "$id": "http://localhost:9/"}):
        schema = {**base, "properties": {"a": {keyword: reference}}}
        error = wrong(schema, a="secret")
        assert "cannot be applied" in error and "secret" not in error
        with pytest.raises(UnsupportedSchema, match=r"\$\.properties\.a|\$\.not"):
            real().grammars.constraint([{"name": "f", "parameters": schema}], "f", None)
        with pytest.raises(UnsupportedSchema):
            real().grammars.constraint((), None, schema)
    assert fetched == []


SLOW = "^((a+)+$|a+!)"  # takes Python's `re` twice as long for each letter


@pytest.mark.parametrize("schema, arguments, error", [
    ({"properties": {"a": {"type": "string", "pattern": SLOW}}}, {"a": "a" * 40 + "b"}, "does not match"),
    ({"properties": {"a": {"type": "string", "pattern": SLOW}}}, {"a": "a" * 40}, ""),
    ({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, {"a": "b"}, ""),
    ({"properties": {"a": {"type": "string", "pattern": "b"}}}, {"a": "a\u0001\ud800"}, "does not match"),
    ({"patternProperties": {SLOW: {"type": "null"}}, "additionalProperties": False}, {"a" * 40 + "b": 1}, ""),
    ({"patternProperties": {SLOW: True}, "unevaluatedProperties": False}, {"a" * 40 + "b": 1}, ""),
    ({"propertyNames": {"pattern": SLOW}}, {"a" * 40 + "b": 1}, "does not match"),
    ({"not": {"const": 1}, "properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": SLOW}}},
     {"a": "a" * 40 + "b"}, "does not match"),
    ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, {"a": [{"b": i} for i in range(9000)]}, ""),
    ({"properties": {"a": {"items": {"enum": [f"{i}" for i in range(9000)]}}}}, {"a": ["x"] * 9000}, ""),
    ({"properties": {"a": {"multipleOf": 0.01}}}, {"a": 10**4000}, ""),
    ({"additionalProperties": False}, {"a": 1}, "unexpected"),
])  # fmt: skip
def test_a_call_is_checked_in_bounded_time_and_without_pythons_patterns(schema, arguments, error, monkeypatch):
    monkeypatch.setattr("jsonschema._keywords.re", None)
    monkeypatch.setattr("jsonschema._utils.re", None)
    assert error in wrong(schema, **arguments) and bool(error) == bool(wrong(schema, **arguments))


def test_schemas_that_double_the_work_are_not_followed_to_the_end():
    twice = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    assert wrong({"properties": {"a": {"$ref": "#/$defs/a0"}}, "$defs": {**twice, "a40": {"type": "string"}}}, a="b") == ""
    deep = {"a": 1}
    for _ in range(60):
        deep = {"a": deep}
    again = {"properties": {"a": {"allOf": [{"$ref": "#/$defs/d"}] * 2}}}
    assert wrong({"properties": {"a": {"$ref": "#/$defs/d"}}, "$defs": {"d": again}}, **deep) == ""


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000, '{"a":' * 100_000, "1e999", "-Infinity", '"\\ud800"', "[" * 900 + "]" * 900])
@pytest.mark.parametrize("dialect", [HERMES, *(dialect for _, dialect in NAMED)], ids=lambda dialect: dialect.name)
def test_absurd_values_are_read_or_reported(text, dialect):
    written = dialect.write([{"id": "call00000", "name": "f", "arguments": {"a": 73}}]).replace("73", text)
    for call in dialect.read(written, [{"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}]).calls:
        assert call.error or json.dumps(call.arguments)
