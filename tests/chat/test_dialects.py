"""Whatever a family's calls look like: they are learnt, written, read, constrained, and rendered again."""

import json
from dataclasses import replace

import pytest
import torch
from dialects import DIALECTS, TOKENS, template
from hypothesis import given
from hypothesis import strategies as st

from minstate import Engine, Sampling, UnsupportedSchema
from minstate.chat.conversation import Chat
from minstate.chat.dialect import HERMES
from minstate.chat.families import HARMONY, NAMED
from minstate.chat.grammar import Grammars
from minstate.chat.messages import normalise
from minstate.chat.template import Template
from minstate.lab.engines.small_engine import CONFIG, byte_tokenizer, small_model
from minstate.model import Model

END = TOKENS.index("<|im_end|>")
USER = {"role": "user", "content": "go on"}
LOOK = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "deep": {"type": "boolean"},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "days"],
        },
    },
}
WAIT = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [LOOK, WAIT]
CALL = {"name": "look_up", "arguments": {"city": "Ålesund", "days": 3}}
ALL = {"name": "look_up", "arguments": {"city": 'a "b"', "days": -1, "deep": True, "unit": "F"}}
SORTED_ALL = {"name": "look_up", "arguments": dict(sorted(ALL["arguments"].items()))}
NONE = {"name": "wait", "arguments": {}}


def chat_of(dialect: str) -> Chat:
    return Chat(byte_tokenizer(template(dialect), TOKENS), frozenset([END]))


@pytest.fixture(scope="module")
def chats():
    return {name: chat_of(name) for name in DIALECTS}


def reply(calls, content=""):
    (message,) = normalise({"role": "assistant", "content": content, "tool_calls": calls})
    return message


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_is_learnt_from_the_template(name, chats):
    template = chats[name].template
    assert template.writes_calls and template.knows_results and template.knows_tools
    assert (chats[name].dialect.name == "Hermes") == (name == "JSON between marks")


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("calls", [[CALL], [NONE], [ALL], [CALL, NONE, ALL]], ids=["some", "none", "all", "three"])
def test_what_the_template_writes_is_what_the_dialect_writes_and_reads(name, calls, chats):
    chat = chats[name]
    rendered = chat.render([USER, reply(calls)], TOOLS, reply=False)
    written = chat.dialect.write([{"id": f"call{i:05}", **call} for i, call in enumerate(calls)])
    if name == "quotes of its own":  # its template sorts the keys
        written = chat.dialect.write([{**call, "arguments": dict(sorted(call["arguments"].items()))} for call in calls])
    if chat.dialect.next is not None or len(calls) == 1:
        assert written.strip() in rendered
    read = chat.dialect.read(written, TOOLS).calls
    assert [(call.name, call.arguments, call.error) for call in read] == [
        (c["name"], c["arguments"], "") for c in calls
    ]


@pytest.mark.parametrize("name", DIALECTS)
def test_text_around_a_call_is_text(name, chats):
    dialect = chats[name].dialect
    call = dialect.write([CALL])
    if dialect.is_marked:
        found = dialect.read(f"I look. {call} Done.", TOOLS)
        assert found.content == "I look." and [call.name for call in found.calls] == ["look_up"]
    for text in ("", "no call", "{", "[", '{"a": 1}', "[1, 2]", "f(x)"):
        assert dialect.read(text).calls == () and dialect.read(text).content == text


@pytest.mark.parametrize("name", DIALECTS)
def test_a_call_that_is_cut_off_or_wrong_is_reported_and_never_lost(name, chats):
    dialect = chats[name].dialect
    whole = dialect.write([{"id": "call00000", **CALL}])
    for end in range(len(whole)):
        found = dialect.read(whole[:end], TOOLS)
        assert all(call.error for call in found.calls), whole[:end]
        assert found.text == whole[:end]
    (wrong,) = dialect.read(dialect.write([{"name": "look_up", "arguments": {"city": "a"}}]), TOOLS).calls
    assert "days" in wrong.error
    (unknown,) = dialect.read(dialect.write([{"name": "walk", "arguments": {}}]), TOOLS).calls
    assert "no tool of the name 'walk'" in unknown.error


TEXT = st.text(st.sampled_from("ab \"'\\{}[](),:=é\n"), min_size=1, max_size=12)


