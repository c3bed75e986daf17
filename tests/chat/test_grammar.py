"""Replies fit a grammar: one spelling, no other text, forced tokens where there is no choice, errors before the turn
where a schema cannot be enforced."""

import json
import random

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tiny import VOCABULARY, drafting, engine, tokenizer

from minstate import BadMessage, BadValue, BrokenInvariant, Engine, Sampling, UnsupportedModel, UnsupportedSchema
from minstate.chat.dialect import HERMES
from minstate.chat.grammar import Grammars
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.sampling import choose

END = 2
LOOK = {"type": "function", "function": tiny.LOOK}
WAIT = {"name": "wait"}
SORT = {
    "name": 'sört "it\\',
    "parameters": {
        "type": "object",
        "$defs": {"key": {"enum": ["größe", 'a"b', "\\"]}},
        "properties": {
            "keys": {"type": "array", "items": {"$ref": "#/$defs/key"}, "minItems": 1, "maxItems": 2},
            "how": {
                "type": "object",
                "properties": {"up": {"type": "boolean"}, "at": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["up"],
                "additionalProperties": False,
            },
        },
        "required": ["keys", "how"],
        "additionalProperties": False,
    },
}
TOOLS = [LOOK, WAIT, SORT]


def ids(text):
    return tokenizer().encode(text, add_special_tokens=False)


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


@pytest.fixture(scope="module")
def grammars():
    return Grammars(tokenizer(), VOCABULARY, frozenset([END]))


def taken(constraint, text):
    """How much of a text fits, and whether the reply may end there, or has."""
    for place, token in enumerate(ids(text)):
        if not constraint.allows(token):
            return text.encode()[:place].decode(errors="replace"), False
        constraint.advance(token)
    return text, constraint.ended or constraint.allows(END)


A_CALL = call("look", path="a.py", deep=True)
FITS = [
    ("auto", ""),
    ("auto", "no call at all, not even <tool_cal or </tool_call>"),
    ("auto", A_CALL),
    ("auto", f"I look. {A_CALL} and {call('wait')}\n done."),
    ("auto", A_CALL + A_CALL),
    ("required", A_CALL),
    ("required", call("look", path="")),
    ("required", call("wait")),
    ("required", call('sört "it\\', keys=["größe", 'a"b'], how={"up": False})),
    ("required", call('sört "it\\', keys=["\\"], how={"up": True, "at": 3})),
    ("look", A_CALL),
    ("wait", call("wait")),
    ("none", "{} [] <tool_call no </tool_call>"),
]


@pytest.mark.parametrize("choice, text", FITS)
def test_what_fits_is_accepted_to_its_end(choice, text, grammars):
    assert taken(grammars.constraint(TOOLS, choice, None), text) == (text, True)


@pytest.mark.parametrize(
    "choice, fits, then",
    [
        ("auto", "I look. <tool_call>", " "),  # from there on it is a call, and no text
        ("auto", f"{A_CALL}<tool_call>", "x"),
        ("auto", '<tool_call>\n{"name": "', "n"),  # a tool that is not there
        ("auto", '<tool_call>\n{"name": "look", "arguments": {"', "deep"),  # an argument is missing
        ("auto", '<tool_call>\n{"name": "look", "arguments": {"path": "abcd', "e"),
        ("auto", '<tool_call>\n{"name": "look", "arguments": {"path": "a"', ', "x'),
        ("auto", '<tool_call>\n{"name": "look", "arguments": {"path": "a", "deep": ', "1"),
        ("auto", '<tool_call>\n{"name": "look", "arguments": {"path": "a"}', " "),
        ("required", "", "I"),
        ("required", "", " "),
        ("required", "<tool_call>", "{"),
        ("required", '<tool_call>\n{"name":', '"'),  # another spelling
        ("required", '<tool_call>\n{"name": "look",', '"'),
        ("required", '<tool_call>\n{"name": "look", "arguments": {"path": "a",', '"'),
        ("required", '<tool_call>\n{"name": "look", "arguments": {"path": "a", "deep": true', " "),
        ("required", A_CALL, "\n"),
        ("required", A_CALL, "<tool_call>"),
        ("look", '<tool_call>\n{"name": "', "w"),
        ("look", A_CALL, A_CALL),
        ("none", "well, <tool_call", ">"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_begins_not_to(choice, fits, then, grammars):
    constraint = grammars.constraint(TOOLS, choice, None)
    accepted, may_end = taken(constraint, fits + then)
    assert (accepted, may_end) == (fits, False) or (accepted + "|", may_end) == (fits + then[:-1] + "|", False)
    with pytest.raises(BrokenInvariant, match="does not fit"):
        constraint.advance(ids((fits + then)[len(accepted) :])[0])


SCHEMAS = [
    ({"type": "integer"}, "-12", "1.0"),
    ({"enum": ["ja", "nein", 3]}, '"nein"', '"vielleicht"'),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, "[true, false]", "[true]"),
    ({"type": "array", "items": {"type": "boolean"}}, "[true, false]", "[true,false]"),
    ({"type": "string", "pattern": "^a+b$"}, '"aab"', '"aaa"'),
    ({"type": "string", "format": "date"}, '"2024-02-29"', '"2024-13-01"'),
    ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "null", "true"),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"const": "é"}}}, '"é"', '"e"'),
    (LOOK["function"]["parameters"], '{"path": "a"}', '{ "path": "a"}'),
    (LOOK["function"]["parameters"], '{"path": "a", "deep": true}', '{"deep": true, "path": "a"}'),
    ({"x-guidance": {"whitespace_flexible": True}, "type": "object", "properties": {"a": {"const": 1}},
      "required": ["a"], "additionalProperties": False}, '{"a": 1}', '{"a":1}'),
]  # fmt: skip


