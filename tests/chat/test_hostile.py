"""Whatever a schema, a tool or a message holds: a turn ends with a valid value, with an error, or at its length."""

import json
import random
from contextlib import suppress
from functools import cache

import pytest
import tiny
from dialects import DIALECTS, TOKENS, template
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from minstate import ContextOverflow, Sampling, Speculation, UnsupportedSchema
from minstate.chat.content import BREAK, ControlTokens
from minstate.chat.conversation import Chat
from minstate.chat.dialect import HERMES, ID, INDEX, NEXT_ID
from minstate.chat.families import NAMED
from minstate.chat.grammar import Constraint, Grammars
from minstate.chat.messages import normalise
from minstate.chat.transcript import Transcript
from minstate.lab.engines.small_engine import byte_tokenizer
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


REMOTE = [
    "file:///etc/hostname",
    "http://localhost:9/a.json",
    "https://example.com/schema#/a",
    "a.json",
    "//localhost/a",
]


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
    ({"properties": {"a": {"type": "string", "pattern": "b"}}}, {"a": "a\u0001"}, "does not match"),
    ({"patternProperties": {SLOW: {"type": "null"}}, "additionalProperties": False}, {"a" * 40 + "b": 1}, ""),
    ({"patternProperties": {SLOW: True}, "unevaluatedProperties": False}, {"a" * 40 + "b": 1}, ""),
    ({"propertyNames": {"pattern": SLOW}}, {"a" * 40 + "b": 1}, "does not match"),
    ({"not": {}, "properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": SLOW}}},
     {"a": "a" * 40 + "b"}, "do not fit"),
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
    assert (
        wrong({"properties": {"a": {"$ref": "#/$defs/a0"}}, "$defs": {**twice, "a40": {"type": "string"}}}, a="b") == ""
    )
    deep = {"a": 1}
    for _ in range(60):
        deep = {"a": deep}
    again = {"properties": {"a": {"allOf": [{"$ref": "#/$defs/d"}] * 2}}}
    assert wrong({"properties": {"a": {"$ref": "#/$defs/d"}}, "$defs": {"d": again}}, **deep) == ""