@pytest.mark.parametrize("name", DIALECTS)
@given(city=TEXT, days=st.integers(-9, 9), deep=st.booleans())
def test_any_string_comes_back(name, chats, city, days, deep):
    dialect = chats[name].dialect
    arguments = {"city": city, "days": days, "deep": deep}
    (call,) = dialect.read(dialect.write([{"name": "look_up", "arguments": arguments}]), TOOLS).calls
    assert (call.arguments, call.error) == (arguments, "")


def taken(constraint, tokens) -> tuple[int, bool]:
    """How many tokens fit, and whether the reply may end there."""
    for place, token in enumerate(tokens):
        if not constraint.allows(token):
            return place, False
        constraint.advance(token)
    return len(tokens), constraint.ended or constraint.allows(END)


def grammars_of(chat: Chat) -> Grammars:
    return Grammars(chat.tokenizer, len(TOKENS) + 256, frozenset([END]), chat.dialect)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_grammar_takes_calls_in_the_dialect_and_no_others(name, chats):
    chat = chats[name]
    grammars, dialect = grammars_of(chat), chat.dialect
    for call in (CALL, NONE, ALL):
        ids = chat.encode(dialect.write([{"id": "call00000", **call}]).lstrip())
        for choice in ("required", "auto", call["name"]):
            assert taken(grammars.constraint(TOOLS, choice, None), ids) == (len(ids), True), choice
    for wrong in (
        {"name": "look_out", "arguments": CALL["arguments"]},
        {"name": "look_up", "arguments": {"city": "a", "days": "x"}},
        {"name": "look_up", "arguments": {"town": "a", "days": 1}},
        {"name": "look_up", "arguments": {"city": "a"}},
    ):
        ids = chat.encode(dialect.write([{"id": "call00000", **wrong}]).lstrip())
        assert taken(grammars.constraint(TOOLS, "required", None), ids) != (len(ids), True), wrong
        assert not dialect.is_marked or taken(grammars.constraint(TOOLS, "auto", None), ids) != (len(ids), True), wrong
    text = chat.encode("It rains.")
    assert taken(grammars.constraint(TOOLS, "auto", None), text) == (len(text), True)
    assert taken(grammars.constraint(TOOLS, "none", None), text) == (len(text), True)
    assert taken(grammars.constraint(TOOLS, "required", None), text)[0] == 0
    ids = chat.encode(dialect.write([{"id": "call00000", **CALL}]).lstrip())
    assert taken(grammars.constraint(TOOLS, "none", None), ids) != (len(ids), True)


@pytest.mark.parametrize("name", DIALECTS)
def test_several_calls_are_allowed_or_not(name, chats):
    chat = chats[name]
    grammars, dialect = grammars_of(chat), chat.dialect
    if dialect.next is None:
        return
    ids = chat.encode(dialect.write([{"id": f"call{i:05}", **call} for i, call in enumerate([CALL, NONE])]).lstrip())
    for choice, parallel, fits in [
        ("required", True, True), ("required", None, False), ("required", False, False),
        ("auto", None, True), ("auto", True, True), ("auto", False, False),
    ]:  # fmt: skip
        found = taken(grammars.constraint(TOOLS, choice, None, parallel=parallel), ids)
        assert (found == (len(ids), True)) == fits, (choice, parallel)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_random_model_s_required_calls_can_be_read(name, chats):
    """The model that calls of this kind never ended for: whatever it prefers, the grammar leads it through."""
    tokenizer = byte_tokenizer(template(name), TOKENS)
    engine = Engine(_model(), tokenizer, eos_ids=[END], page_size=16, num_pages=400, speculation=True)
    session = engine.open(tools=TOOLS)
    for seed in range(4):
        turn = session.send("go", tool_choice="wait", max_new_tokens=150, sampling=Sampling(temperature=1.0, seed=seed))
        engine.check()
        assert [(call.name, call.error) for call in turn.tool_calls] == [("wait", "")] and turn.finish_reason == "stop"
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 4
    calls = [message["tool_calls"] for message in session.messages[1::2]]
    assert all(call[0]["name"] == "wait" for call in calls) and len({call[0]["id"] for call in calls}) == 4
    turn = session.send({"role": "tool", "content": "12 °C"}, max_new_tokens=3, tool_choice=None)
    assert turn.stats.prefilled == turn.stats.delta and "12 °C" in tokenizer.decode(session.token_ids)