@pytest.mark.parametrize("choice", [None, "auto", "none"])
@pytest.mark.parametrize("schema, fits, fits_not", SCHEMAS)
def test_a_whole_reply_fits_a_schema(schema, fits, fits_not, choice, grammars):
    assert taken(grammars.constraint(TOOLS, choice, schema), fits) == (fits, True)
    accepted, may_end = taken(grammars.constraint((), choice, schema), fits_not)
    assert accepted != fits_not and not may_end


@pytest.mark.parametrize("choice, tools, anything_goes", [(None, TOOLS, True), ("auto", (), True), (None, (), True)])
def test_without_tools_or_with_no_choice_anything_goes(choice, tools, anything_goes, grammars):
    assert (grammars.constraint(tools, choice, None) is None) == anything_goes


@pytest.mark.parametrize("choice, text", FITS)
def test_what_is_forced_is_what_alone_is_allowed(choice, text, grammars):
    """A forced run is computed at the token before it; the mask agrees, token by token."""
    constraint, runs = grammars.constraint(TOOLS, choice, None), 0
    for token in [*ids(text), END]:
        mask = constraint.mask(VOCABULARY) if not constraint.forced else None
        if mask is None:
            run = constraint.forced
            assert constraint.allows(run[0]) and not any(constraint.allows(t) for t in range(VOCABULARY) if t != run[0])
            runs += 1
        else:
            assert mask.dtype == bool and mask.shape == (VOCABULARY,)
            assert mask.tolist() == [constraint.allows(t) for t in range(VOCABULARY)]
        constraint.advance(token)
        assert mask is not None or constraint.forced[: len(run) - 1] == run[1:]
    assert constraint.ended and constraint.forced == () and not any(map(constraint.allows, range(VOCABULARY)))
    assert runs > 20 or "<tool_call>" not in text


def test_a_call_s_opening_is_forced_up_to_the_first_choice(grammars):
    constraint = grammars.constraint(TOOLS, "look", None)
    assert bytes(token_bytes(constraint.forced)).decode() == '<tool_call>\n{"name": "look", "arguments": {"path": "'
    assert HERMES.opening(LOOK) == '<tool_call>\n{"name": "look", "arguments": {"path": '
    assert taken(grammars.constraint(TOOLS, "required", None), HERMES.opening(SORT))[0] == HERMES.opening(SORT)
    assert HERMES.opening(WAIT) == '<tool_call>\n{"name": "wait", "arguments": {'
    optional = {"name": "x", "parameters": {"properties": {"a": {}, "b": {}}, "required": ["b"]}}
    assert HERMES.opening(optional).endswith('"arguments": {')
    several = grammars.constraint(TOOLS, "required", None)
    assert bytes(token_bytes(several.forced)).decode() == '<tool_call>\n{"name": "'


