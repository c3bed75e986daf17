"""A schema is enforced to the letter or refused by name, before a reply begins. One bad tool spoils no other."""

import json
import random
import warnings
from functools import cache

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from llguidance import LLMatcher
from tiny import VOCABULARY, tokenizer

from minstate import BadValue, UnsupportedSchema
from minstate.chat.grammar import Constraint, Grammars
from minstate.chat.keywords import REFUSED, SUBSCHEMAS, TYPES, VALUES
from minstate.chat.schema import arguments_grammar, value_grammar

END = 2
ANY = {"type": "object"}


def ids(text):
    return tokenizer().encode(text, add_special_tokens=False)


@cache
def grammars():
    return Grammars(tokenizer(), VOCABULARY, frozenset([END]))


def constraint(lark):
    return Constraint(grammars()._compiled(f"start: {lark}").deep_copy(), END)


def fits(lark, text):
    """Whether a grammar accepts a text, token by token, and lets it end."""
    place = constraint(lark)
    for token in ids(text):
        if not place.allows(token):
            return False
        place.advance(token)
    return place.ended or place.allows(END)


def raw(schema):
    """A schema as llguidance gets it without our reading."""
    spelling = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**schema, 'x-guidance': spelling})}"


def raw_error(schema):
    return LLMatcher.validate_grammar(f"start: {raw(schema)}")


def some_text(lark, draw, most=400):
    """What a random model writes under a grammar, or "" if it doesn't come to an end."""
    place, tokens = constraint(lark), []
    closing = [*ids('"}]n'), END]  # n, for null
    while not place.ended and len(tokens) < most:
        allowed = place.forced[:1] or place.mask(VOCABULARY).nonzero()[0].tolist()
        ending = [token for token in allowed if token in closing]
        tokens.append(draw.choice(ending if ending and draw.random() < 0.6 else allowed))
        place.advance(tokens[-1])
    return tokenizer().decode(tokens, skip_special_tokens=True) if place.ended else ""


# ---- The table of keywords


ENFORCED = {  # a schema with the keyword, what fits, and what doesn't
    "$ref": ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, "null", "1"),
    "type": ({"type": ["integer", "null"]}, "3", "true"),
    "enum": ({"enum": ["a", 3, {"b": [None]}]}, '{"b": [null]}', '"b"'),
    "const": ({"const": "\u00e9"}, '"\u00e9"', '"e"'),
    "minimum": ({"type": "integer", "minimum": -5}, "-5", "-6"),
    "maximum": ({"type": "number", "maximum": 0.5}, "0.5", "0.51"),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 1}, "1.01", "1"),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 1}, "0", "1"),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, "49", "48"),
    "minLength": ({"type": "string", "minLength": 2}, '"ab"', '"a"'),
    "maxLength": ({"type": "string", "maxLength": 1}, '"\u00e9"', '"ab"'),
    "pattern": ({"type": "string", "pattern": "^a+$"}, '"aa"', '"ab"'),
    "format": ({"type": "string", "format": "ipv4"}, '"1.2.3.4"', '"1.2.3"'),
    "items": ({"type": "array", "items": {"type": "null"}}, "[null, null]", "[1]"),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}]}, "[null, 1]", "[1]"),
    "minItems": ({"type": "array", "minItems": 1}, "[1]", "[]"),
    "maxItems": ({"type": "array", "maxItems": 1}, "[1]", "[1, 2]"),
    "properties": ({"type": "object", "properties": {"a": {"type": "null"}}}, '{"a": null, "b": 1}', '{"a": 1}'),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {"type": "null"}}}, '{"b": 1}', '{"ab": 1}'),
    "additionalProperties": ({"type": "object", "additionalProperties": {"type": "null"}}, '{"a": null}', '{"a": 1}'),
    "required": ({"type": "object", "required": ["a"]}, '{"a": 1}', "{}"),
    "minProperties": ({"type": "object", "minProperties": 1}, '{"a": 1}', "{}"),
    "maxProperties": ({"type": "object", "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 1}'),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "3", "2"),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "3", "true"),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, "3", "true"),
}  # fmt: skip
EXAMPLES = {  # of keywords that are refused, each with a value that restricts
    "not": {}, "if": True, "then": False, "else": False, "dependencies": {"a": ["b"]}, "contains": {"type": "null"},
    "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": False}, "unevaluatedProperties": False,
    "unevaluatedItems": False, "additionalItems": False, "minContains": 1, "maxContains": 1, "$dynamicRef": "#a",
    "$dynamicAnchor": "a", "$recursiveRef": "#", "$recursiveAnchor": True, "uniqueItems": True,
    "propertyNames": {"maxLength": 1}, "disallow": "string", "divisibleBy": 2, "extends": {"type": "null"},
}  # fmt: skip
IGNORED_BY_LLGUIDANCE = {
    "additionalItems",
    "disallow",
    "divisibleBy",
    "extends",
}  # the others, llguidance refuses itself
ANNOTATIONS = {
    "title": "t", "description": "d", "default": 5, "examples": [5], "deprecated": True, "readOnly": True,
    "writeOnly": True, "$comment": "c", "x-order": 1, "nullable": True, "contentEncoding": "base64",
    "contentMediaType": "image/png", "contentSchema": False, "$anchor": "a", "$schema": "https://example.com/draft",
    "discriminator": {},
    "$vocabulary": {}, "$id": "https://example.com/a", "id": "a", "uniqueItems": False, "example": 5, "optional": True,
}  # fmt: skip