def _model():
    config = replace(CONFIG, vocab_size=len(TOKENS) + 256, max_positions=4096)
    draw = torch.Generator().manual_seed(0)
    shapes = config.tensor_shapes().items()
    return Model(config, {name: 0.3 * torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shapes})


def test_thoughts_are_no_calls_and_grammars_begin_behind_them():
    source = template("JSON between marks").replace("(m.content or '')", "(m.content.split('</think>')[-1])")
    chat = Chat(byte_tokenizer(source, TOKENS), frozenset([END]))
    assert chat.dialect.think == ("<think>", "</think>")
    call = chat.dialect.write([CALL])
    found = chat.dialect.read(f"<think>\nShall I {call}?\n</think>\n\nNo.{call}", TOOLS)
    assert "Shall I" in found.reasoning and found.content == "No." and len(found.calls) == 1
    assert chat.dialect.read("not to be\n</think>yes", thinking=True)[:2] == ("not to be", "yes")
    assert chat.dialect.read("not to be", thinking=True) == ("not to be", "", (), "")
    grammars = grammars_of(chat)
    for text, thinking in [(f"<think>hm{call}</think>\n\n{call}", False), (f"hm</think>{call}", True), (call, False)]:
        ids = chat.encode(text)
        assert taken(grammars.constraint(TOOLS, "required", None, thinking=thinking), ids) == (len(ids), True), text
        assert taken(grammars.constraint(TOOLS, "auto", None, thinking=thinking), ids) == (len(ids), True), text
    ids = chat.encode("<think>hm</think>\n{}")
    assert taken(grammars.constraint((), None, {"type": "object"}), ids) == (len(ids), True)
    ids = chat.encode(call)
    assert taken(grammars.constraint(TOOLS, "required", None, thinking=True), ids) != (len(ids), True), "still thinking"


def test_harmony_is_read_by_its_channels():
    text = (
        "<|channel|>analysis<|message|>I need it.<|end|><|start|>assistant<|channel|>commentary to=functions.look_up "
        '<|constrain|>json<|message|>{"city": "Oslo", "days": 1}'
    )
    harmony = replace(HARMONY, think=("<|channel|>analysis<|message|>", "<|end|>"))
    found = harmony.read(text, TOOLS)
    assert found.reasoning == "I need it." and found.content == ""
    assert [(call.name, call.arguments, call.error) for call in found.calls] == [
        ("look_up", {"city": "Oslo", "days": 1}, "")
    ]
    final = harmony.read("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Rain.")
    assert (final.reasoning, final.text, final.calls) == ("Hm.", "Rain.", ())


@pytest.mark.parametrize("dialect", [dialect for _, dialect in NAMED], ids=lambda dialect: dialect.name)
def test_named_dialects_read_what_they_write(dialect):
    for calls in ([CALL], [NONE], [ALL, CALL][: 1 if dialect.next is None else 2]):
        read = dialect.read(dialect.write(calls), TOOLS).calls
        assert [(call.name, call.arguments, call.error) for call in read] == [
            (c["name"], c["arguments"], "") for c in calls
        ]


@pytest.mark.parametrize(
    "text, arguments, error",
    [
        ('{"name": "look_up", "parameters": {"city": "a", "days": 1}}', {"city": "a", "days": 1}, ""),
        ('{"arguments": {"city": "a", "days": 1}, "name": "look_up"}', {"city": "a", "days": 1}, ""),
        ('{"name": "look_up", "arguments": "{\\"city\\": \\"a\\", \\"days\\": 1}"}', {"city": "a", "days": 1}, ""),
        ('{"function": {"name": "look_up", "arguments": {"city": "a", "days": 1}}}', {"city": "a", "days": 1}, ""),
        ('{"name": "look_up", "arguments": {"city": "a", "days": NaN}}', {}, "NaN"),
        ('{"name": "look_up", "arguments": {"city": "a", "days": 1e999}}', {}, "1e999"),
        ('{"name": "look_up", "arguments": {"city": "a", "days": Infinity}}', {}, "Infinity"),
        ('{"name": 5}', {}, "not of the form"),
    ],
)
def test_calls_are_read_generously_and_numbers_that_are_none_are_errors(text, arguments, error):
    (call,) = HERMES.read(f"<tool_call>{text}</tool_call>", TOOLS).calls
    assert call.arguments == arguments and error in call.error and bool(error) == bool(call.error)