def token_bytes(tokens):
    return tokenizer().decode(list(tokens)).encode()


def test_the_end_is_forced_where_a_call_must_end(grammars):
    constraint = grammars.constraint(TOOLS, "wait", None)
    for token in ids(call("wait")):
        constraint.advance(token)
    assert (constraint.forced, constraint.ended) == ((END,), False)
    constraint.advance(END)
    assert (constraint.forced, constraint.ended) == ((), True)
    with pytest.raises(BrokenInvariant):
        constraint.advance(END)


def test_without_an_end_token_a_reply_is_over_with_its_last_character():
    constraint = Grammars(tokenizer(), VOCABULARY, frozenset()).constraint(TOOLS, "wait", None)
    assert taken(constraint, call("wait")[:-1]) == (call("wait")[:-1], False)
    constraint.advance(ids(">")[0])
    assert constraint.ended


@pytest.mark.parametrize("eos_ids, end", [({0, 2}, 2), ({0, 1}, 0)])
def test_the_tokenizer_s_own_end_is_preferred(eos_ids, end):
    constraint = Grammars(tokenizer(), VOCABULARY, frozenset(eos_ids)).constraint(TOOLS, "wait", None)
    for token in ids(call("wait")):
        constraint.advance(token)
    assert constraint.forced == (end,)
    free = Grammars(tokenizer(), VOCABULARY, frozenset(eos_ids)).constraint(TOOLS, "auto", None)
    assert all(map(free.allows, eos_ids)) and not any(free.allows(t) for t in {0, 1, 2} - eos_ids)


@given(data=st.data(), choice=st.sampled_from(["auto", "required", "none"]), at=st.integers(0, 40))
def test_a_copy_goes_on_by_itself(data, choice, at):
    grammars = Grammars(tokenizer(), VOCABULARY, frozenset([END]))
    text = ids({"auto": f"so {A_CALL}", "required": A_CALL, "none": "nothing, nothing at all, nothing to call"}[choice])
    constraint, fresh = grammars.constraint(TOOLS, choice, None), grammars.constraint(TOOLS, choice, None)
    for token in text[:at]:
        constraint.advance(token)
        fresh.advance(token)
    copy = constraint.copy()
    for _ in range(data.draw(st.integers(1, 12))):
        if copy.ended:
            break
        allowed = [token for token in range(VOCABULARY) if copy.allows(token)]
        copy.advance(data.draw(st.sampled_from(allowed)))
    assert (constraint.forced, constraint.ended) == (fresh.forced, fresh.ended)
    for token in text[at:]:
        assert constraint.allows(token) and constraint.forced == fresh.forced
        constraint.advance(token)
        fresh.advance(token)


# ---- What cannot be had


UNSUPPORTED = [
    {"not": {"type": "string"}},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "format": "no such format"},
    {"$ref": "https://example.com/schema"},
    {"type": "no such type"},
    {"type": "array", "uniqueItems": True},
]


def unchanged(session, *arguments, error, match=None, **options):
    """A turn that is refused: nothing has happened."""
    e, before = session.engine, (session.token_ids, session.messages)
    with pytest.raises(error, match=match):
        e.submit(session, *arguments, **options)
    assert (session.token_ids, session.messages) == before and not session.running and not e.scheduler.running
    e.check()


@pytest.mark.parametrize("schema", UNSUPPORTED, ids=str)
def test_a_schema_that_cannot_be_enforced_is_refused_before_anything_happens(schema):
    session = drafting().open()
    session.send("hi", max_new_tokens=3)
    unchanged(
        session, "more", max_new_tokens=9, response_format=schema, error=UnsupportedSchema, match="cannot be enforced"
    )
    tool = {"name": "x", "parameters": {"type": "object", "properties": {"a": schema}, "required": ["a"]}}
    unchanged(
        session,
        "more",
        max_new_tokens=9,
        tools=[tool],
        tool_choice="required",
        error=UnsupportedSchema,
        match="tool 'x'",
    )
    assert session.send("more", max_new_tokens=3).stats.generated
    with pytest.warns(UserWarning, match="left free: .* tool 'x'"):
        assert session.send("more", tools=[tool], max_new_tokens=3).stats.generated