def test_the_table_has_an_example_of_each_keyword():
    assert ENFORCED.keys() == SUBSCHEMAS.keys() | VALUES
    assert EXAMPLES.keys() == REFUSED.keys()
    assert not (SUBSCHEMAS.keys() | VALUES) & REFUSED.keys()


@pytest.mark.parametrize("keyword", sorted(ENFORCED))
def test_a_keyword_is_enforced(keyword):
    schema, good, bad = ENFORCED[keyword]
    assert keyword in schema
    lark = value_grammar(schema)
    assert fits(lark, good) and not fits(lark, bad)
    oracle = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert oracle.is_valid(json.loads(good)) and not oracle.is_valid(json.loads(bad))


@pytest.mark.parametrize("keyword", sorted(REFUSED))
def test_a_keyword_that_is_not_enforced_is_refused_by_name_place_and_way_out(keyword):
    schema = {"type": ["object", "array", "string"], keyword: EXAMPLES[keyword]}
    assert bool(raw_error(schema)) == (keyword not in IGNORED_BY_LLGUIDANCE)
    with pytest.raises(UnsupportedSchema) as refused:
        value_grammar({"properties": {"p": {"items": schema}}})
    assert str(refused.value) == f"a schema cannot be enforced: $.properties.p.items.{keyword}: {REFUSED[keyword]}"


@pytest.mark.parametrize("keyword", sorted(ANNOTATIONS))
def test_an_annotation_restricts_nothing(keyword):
    lark = value_grammar({"type": "integer", keyword: ANNOTATIONS[keyword]})
    assert fits(lark, "-12") and not fits(lark, "null")


DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
HOLES = [  # a value that llguidance lets through against the schema
    ({"type": "object", "minProperties": 2}, '{"a": 1, "a": 2}'),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a": 1, "\\u0061": "x"}'),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, '{"\\u0061": "x"}'),
    ({"const": 2**53 + 1}, str(2**53)),
    ({"enum": [{"id": [2**53 + 1]}]}, f'{{"id": [{2**53}]}}'),
    ({"type": "integer", "minimum": 2**53 + 1}, str(2**53)),
    ({"const": 9.425557781452177}, "9.425557781452175"),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0"),
    ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, "-0"),
    ({"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.5}]}, "0"),
    ({"allOf": [{"type": "integer", "multipleOf": 65537}, {"multipleOf": 65539}]}, "262147"),
    ({"type": "number", "exclusiveMinimum": 0, "$ref": "#/$defs/a", "$defs": {"a": {"maximum": 0.5}}}, "0"),
    ({**DRAFT_7, "type": "object", "dependentRequired": {"a": ["b"]}}, '{"a": 1}'),
    ({**DRAFT_7, "type": "object", "unevaluatedProperties": False}, '{"a": 1}'),
    ({**DRAFT_7, "type": "array", "prefixItems": [{"type": "null"}]}, "[1]"),
    ({"type": "array", "prefixItems": [{"type": "null"}], "additionalItems": True}, "[1]"),
]  # fmt: skip


@pytest.mark.parametrize("schema, bad", HOLES, ids=str)
def test_what_llguidance_would_let_through_is_refused_or_closed(schema, bad):
    assert fits(raw(schema), bad) and not Draft202012Validator(schema).is_valid(json.loads(bad))
    try:
        lark = value_grammar(schema)
    except UnsupportedSchema:
        return
    assert not fits(lark, bad)


@pytest.mark.filterwarnings("ignore:Possible nested set")
def test_a_pattern_that_languages_read_differently_is_refused_each_time():
    schema = {"type": "string", "pattern": "^[[a]b]$"}
    assert fits(raw(schema), '"b"') and not Draft202012Validator(schema).is_valid("b")
    for _ in range(2):
        with pytest.raises(UnsupportedSchema, match="not portable"):
            value_grammar({**schema, "minLength": _})


@pytest.mark.parametrize("schema, place", [
    ({"type": "string", "format": "unknown"}, "$.format"),
    ({"format": "int64"}, "$.format"),
    ({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, "$.properties.a: pattern"),
    ({"patternProperties": {"a(?!b)": True}}, "$: pattern"),
    ({"type": "string", "pattern": r"(a)\1"}, "without"),
    ({"type": "string", "pattern": r"\bfoo"}, "without"),
    ({"type": "string", "pattern": "(a"}, "not portable"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, r"$.oneOf: "),
    ({"properties": {"a": {"type": "string", "required": True}}}, "$.properties.a.required"),
    ({"type": "array", "items": [{"type": "null"}]}, "$.items"),
    ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "$.exclusiveMinimum"),
    ({"anyOf": []}, "$.anyOf"),
    ({"allOf": [5]}, "$.allOf[0]"),
    ({"properties": ["a"]}, "$.properties"),
    ({"properties": {"a": None}}, "$.properties.a"),
    ({"type": "string", "minlength": 2}, "$.minlength: write minLength"),
    ({"type": "json_object"}, "$.type"),
    ({"type": ["string", 3]}, "$.type[1]"),
    ({"$ref": "#/$defs/a"}, "$.$ref: nothing is at '#/$defs/a'"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a/b"}}}, "$.$defs.a.$ref: nothing is at"),
    ({"$ref": "#/enum/x", "enum": [1]}, "nothing is at"),
    ({"$ref": "#/enum/0", "enum": [1]}, "$.enum.0: a schema is an object"),
    ({"$ref": "#name", "$defs": {"a": {"$anchor": "name"}}}, "'#name' is not of the form"),
    ({"$ref": "https://example.com/schema"}, "is not of the form"),
    ({"properties": {"a": {"$id": "b", "type": "null"}}}, "$.properties.a.$id"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "nsatisfiable"),
    ({"enum": []}, "nsatisfiable"),
], ids=str)  # fmt: skip
def test_a_refusal_names_the_place(schema, place):
    with pytest.raises(UnsupportedSchema) as refused:
        value_grammar(schema)
    assert place in str(refused.value)


@pytest.mark.parametrize("schema", [
    {"minimum": float("nan")}, {"default": float("inf")}, {"enum": [b"x"]}, {"const": "\ud800"}, {"enum": {1}},
], ids=str)  # fmt: skip
def test_what_is_not_json_is_a_bad_value(schema):
    for prepare in (value_grammar, lambda s: arguments_grammar("x", s)):
        with pytest.raises(BadValue, match="must be JSON"):
            prepare({"type": "object", "properties": {"a": schema}})


def nested(depth, inner=True):
    schema = inner
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain_of_references(length):
    step = {f"a{i}": {"properties": {"a": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**step, f"a{length}": {"type": "null"}}}


def test_deep_schemas_are_enforced_or_refused_and_never_end_the_process():
    """llguidance overflows its stack at a chain of a thousand references, which no `except` would see."""
    assert value_grammar(nested(50)) and value_grammar(chain_of_references(40))
    for schema in (nested(70), nested(300), chain_of_references(1000), chain_of_references(20_000)):
        with pytest.raises(UnsupportedSchema):
            value_grammar(schema)
    with pytest.raises((BadValue, UnsupportedSchema)):
        value_grammar(nested(5000))
    around = {"anyOf": [{"$ref": "#/$defs/a0"}, {"type": "null"}], "$defs": chain_of_references(900)["$defs"]}
    with pytest.raises(UnsupportedSchema):
        value_grammar(around)


# ---- References


A = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize("schema", [
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    {**A, "$defs": {"a": {"$ref": "#/$defs/b"}, "b": A}},
    {**A, "$defs": {"a": {"type": "object", "properties": {"a": A}, "required": ["a"]}}},
    {**A, "$defs": {"a": {"type": "object", "additionalProperties": A, "required": ["a"]}}},
    {**A, "$defs": {"a": {"type": "object", "patternProperties": {"^a": A}, "required": ["ab"]}}},
    {**A, "$defs": {"a": {"type": "array", "items": A, "minItems": 1}}},
    {**A, "$defs": {"a": {"type": "array", "prefixItems": [True, A], "minItems": 2}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "allOf": [{"required": ["a"]}]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "anyOf": [{"required": ["a"]}, {"required": ["a", "b"]}]},
    {"type": "object", "properties": {"p": A},
     "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
               "b": {"type": "array", "items": A, "minItems": 1}}},
    {"anyOf": [{"type": "null"}, A],
     "$defs": {"a": {"type": "object", "properties": {"a": A}, "required": ["a"]}}},
], ids=str)  # fmt: skip
def test_a_circle_without_an_end_is_refused(schema):
    with pytest.raises(UnsupportedSchema, match=r"no finite value fits|leads back"):
        value_grammar(schema)


NULL = {"type": "null"}
RECURSIVE = [
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    {"type": "array", "items": {"$ref": "#"}},
    {**A, "$defs": {"a": {"anyOf": [{"type": "null"}, {"type": "array", "items": A, "minItems": 2}]}}},
    {**A, "$defs": {"a": {"type": ["object", "boolean"], "properties": {"a": A}, "required": ["a"]}}},
    {**A, "$defs": {"a": {"type": "object", "properties": {"v": {"enum": [1]}, "next": {"anyOf": [A, NULL]}},
                          "required": ["v", "next"], "additionalProperties": False}}},
    {"type": "array", "items": A, "minItems": 1, "definitions": {"x": 1},
     "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
               "b": {"type": "array", "items": A, "maxItems": 2}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", RECURSIVE, ids=str)
def test_recursion_with_a_base_case_is_enforced(schema):
    texts = [text for seed in range(8) if (text := some_text(value_grammar(schema), random.Random(seed)))]
    assert len(texts) >= 6 and len(set(texts)) > 1
    assert all(Draft202012Validator(schema).is_valid(json.loads(text)) for text in texts)


def test_definitions_work_inside_parameters():
    for name in ("$defs", "definitions"):
        parameters = {"properties": {"a": {"$ref": f"#/{name}/key"}}, name: {"key": {"type": "float"}}}
        lark = arguments_grammar("x", parameters)
        assert fits(lark, '{"a": 1.5}') and not fits(lark, '{"a": "1"}')


# ---- Arguments


@pytest.mark.parametrize("parameters, good, bad", [
    ({}, ["{}", '{"a": 1}'], ["1", "[]", "null"]),
    ({"type": "object"}, ["{}", '{"a": 1}'], ["1"]),
    ({"type": "dict", "properties": {}}, ["{}"], ['{"a": 1}']),
    ({"type": ["object", "null"]}, ["{}"], ["null"]),
    ({"type": "any"}, ["{}"], ["1"]),
    ({"properties": {"a": {"type": "int"}}}, ["{}", '{"a": 1}'], ['{"b": 1}', '{"a": 1, "b": 1}', "1"]),
    ({"properties": {"a": True}, "additionalProperties": True}, ['{"b": 1}'], ["1"]),
    ({"properties": {"a": True}, "required": ["b"]}, ['{"b": 1}', '{"a": 1, "b": 1}'], ["{}"]),
    ({"properties": {"a": True}, "allOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
     ['{"a": 1, "b": null}'], ['{"a": 1}', '{"b": 1}']),
    ({"properties": {"a": True}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
     ['{"a": 1}', '{"b": 1}'], ["{}"]),
    ({"properties": {"a": True}, "patternProperties": {"^x": {"type": "null"}}}, ['{"x1": null}'], ['{"x1": 1}']),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"required": ["a"]}}}, ['{"a": 1}'], ["{}", "1"]),
    ({"properties": {"a": {"properties": {"b": True}}}}, ['{"a": {"c": 1}}'], ['{"c": 1}']),
], ids=str)  # fmt: skip
def test_arguments_are_an_object_of_the_listed_parameters(parameters, good, bad):
    lark = arguments_grammar("x", parameters)
    assert [text for text in good if not fits(lark, text)] == [text for text in bad if fits(lark, text)] == []


def test_arguments_that_are_no_object_are_refused():
    for types in ("string", ["array", "null"]):
        with pytest.raises(UnsupportedSchema, match=r"tool 'x' .*\$.type: the arguments of a call are an object"):
            arguments_grammar("x", {"type": types})


def test_a_reply_s_schema_may_be_open_and_of_any_type():
    assert fits(value_grammar({"properties": {"a": {"type": "null"}}}), '{"b": 1}')
    assert fits(value_grammar({}), "null")
    assert fits(value_grammar({"properties": {"a": False}, "items": True}), '{"b": 1}')


@pytest.mark.parametrize("bounds", [
    {"exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"exclusiveMinimum": 0.01, "exclusiveMaximum": 1},
    {"exclusiveMinimum": 0}, {"exclusiveMinimum": -1, "maximum": 0.5}, {"minimum": 0, "maximum": 0.5},
], ids=str)  # fmt: skip
def test_usual_bounds_are_enforced(bounds):
    schema = {"type": "number", **bounds}
    for text in ["-1.5", "-1", "-0.5", "-0", "0", "0.0", "0.009", "0.01", "0.5", "0.51", "0.99", "1", "1.0", "2"]:
        assert not fits(value_grammar(schema), text) or Draft202012Validator(schema).is_valid(json.loads(text))
    assert fits(value_grammar(schema), "0.02")
    assert value_grammar({"properties": {"a": schema, "b": {"type": "number", "maximum": 0.5}}})


def test_control_characters_can_be_written_where_no_name_could_be_spelt_twice():
    closed = arguments_grammar("x", {"properties": {"text": {"type": "string"}}})
    assert fits(closed, '{"text": "\\u001b[31m"}') and not fits(closed, '{"te\\u0078t": "a"}')
    assert not fits(value_grammar({"properties": {"text": {"type": "string"}}}), '{"text": "\\u001b[31m"}')


@pytest.mark.parametrize("name, own", sorted(TYPES.items()))
def test_names_of_types_are_translated(name, own):
    lark, plain = (value_grammar({"items": {} if one is None else {"type": one}}) for one in (name, own))
    assert lark == plain == value_grammar({"items": {} if own is None else {"type": name.upper()}})
    assert value_grammar({"type": ["null", name]}) == value_grammar({"type": ["null", own]} if own else {})


def test_types_are_translated_in_schemas_alone():
    values = {"type": "dict", "properties": {"type": "float"}}
    schema = {"properties": {"type": {"enum": [values]}, "dict": {"const": {"type": "int"}, "default": values}}}
    lark = value_grammar(schema)
    assert fits(lark, json.dumps({"type": values, "dict": {"type": "int"}})) and json.dumps(schema)[1:-1] in lark
    original = json.dumps(schema)
    value_grammar(schema)
    assert json.dumps(schema) == original, "a schema belongs to its caller"


# ---- Tools


GOOD = {"name": "good", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
BAD = {"name": "bad", "parameters": {"properties": {"b": {"not": {}}}}}


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def accepted(place, text):
    for token in ids(text):
        if not place.allows(token):
            return False
        place.advance(token)
    return True


def test_one_tool_that_cannot_be_enforced_leaves_the_others_as_they_are():
    own = Grammars(tokenizer(), VOCABULARY, frozenset([END]))
    with pytest.warns(
        UserWarning, match=r"left free: .* tool 'bad' .*\$.properties.b.not: list what is allowed"
    ) as seen:
        place = own.constraint([GOOD, BAD], "auto", None)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = own.constraint([GOOD, BAD], "auto", None)  # compiled already
        own.constraint([GOOD, BAD], "good", None)
        own.constraint([GOOD, BAD], "none", None)
    assert accepted(place, "Well. " + call("bad", '{"x": [1]}') + call("good", '{"a": 1}'))
    assert not accepted(again.copy(), call("bad", "[1]")) and not accepted(again.copy(), call("good", '{"x": 1}'))


@pytest.mark.parametrize("choice", ["required", "bad"])
def test_a_call_that_has_to_come_has_to_be_enforceable(choice):
    with pytest.raises(UnsupportedSchema, match=r"tool 'bad' .*\.not: list what is allowed.*tool_choice='auto'"):
        grammars().constraint([GOOD, BAD], choice, None)


# ---- Properties


NAMES = st.sampled_from(["a", "b", "c", "a b"])
LEAVES = st.one_of(
    st.sampled_from([
        True, {}, {"type": "null"}, {"type": "boolean"}, {"type": "string"}, {"type": "number"},
        {"type": "string", "pattern": "^[ab]*$", "maxLength": 3}, {"type": "string", "pattern": "b|^a"},
        {"type": "string", "format": "date"}, {"enum": ["a", 1, None, [1], {"a": 1}]}, {"const": 0.25}, {"const": -3},
        {"type": ["integer", "string"], "minLength": 1, "minimum": 0}, {"minimum": 2, "maxLength": 2, "maxItems": 2},
        {"type": "number", "multipleOf": 3}, {"$ref": "#"}, {"$ref": "#/$defs/d"},
    ]),
    st.builds(lambda low, high: {"type": "integer", "minimum": low, "maximum": high},
              st.integers(-30, 5), st.integers(0, 99)),
    st.builds(lambda low, high: {"type": "number", "exclusiveMinimum": low / 8, "maximum": high / 100},
              st.integers(-20, 8), st.integers(0, 4000)),
)  # fmt: skip


def larger(inner):
    names = st.lists(NAMES, unique=True, max_size=3)
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)},
        optional={
            "required": names,
            "additionalProperties": inner | st.booleans(),
            "patternProperties": st.dictionaries(st.just("^[bx]"), inner, max_size=1),
            "minProperties": st.integers(0, 2),
            "maxProperties": st.integers(0, 3),
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.sampled_from(["array", ["array", "null"]]), "items": inner},
        optional={
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(1, 3),
        },
    )
    several = st.builds(
        lambda key, cases, beside: {**(beside if isinstance(beside, dict) else {}), key: cases},
        st.sampled_from(["allOf", "anyOf", "oneOf"]),
        st.lists(inner, min_size=1, max_size=3),
        st.just({}) | inner,
    )
    return objects | arrays | several


SCHEMAS = st.builds(
    lambda schema, defined: {**schema, "$defs": {"d": defined}},
    st.recursive(LEAVES, larger, max_leaves=6).filter(lambda schema: isinstance(schema, dict) and schema),
    st.recursive(LEAVES, larger, max_leaves=3),
)
VALUES_OF_ALL_KINDS = st.recursive(
    st.none() | st.booleans() | st.integers(-40, 120) | st.integers(-99, 999).map(lambda n: n / 100)
    | st.text("ab1\n", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.just("x"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def accepted_grammar(schema):
    try:
        return value_grammar(schema)
    except UnsupportedSchema:
        assume(False)


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_what_a_random_model_writes_fits_the_schema(schema, seed):
    text = some_text(accepted_grammar(schema), random.Random(seed), most=150)
    assume(text)
    error = next(Draft202012Validator(schema).iter_errors(json.loads(text)), None)
    assert error is None, error.message


@given(schema=SCHEMAS, values=st.lists(VALUES_OF_ALL_KINDS, min_size=8, max_size=8))
def test_a_value_that_does_not_fit_never_passes(schema, values):
    lark, oracle = accepted_grammar(schema), Draft202012Validator(schema)
    passed = [value for value in values if fits(lark, json.dumps(value, ensure_ascii=False))]
    assert all(oracle.is_valid(value) for value in passed)


@given(schema=SCHEMAS)
def test_reading_a_schema_ends_in_a_grammar_or_in_a_named_refusal(schema):
    original = json.dumps(schema)
    try:
        lark = value_grammar(schema)
    except UnsupportedSchema as refused:
        assert "$" in str(refused)
    else:
        assert constraint(lark).forced or constraint(lark).mask(VOCABULARY).any()
    assert json.dumps(schema) == original