def test_what_a_dialect_cannot_enforce_is_refused_by_name_and_left_free_in_auto(chats):
    chat = chats["XML"]
    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "string", "pattern": "a+"}}, "required": ["x"]}}
    with pytest.raises(UnsupportedSchema, match=r"'f'.*pattern"):
        grammars_of(chat).constraint([tool], "required", None)
    with pytest.warns(UserWarning, match="left free: .*'f'.*pattern"):
        free = grammars_of(chat).constraint([tool], "auto", None)
    ids = chat.encode(chat.dialect.write([{"name": "f", "arguments": {"x": "b"}}]).lstrip())
    assert taken(free, ids) == (len(ids), True)


def test_describe_tells_how_calls_are_written(chats):
    for name, chat in chats.items():
        text = chat.describe()
        assert "by the template" in text and "<|im_end|>" in text, name
    assert json.loads(json.dumps(text)) == text


def test_every_template_is_probed_once(monkeypatch):
    made, make = [], Template.__init__
    monkeypatch.setattr(Template, "__init__", lambda self, *args: made.append(1) or make(self, *args))
    engine = Engine(small_model(), byte_tokenizer(), eos_ids=[2])
    session = engine.open("hi", tools=[WAIT])
    for _ in range(3):
        session.send("go on", max_new_tokens=2)
    assert made == [1]


HARMONY_TOKENS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"]
HARMONY_TEMPLATE = """\
{%- for m in messages %}{{- '<|start|>' + m.role }}{% if m.role == 'assistant' %}{{- '<|channel|>final' }}{% endif %}
{{- '<|message|>' + (m.content or '') + ('<|return|>' if loop.last else '<|end|>') }}{%- endfor %}
{#- commentary #}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""


def test_under_harmony_a_value_stands_in_the_final_channel_and_a_call_in_its_own():
    ends = frozenset(map(HARMONY_TOKENS.index, ("<|call|>", "<|return|>")))
    chat = Chat(byte_tokenizer(HARMONY_TEMPLATE, HARMONY_TOKENS), ends)
    assert chat.dialect.name == "Harmony"
    grammars = Grammars(chat.tokenizer, len(HARMONY_TOKENS) + 256, ends, chat.dialect)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    analysis, final = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant", "<|channel|>final<|message|>"

    def fits(text: str, tools=(), choice=None, value=None) -> bool:
        constraint, ids = grammars.constraint(tools, choice, value), chat.encode(text)
        for token in ids:
            if not constraint.allows(token):
                return False
            constraint.advance(token)
        return constraint.ended or any(map(constraint.allows, ends))

    for text in (final + '{"a": 1}', analysis + final + '{"a": 1}'):
        assert fits(text, value=schema)
        found = chat.dialect.read(text)
        assert (found.text, found.reasoning) == ('{"a": 1}', "Hm." if text.startswith(analysis) else "")
    for text in ('{"a": 1}', analysis + '{"a": 1}', final + '{"b": 1}', analysis[:-9] + final + '{"a": 1}', analysis):
        assert not fits(text, value=schema), text
    call = chat.dialect.write([CALL])
    for choice in ("required", "auto"):
        assert fits(call, TOOLS, choice) and fits(analysis + call, TOOLS, choice), choice

    config = replace(CONFIG, vocab_size=len(HARMONY_TOKENS) + 256, max_positions=4096)
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(size, generator=draw, dtype=torch.float64)
        for name, size in config.tensor_shapes().items()
    }
    engine = Engine(Model(config, weights), chat.tokenizer, eos_ids=sorted(ends), page_size=16, num_pages=400)
    sampling = Sampling(temperature=1.0, seed=3)
    only = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    turn = engine.open().send("go", response_format=only, sampling=sampling, max_new_tokens=400)
    assert turn.finish_reason != "stop" or json.loads(turn.text)["a"] in (1, 2)
    replayed = chat.encode(analysis + final + '{"a": 1}')
    turn = engine.open().send("go", replay=replayed, response_format=schema)
    assert (turn.text, turn.content, turn.reasoning) == ('{"a": 1}', '{"a": 1}', "Hm.")
    engine.check()