@pytest.mark.parametrize(
    "options, error",
    [
        ({"tool_choice": "walk"}, BadValue),
        ({"tool_choice": ""}, BadValue),
        ({"tool_choice": 5}, BadValue),
        ({"tool_choice": "required", "tools": []}, BadValue),
        ({"tool_choice": "look", "tools": []}, BadValue),
        ({"tool_choice": "required", "response_format": {}}, BadValue),
        ({"tool_choice": "look", "response_format": {}}, BadValue),
        ({"response_format": "json"}, BadValue),
        ({"response_format": ["integer"]}, BadValue),
        ({"response_format": {"enum": [b"bytes"]}}, BadValue),
        ({"tools": [{"parameters": {}}]}, UnsupportedSchema),
        ({"tools": [{"name": ""}]}, UnsupportedSchema),
        ({"tools": [{"name": 7}]}, UnsupportedSchema),
        ({"tools": [{"name": "x", "parameters": ["a"]}]}, UnsupportedSchema),
        ({"tools": [{"function": "x"}]}, BadMessage),
        ({"tool_choice": {"type": "function"}}, BadValue),
        ({"tool_choice": {"type": "function", "function": {"name": "no such tool"}}}, BadValue),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "no schema"}}}, BadValue),
        ({"tool_choice": ["look"]}, BadValue),
        ({"response_format": {"enum": ["\ud800"]}}, (BadValue, UnsupportedSchema)),
    ],
    ids=str,
)
def test_absurd_wishes_are_refused_before_anything_happens(options, error):
    unchanged(engine().open(), token_ids=[5], error=error, **{"tools": TOOLS, "max_new_tokens": 9, **options})


@pytest.mark.parametrize("name", ["auto", "required", "none"])
def test_a_tool_may_have_the_name_of_a_choice(name, grammars):
    for text in (call(name), call("wait")):
        constraint = grammars.constraint([{"name": name}, WAIT], "auto" if name == "auto" else "required", None)
        assert taken(constraint, text) == (text, True)


def unreadable_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=tokenizer().chat_template)


def test_a_tokenizer_that_cannot_be_read_serves_for_replies_without_constraint():
    session = Engine(engine().model, unreadable_tokenizer(), speculation=True).open("a b", tools=[LOOK])
    unchanged(session, "b", max_new_tokens=3, error=UnsupportedModel, match="tool_choice=None")
    unchanged(session, "b", max_new_tokens=3, response_format={}, error=UnsupportedModel)
    assert session.send("b", max_new_tokens=3, tool_choice=None).stats.generated == 3
    assert session.send("b", replay=[0, 1], tool_choice="auto").token_ids == (0, 1)


# ---- In turns


CHOICES = ["auto", "required", "none", "look"]


def reply(e, choice, seed, **options):
    """A constrained reply of a random model, which generates anything that the grammar allows."""
    sampling = Sampling(temperature=1.2, seed=seed) if seed else Sampling()
    settings = {"max_new_tokens": 190, "sampling": sampling, "tools": TOOLS, "tool_choice": choice}
    return e.open().send(token_ids=ids(f"say {seed}"), **{**settings, **options})