@pytest.mark.parametrize(
    "text", ["1" * 5000, "[" * 100_000, '{"a":' * 100_000, "1e999", "-Infinity", '"\\ud800"', "[" * 900 + "]" * 900]
)
@pytest.mark.parametrize("dialect", [HERMES, *(dialect for _, dialect in NAMED)], ids=lambda dialect: dialect.name)
def test_absurd_values_are_read_or_reported(text, dialect):
    written = dialect.write([{"id": "call00000", "name": "f", "arguments": {"a": 73}}]).replace("73", text)
    for call in dialect.read(written, [{"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}]).calls:
        assert call.error or json.dumps(call.arguments)


# ---- Tools and messages


@pytest.mark.parametrize(
    "parameters", [False, True, "none", 5, [], ["a"], {"type": "string"}, {"type": "List"}], ids=str
)
@pytest.mark.parametrize("form", ["parameters", "input_schema", "inputSchema"])
def test_a_tool_whose_arguments_are_no_object_is_refused_by_name(parameters, form):
    tool = {"name": "weather", form: parameters}
    e = tiny.engine()
    with pytest.raises(UnsupportedSchema, match="tool 'weather' are not those of an object"):
        e.open(tools=[tool])
    for choice in ("auto", "required", "weather", "none", None):
        with pytest.raises(UnsupportedSchema, match="tool 'weather'"):
            e.submit(e.open(), token_ids=[5], tools=[tool], tool_choice=choice)


ALL_DIALECTS = {name: Chat(byte_tokenizer(template(name), TOKENS), frozenset([2])) for name in DIALECTS}


def write_call(chat, parameters, seed, name="f", choice="required"):
    """What a random model writes as a call, and the call; None if it cannot be enforced, or does not end."""
    grammars = Grammars(chat.tokenizer, len(TOKENS) + 256, frozenset([2]), chat.dialect)
    tool, draw, tokens = {"name": name, "parameters": parameters}, random.Random(seed), []
    try:
        place = grammars.constraint([tool], choice, None)
        while not place.ended and len(tokens) < 300:
            allowed = place.forced[:1] or place.mask(len(TOKENS) + 256).nonzero()[0].tolist()
            hasty = [token for token in allowed if chat.tokenizer.decode([token]) in ENDING]
            wanted = [draw.choice(hasty if hasty and draw.random() < 0.6 else allowed)]
            if not place.forced and draw.random() < 0.1:
                wanted = chat.tokenizer.encode(draw.choice(CLOSINGS))
            for token in wanted:
                if not place.ended and place.allows(token):
                    tokens.append(token)
                    place.advance(token)
    except UnsupportedSchema:
        return None
    return chat.dialect.read(chat.tokenizer.decode(tokens[:-1]), [tool]) if place.ended else None


CLOSINGS = [
    "\n</parameter>",
    "</parameter>\n</function>\n</tool_call>",
    "</param>\n</invoke>",
    "</arg_value>\n</tool_call>",
    '"',
]
ENDING = [*'"}])>\n<', END, "<|end_call|>", "<|end_calls|>", '<|"|>', "</tool_call>"]
STRING, NUMBER = {"type": "string"}, {"type": "integer", "maximum": 9, "minimum": 0}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("parameters", [
    {"properties": {"a": NUMBER}, "required": ["b"]},
    {"required": ["a", "b"]},
    {"properties": {"a": NUMBER}, "required": ["b"], "additionalProperties": {"type": "null"}},
    {"properties": {"a": NUMBER}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": NUMBER}, "required": ["b"]}}},
    {"properties": {"a": {"type": "string", "enum": ["x", 3, None]}}, "required": ["a"]},
    {"properties": {"a": {"anyOf": [STRING, NUMBER], "enum": ["x", 3]}}, "required": ["a"]},
    {"properties": {"a": {"$ref": "#/$defs/a", "enum": [1, 2]}}, "$defs": {"a": {"minimum": 2}}, "required": ["a"]},
    {"properties": {"a": {"const": "5"}, "b": {"enum": [5, "5", "true", True]}}, "required": ["a", "b"]},
    {"properties": {"a": True, "b": {}}, "required": ["a", "b"]},
    {"properties": {"a": STRING, "b": STRING}, "required": ["a", "b"]},
], ids=str)  # fmt: skip
def test_a_call_that_a_grammar_lets_end_fits_its_schema_in_every_dialect(parameters, dialect):
    for seed in range(6):
        if reply := write_call(ALL_DIALECTS[dialect], parameters, seed):
            if "is not JSON" in reply.calls[0].error:
                continue  # a number without bounds may have any exponent
            assert [(call.name, call.error) for call in reply.calls] == [("f", "")], reply.text
            Draft202012Validator(parameters).validate(reply.calls[0].arguments)


def test_most_of_these_schemas_can_be_enforced_in_most_dialects():
    simple = {"properties": {"a": STRING, "b": {"enum": ["x", 3]}}, "required": ["a", "b", "c"]}
    found = {name: [write_call(chat, simple, seed) for seed in range(4)] for name, chat in ALL_DIALECTS.items()}
    assert {name for name, replies in found.items() if not any(replies)} == set()


# What the tokenizer adds, what chat/ puts in the place of something while it renders, and marks of dialects.
NASTY = [
    *TOKENS,
    BREAK,
    ID,
    NEXT_ID,
    INDEX,
    "\uf0fe",
    "\uf0ff",
    "</parameter>",
    "=",
    ",",
    ":",
    "(",
    '"',
    "\\",
    "\n",
    " ",
]
TEXTS = st.lists(st.sampled_from([*NASTY, "a", "b"]), min_size=1, max_size=4).map("".join)


@given(name=TEXTS, keys=st.lists(TEXTS, min_size=1, max_size=2), const=TEXTS, data=st.data())
def test_whatever_names_and_constants_spell_a_call_is_right_or_refused(name, keys, const, data):
    chat = ALL_DIALECTS[data.draw(st.sampled_from([*DIALECTS]))]
    value = data.draw(st.sampled_from([{"const": const}, {"enum": [const, const + "!", 3]}, STRING]))
    parameters = {"type": "object", "properties": dict.fromkeys(keys, value), "required": keys}
    if reply := write_call(chat, parameters, 0, name):
        assert [(call.name, call.error) for call in reply.calls] == [(name, "")], reply.text
        Draft202012Validator(parameters).validate(reply.calls[0].arguments)


@given(text=TEXTS, other=TEXTS)
def test_no_text_changes_the_control_tokens_of_a_delta(text, other):
    """Neither in old messages, nor in the ids of calls, nor in the new message itself."""
    for chat in (ALL_DIALECTS["a JSON list with ids"], ALL_DIALECTS["numbered ids that hold the name"]):
        controls = set(chat.template.control.ids.values())

        def delta(said, call_id, chat=chat):
            call = {"id": call_id, "name": "f", "arguments": {"a": said}}
            talk = [{"role": "user", "content": said}, {"role": "assistant", "content": said, "tool_calls": [call]}]
            known = Transcript(normalise(talk), in_log=2)
            return chat.delta(known, normalise([{"role": "tool", "tool_call_id": call_id, "content": "fine"}]), 5)

        plain = delta("x", "y")
        assert [i for i in delta(text, other) if i in controls] == [i for i in plain if i in controls]
        assert delta(text, "y") == plain


@pytest.mark.parametrize("where", ["user", "tool", "call", "schema", "replay", "begun"])
def test_a_message_that_no_context_holds_is_refused_before_it_is_encoded(where, monkeypatch):
    e, huge = real(), "word " * 1_000_000
    encode, session = ControlTokens.encode, e.open()
    monkeypatch.setattr(ControlTokens, "encode", lambda self, text: encode(self, text) if len(text) < 10**6 else 1 / 0)
    session.send("hi", replay="a")
    before = session.token_ids
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": huge}}]}
    tool = {"name": "f", "description": huge}
    attempts = {
        "user": lambda: session.send(huge),
        "tool": lambda: session.send({"role": "tool", "content": huge}),
        "call": lambda: e.open([{"role": "user", "content": "hi"}, call]),
        "schema": lambda: e.open("hi", tools=[tool]),
        "replay": lambda: session.send("hi", replay=huge),
        "begun": lambda: session.send([{"role": "user", "content": "hi"}, {"role": "assistant", "content": huge}]),
    }
    with pytest.raises(ContextOverflow, match="letters"):
        attempts[where]()
    assert session.token_ids == before and not session.running
    e.check()


@pytest.mark.parametrize("schema", [
    {"const": "x" * 10**6}, {"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
    {"type": "array", "minItems": 2.0, "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"minItems": 1.0}}},
    {"type": "string", "maxLength": 1e300}, {"type": "string", "minLength": 10**7},
    {"type": "array", "minItems": 10**7},
    {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, {"enum": ["a" * 1000] * 1000},
], ids=lambda schema: str(schema)[:60])  # fmt: skip
def test_a_schema_of_absurd_size_is_refused_or_enforced(schema):
    request = None
    with suppress(UnsupportedSchema):
        request = reply(tiny.engine(num_pages=100), response_format=schema, max_new_tokens=20)
    assert request is None or request.error or request.turn.finish_reason == "length"


ADDED = st.sampled_from([*real().tokenizer.get_added_vocab(), "a", '"', "\\", "é", " ", "|", ">"])
SPELLINGS = st.lists(ADDED, min_size=1, max_size=3).map("".join)


@given(text=SPELLINGS, other=SPELLINGS, seed=st.integers(0, 99), speculation=st.booleans(), data=st.data())
def test_whatever_a_schema_spells_a_reply_fits_it(text, other, seed, speculation, data):
    named = {"type": "object", "properties": {text: {"const": other}, other: NUMBER}, "required": [other]}
    pattern = "".join(f"\\{char}" if char in '"\\|[]' else char for char in text)
    schema = data.draw(st.sampled_from([
        {"const": text}, {"enum": [text, other, [text]]}, {"const": {text: [other]}}, named,
        {"type": "string", "pattern": f"^({pattern.replace(chr(34), 'q')})+$", "maxLength": 60},
        {"type": "array", "items": {"const": text}, "minItems": 1, "maxItems": 2},
    ]))  # fmt: skip
    request = reply(real(speculation), seed, response_format=schema)
    if request.turn and request.turn.finish_reason == "stop":
        Draft202012Validator(schema).validate(json.loads(request.turn.text))
    assert request.turn or isinstance(request.error, UnsupportedSchema)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_reply_of_nothing_but_space_is_read_at_once(dialect):
    """A pattern that looks for a mark from each space on would take minutes."""
    read, space = ALL_DIALECTS[dialect].dialect.read, " " * 300_000
    opens = ALL_DIALECTS[dialect].dialect.open
    for text in (space, f"{opens}{space}", f"{opens}f{space}"):
        assert all(call.error for call in read(text).calls)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_number_that_is_not_finite_is_an_error_in_every_dialect(dialect):
    own = ALL_DIALECTS[dialect].dialect
    written = own.write([{"id": "call00000", "name": "f", "arguments": {"a": 73}}]).replace("73", "1e999")
    (call,) = own.read(written, [{"name": "f", "parameters": {"properties": {"a": {"type": "number"}}}}]).calls
    assert call.error and call.arguments == {}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("choice", ["none", "auto"])
def test_a_call_in_letters_is_no_way_around_the_grammar(dialect, choice):
    """Where the marks of calls are control tokens, a reader takes the same letters for a call too."""
    chat = ALL_DIALECTS[dialect]
    grammars = Grammars(chat.tokenizer, len(TOKENS) + 256, frozenset([2]), chat.dialect)
    tool = {"name": "f", "parameters": {"properties": {"a": NUMBER}, "required": ["a"]}}
    written = chat.dialect.write([{"id": "call00000", "name": "f", "arguments": {"a": "no number"}}])
    place = grammars.constraint([tool], choice, None)
    for token in chat.template.encode(chat.template.control.protect(written.lstrip())):
        if not place.allows(token):
            return
        place.advance(token)
    assert not place.allows(2) or not chat.dialect.read(written).calls