@pytest.mark.parametrize("choice", CHOICES)
def test_calls_of_a_random_model_are_valid_and_can_be_read(choice):
    e, finished, calls = drafting(num_pages=300), 0, []
    for seed in range(12):
        turn = reply(e, choice, seed)
        e.check()
        parsed = HERMES.read(turn.text, TOOLS).calls
        finished += turn.finish_reason == "stop"
        if turn.finish_reason == "stop":
            assert turn.token_ids[-1] == END
            calls += parsed
            assert (choice not in ("required", "look")) or (len(parsed) == 1 and turn.text.startswith("<tool_call>"))
            assert choice != "none" or not parsed
        for one in parsed[: None if turn.finish_reason == "stop" else -1]:
            assert one.error == ""
    assert finished > 6 or choice in ("auto", "none")
    assert {one.name for one in calls} >= {"required": {"look", "wait"}, "look": {"look"}}.get(choice, set())


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_model_that_begins_a_call_has_to_go_on_with_it(choice):
    """Given the opening by replay, then on its own: as a turn of its own the reply has to fit again."""
    e = engine(num_pages=300)
    constraint = e.grammars.constraint(TOOLS, choice, None)
    draw, tokens = random.Random(4), ids("<tool_call>")
    for token in tokens:
        constraint.advance(token)
    while not constraint.ended and len(tokens) < 400:
        allowed = [token for token in range(VOCABULARY) if constraint.allows(token)]
        tokens.append(END if END in allowed else draw.choice(allowed))
        constraint.advance(tokens[-1])
    (one,) = HERMES.read(tokenizer().decode(tokens, skip_special_tokens=True), TOOLS).calls
    assert constraint.ended and one.error == "" and one.name in ("look", "wait", SORT["name"])


@pytest.mark.parametrize("seed", range(8))
def test_replies_of_a_random_model_fit_their_schema(seed):
    turn = reply(drafting(num_pages=300), "none", seed, response_format=SORT["parameters"])
    assert turn.finish_reason == "stop" and turn.tool_calls == ()
    Draft202012Validator(SORT["parameters"]).validate(json.loads(turn.text))
    assert json.dumps(json.loads(turn.text), ensure_ascii=False) == turn.text or "\\" in turn.text


@pytest.mark.parametrize("choice", [*CHOICES, None])
def test_constrained_replies_are_the_same_in_every_engine_with_drafts_or_without(choice):
    for seed in (0, 1, 2):
        turns = [
            reply(make(cls, num_pages=300), choice, seed, max_new_tokens=100)
            for cls in (Engine, NaiveEngine, PrefixReuseEngine)
            for make in (engine, drafting)
        ]
        assert len({(turn.token_ids, turn.text, turn.finish_reason, turn.stats.forced) for turn in turns}) == 1
        assert (turns[0].stats.forced > 20) == (choice in ("required", "look"))


def test_calls_are_checked_against_the_tools_of_their_turn():
    session = engine(num_pages=800, positions=4000).open("hi", tools=[WAIT])
    assert session.send("look", tools=[LOOK], replay=A_CALL).tool_calls[0].error == ""
    assert "no tool" in session.send("look", tools=[LOOK], replay=call("wait")).tool_calls[0].error


def test_a_call_that_was_cut_off_is_no_call():
    turn = reply(engine(num_pages=300), "look", 3, max_new_tokens=70)
    whole = reply(engine(num_pages=300), "look", 3)
    assert whole.stats.generated > 70 and turn.finish_reason == "length" and whole.finish_reason == "stop"
    assert turn.token_ids == whole.token_ids[:70]
    (cut,) = turn.tool_calls
    assert (cut.name, cut.arguments) == ("", {}) and "cut off" in cut.error


@pytest.mark.parametrize(
    "text, error",
    [
        (call("look", path="a"), ""),
        (call("walk"), "no tool of the name 'walk'"),
        (call("look"), "'path' is a required property"),
        (call("look", path=3), "3 is not of type 'string'"),
        (call("look", path="a", far=True), "do not fit"),
        (call("wait", long=True), ""),
        ("<tool_call>\n{'name': 3}\n</tool_call>", "not JSON"),
        ("<tool_call>\n[3]\n</tool_call>", "not of the form"),
    ],
)
def test_a_call_that_does_not_fit_says_why(text, error):
    (one,) = engine(num_pages=800, positions=4000).open("hi", tools=TOOLS).send("do", replay=text).tool_calls
    assert error in one.error and bool(error) == bool(one.error)


@pytest.mark.parametrize("make", [engine, drafting])
@pytest.mark.parametrize("choice", ["required", "look", "none", "auto"])
def test_ignoring_the_end_what_follows_is_free(make, choice):
    """Once the reply has ended, the grammar ends with it."""
    e = make(num_pages=300)
    whole = reply(e, choice, 1)
    turn = reply(e, choice, 1, sampling=Sampling(temperature=1.2, seed=1, ignore_eos=True))
    assert (turn.stats.generated, turn.finish_reason) == (190, "length")
    assert turn.token_ids[: whole.stats.generated] == whole.token_ids
    if choice in ("required", "look"):
        assert 50 < whole.stats.generated < 150 and whole.finish_reason == "stop"
        assert not turn.tool_calls[0].error and len(set(turn.token_ids[whole.stats.generated :])) > 5


def test_a_stop_string_inside_what_is_forced_ends_the_turn():
    turns = [reply(make(num_pages=300), "required", 1, sampling=Sampling(stop="ame")) for make in (engine, drafting)]
    assert turns[0].token_ids == turns[1].token_ids and turns[0].text == turns[1].text == '<tool_call>\n{"n'
    assert turns[0].finish_reason == "stop" and "cut off" in turns[0].tool_calls[0].error


def test_a_replay_need_not_fit_and_is_guessed_at_as_long_as_it_does():
    output = [*ids(A_CALL[:-20] + "and so on, in free words"), END]
    for make in (engine, drafting):
        e = make(num_pages=300)
        turn = e.open().send(token_ids=[9], tools=TOOLS, tool_choice="look", replay=output)
        e.check()
        assert list(turn.token_ids) == output
        drafted = {guess.source for verdict in turn.verdicts for guess in verdict.draft}
        assert ("grammar" in drafted) == (make is drafting)
    unenforceable = drafting().open().send(token_ids=[9], replay=[5, 6], response_format={"not": {}})
    assert unenforceable.token_ids == (5, 6), "nor need anything be enforced"


class Counting:
    """A constraint that counts how often its mask is made."""

    def __init__(self, inner):
        self.inner, self.masks = inner, 0

    @property
    def forced(self):
        return self.inner.forced

    def allows(self, token):
        return self.inner.allows(token)

    def mask(self, size):
        self.masks += 1
        return self.inner.mask(size)


def test_a_mask_is_made_only_where_the_most_likely_token_is_not_allowed(grammars):
    import torch

    def logits(best, second):
        row = torch.zeros(VOCABULARY)
        row[best], row[second] = 9.0, 8.0
        return row

    constraint = Counting(grammars.constraint(TOOLS, "required", None))
    first = constraint.forced[0]
    assert choose(logits(7, 8), Sampling(), 0, constraint) == first and constraint.masks == 0, "forced"
    assert choose(logits(7, 8), Sampling(temperature=1.0), 0, constraint) == first and constraint.masks == 0
    for token in ids('<tool_call>\n{"name": "'):
        constraint.inner.advance(token)
    wait, look, other = ids("wlx")
    assert choose(logits(wait, look), Sampling(), 0, constraint) == wait and constraint.masks == 0, "allowed"
    assert choose(logits(other, look), Sampling(), 0, constraint) == look and constraint.masks == 1
    assert choose(logits(other, wait), Sampling(), 0, constraint, best=other) == wait and constraint.masks == 2
    drawn = {choose(logits(other, wait), Sampling(temperature=3.0, seed=s), 0, constraint) for s in range(60)}
    assert constraint.masks == 62 and drawn == {wait, look, ids("s")[0]}


def test_grammars_are_compiled_once_and_constraints_are_apart(grammars, monkeypatch):
    compiled, compile_one = [], Grammars._compile
    monkeypatch.setattr(Grammars, "_compile", lambda self, lark: compiled.append(lark) or compile_one(self, lark))
    own = Grammars(tokenizer(), VOCABULARY, frozenset([END]))
    one, other = (own.constraint(TOOLS, "required", None) for _ in range(2))
    assert len(compiled) == 1
    one.advance(one.forced[0])
    assert len(one.forced) == len(other.forced) - 1
    own.constraint(TOOLS, "look", None)
    assert len(compiled) == 2
