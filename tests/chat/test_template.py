"""Deltas of messages are the tokens that the whole conversation would have had, in every style of template."""

import json
import re

import pytest
import templates
import tiny
from dialects import DIALECTS, TAIL, TOKENS
from dialects import HEAD as DIALECTS_HEAD
from hypothesis import given
from hypothesis import strategies as st

from minstate import BadMessage, UnsupportedModel
from minstate.chat.conversation import Chat, read_input
from minstate.chat.dialect import HERMES
from minstate.chat.messages import normalise
from minstate.chat.template import Template
from minstate.chat.tool_calls import ToolCall
from minstate.chat.transcript import Transcript
from minstate.lab.engines.small_engine import byte_tokenizer, small_engine
from minstate.lab.engines.template_styles import STYLES
from minstate.weights import find_model, read_tokenizer

TEXT = st.text(st.sampled_from("ab c\n\té日."), min_size=1, max_size=8)
SPOKEN = st.text("abcé.", min_size=1, max_size=8)  # without the outer space that some templates trim
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
USER, RESULT = {"role": "user", "content": "go on"}, {"role": "tool", "content": "a.txt"}


def converse(chat: Chat, opening, turns, *, cut_off=False) -> tuple[list[int], Transcript]:
    """The log and transcript of a session that is sent each turn's messages and gives each turn's reply."""
    transcript, log = chat.new_transcript(opening, []), []
    for messages, reply in turns:
        new = normalise(messages)
        log += chat.delta(transcript, new, log[-1]) if log else chat.prompt(transcript, new)
        transcript = transcript.with_messages(new, len(log)).with_reply(reply)
        log += chat.encode(reply) if cut_off else chat.encode_reply(reply)
    return log, transcript


@pytest.mark.parametrize("cut_off", [False, True], ids=["stopped", "cut off"])
@pytest.mark.parametrize("style", templates.STYLES)
@given(
    system=st.one_of(st.none(), SPOKEN),
    turns=st.lists(st.tuples(SPOKEN, st.tuples(st.just(USER)) | SPOKEN, SPOKEN), min_size=1, max_size=4),
)
def test_the_log_is_the_whole_rendering(style, cut_off, system, turns):
    chat = Chat(templates.tokenizer(style))
    opening = [{"role": "system", "content": system}] if system else []
    turns = [(first, reply) for first, _, reply in turns]
    log, transcript = converse(chat, opening, turns, cut_off=cut_off)
    whole = chat.prompt(transcript, [USER])
    if style == "mistral":  # writes a space before each reply, and the system message into the last message only
        if system:
            return
        log, whole = ([i for i in ids if i != chat.encode(" ")[0]] for ids in (log, whole))
    assert log == whole[: len(log)]


@pytest.mark.parametrize("style", ["chatml", "qwen2.5", "qwen3", "llama3"])
@pytest.mark.parametrize("new", [[RESULT], [RESULT, RESULT], [RESULT, USER], [USER]], ids=len)
def test_tool_results_follow_on_a_reply_as_in_the_whole_rendering(style, new):
    chat = Chat(templates.tokenizer(style))
    turns = [("look", "first reply"), (new, "second"), (new, "third")]
    log, transcript = converse(chat, [{"role": "system", "content": "s"}], turns)
    whole = chat.prompt(transcript, [USER])
    assert log == whole[: len(log)]


REAL = [
    {"role": "user", "content": "  List the files,\n\n please. "},
    {"role": "assistant", "content": "Sure.\n"},
    {"role": "tool", "content": '["setup.py", "naïve 日本.txt"]\n\n\n'},
    {"role": "assistant", "content": "Two files."},
    {"role": "user", "content": "\nThanks"},
    {"role": "assistant", "content": "You are welcome."},
]


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_log_of_the_real_tokenizer_is_the_whole_rendering(system):
    tokenizer = read_tokenizer(find_model())
    opening = [{"role": "system", "content": system}] if system else []
    turns = [([REAL[i]], REAL[i + 1]["content"]) for i in (0, 2, 4)]
    log, _ = converse(Chat(tokenizer), opening, turns)
    whole = tokenizer.apply_chat_template(opening + REAL, tokenize=False)
    assert [*log, *tokenizer.encode("\n")] == tokenizer.encode(whole, add_special_tokens=False)


def test_only_a_template_that_looks_back_is_given_the_whole_history(monkeypatch):
    assert {style for style in templates.STYLES if Chat(templates.tokenizer(style)).looks_back} == {"mistral"}
    sizes = []
    render = Template.render

    def counted(self, messages, *args, **options):
        sizes.append(len(messages))
        return render(self, messages, *args, **options)

    monkeypatch.setattr(Template, "render", counted)
    for style in ("qwen3", "mistral"):
        chat = Chat(templates.tokenizer(style))
        sizes.clear()
        converse(chat, [], [("q", "a")] * 4)
        assert sizes == ([1, 3, 3, 3] if style == "qwen3" else [1, 3, 5, 7])


def test_a_log_keeps_what_a_template_would_strip():
    """The model saw its own thoughts; the delta behind them is the same."""
    chat = Chat(templates.tokenizer("qwen3"))
    log, transcript = converse(chat, [], [("q", "<think>\nwell\n</think>\n\nyes"), ("and?", "no")])
    text = chat.tokenizer.decode(log)
    assert "well" in text and "well" not in chat.tokenizer.decode(chat.prompt(transcript, [USER]))
    assert text.endswith("yes<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>")


def test_a_reply_that_stopped_is_not_ended_again():
    chat = Chat(tiny.tokenizer())
    decode = tiny.tokenizer().decode
    transcript = Transcript()
    assert decode(chat.delta(transcript, [USER], chat.end_of_reply)).startswith("\n<|im_start|>user")
    assert decode(chat.delta(transcript, [USER], 70)).startswith("<|im_end|>\n<|im_start|>user")


def test_the_templates_default_system_message_comes_once():
    chat = Chat(tiny.tokenizer())
    log, _ = converse(chat, [], [("hi", "ho"), ("hi", "ho")])
    assert chat.tokenizer.decode(log).count("<|im_start|>system\nDefault.<|im_end|>\n") == 1


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "Be brief."}]])
@pytest.mark.parametrize("style", ["chatml", "llama3"])
def test_tools_are_described_in_the_system_message_where_the_template_knows_none(style, messages):
    chat = Chat(templates.tokenizer(style))
    text = chat.render(messages, [TOOL], reply=False)
    assert json.dumps(TOOL) in text and text.count("system") == 1
    assert ("Be brief." in text) == bool(messages)


def test_a_template_that_knows_tools_describes_them_itself():
    text = Chat(templates.tokenizer("qwen2.5")).render([USER], [TOOL], reply=False)
    assert "# Tools" in text and "You may call functions" not in text and text.count('"ls"') == 1


def test_tool_results_come_from_the_user_where_the_template_knows_none():
    chat = Chat(templates.tokenizer("mistral"))
    text = chat.tokenizer.decode(chat.delta(Transcript((USER, {"role": "assistant", "content": "x"})), [RESULT], 1))
    assert "[INST] <tool_response>\na.txt\n</tool_response>[/INST]" in text


@pytest.mark.parametrize("style", ["chatml", "qwen2.5", "llama3"])
@pytest.mark.parametrize(
    "call",
    [
        {"name": "ls", "arguments": {"path": "é"}},
        {"type": "function", "id": "1", "function": {"name": "ls", "arguments": '{"path": "é"}'}},
        ToolCall("ls", {"path": "é"}, raw=""),
    ],
    ids=["plain", "OpenAI", "parsed"],
)
def test_tool_calls_are_written_as_they_are_read(style, call):
    chat = Chat(templates.tokenizer(style))
    message = {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}
    rendered = chat.render(normalise([USER, message]), reply=False)
    for text in (rendered, chat.tokenizer.decode(chat.encode_reply(message))):
        assert "Let me look.\n<tool_call>\n" in text
        (parsed,) = HERMES.read(text).calls
        assert (parsed.name, parsed.arguments, parsed.error) == ("ls", {"path": "é"}, "")


def test_a_template_gets_the_id_of_a_call_and_one_in_its_place_where_there_is_none():
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{{ (m.tool_calls or []) | tojson }}{% endfor %}"
    chat = Chat(templates.byte_tokenizer(template, templates.CHATML_TOKENS))
    calls = [{"id": "c1", "function": {"name": "ls"}}, {"name": "ls"}]
    rendered = chat.render(normalise({"role": "assistant", "content": "x", "tool_calls": calls}), reply=False)
    function = {"name": "ls", "arguments": {}}
    given = [{"id": number, "type": "function", "function": function} for number in ("c1", "call00001")]
    assert json.loads(rendered.partition("<|im_end|>")[2]) == given


def test_a_tool_may_return_nothing():
    chat = Chat(tiny.tokenizer())
    assert "<|im_start|>tool\n<|im_end|>" in chat.render(normalise({"role": "tool", "content": ""}), reply=False)


def test_what_a_template_refuses_is_a_bad_message():
    chat = Chat(templates.tokenizer("mistral"))
    with pytest.raises(BadMessage, match="roles must alternate"):
        chat.prompt(Transcript(), [USER, USER])


@pytest.mark.parametrize(
    "template, says",
    [
        (None, "no chat template"),
        ("{{ raise_exception('only two roles') }}", "only two roles"),
        (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
            "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}"
            "{{ '<|im_end|>\n' }}{% endfor %}",
            None,
        ),
        ("{% for m in messages %}{{ m['role'] }}\n{% endfor %}", "leaves out the assistant's replies"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, says):
    tokenizer = templates.byte_tokenizer(template, templates.CHATML_TOKENS)
    if says is None:  # it drops replies once something follows: noticed with the first delta
        with pytest.raises(UnsupportedModel, match="leaves out"):
            Chat(tokenizer)
    else:
        with pytest.raises(UnsupportedModel, match=says):
            Chat(tokenizer)


@pytest.mark.parametrize("style", STYLES)
def test_a_session_may_open_with_tools_and_no_message(style):
    template, special = STYLES[style]
    e = small_engine(eos_ids=[len(special) - 1], num_pages=512)
    e.tokenizer = byte_tokenizer(template, special)
    tool = {"name": "look_up_a_thing", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    session = e.open(tools=[tool])
    session.send("Is it raining?", max_new_tokens=2, tool_choice=None)
    assert "look_up_a_thing" in e.tokenizer.decode(session.token_ids)
    with pytest.raises(BadMessage, match="lone surrogate"):
        e.open(tools=[{**tool, "description": "\ud800"}])


def no_chat():
    raise UnsupportedModel("there is no template")


def test_raw_ids_need_no_template_unless_messages_are_pending():
    known = Transcript((USER, {"role": "assistant", "content": "x"}), in_log=2)
    assert read_input(no_chat, known, [5, 6], None, [7]) == (2, [7], known.with_raw_ids(), False)
    goes_on = read_input(lambda: Chat(tiny.tokenizer()), known, [5, 6], None, [])
    assert goes_on == (2, [], known, False)
    with pytest.raises(UnsupportedModel):
        read_input(no_chat, Transcript((USER,)), [], None, [7])
    with pytest.raises(UnsupportedModel):
        read_input(no_chat, known, [5, 6], "hi", None)
    with pytest.raises(BadMessage, match="at least one token"):
        read_input(no_chat, Transcript(), [], None, [])
    for messages, ids in (("hi", [7]), (None, None)):
        with pytest.raises(BadMessage, match="either messages or token_ids"):
            read_input(no_chat, known, [5, 6], messages, ids)


def test_raw_ids_follow_on_pending_messages():
    chat = Chat(tiny.tokenizer())
    keep, ids, transcript, _ = read_input(lambda: chat, Transcript((USER,)), [], None, [7])
    assert (keep, transcript.messages) == (0, None)
    assert ids == [*chat.encode(chat.render([USER], reply=False)), 7]


NINE = DIALECTS_HEAD.replace(
    "{{- '<|im_start|>assistant",
    "{%- for c in m.tool_calls or [] %}{%- if c.id | length != 9 %}{{- raise_exception('ids have length 9') }}"
    "{%- endif %}{%- endfor %}{{- '<|im_start|>assistant",
).replace("'<|im_start|>tool\n'", "'<|im_start|>tool ' + m.tool_call_id + '\n'")
COUNTS = "{%- set n = namespace(calls=0) %}" + DIALECTS_HEAD.replace(
    "'<|im_start|>tool\n'", "'<|im_start|>tool ' ~ n.calls ~ '\n'"
).replace("(m.content or '') }}", "(m.content or '') }}{%- set n.calls = n.calls + (m.tool_calls or []) | length %}")
CALLED = DIALECTS["a JSON list with ids"] + TAIL
PLAIN_CALLED = DIALECTS["JSON between marks"] + TAIL.replace("{{- tools | tojson }}", "")
AGENT = [
    {"role": "user", "content": "go"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": i, "name": "f", "arguments": {}} for i in ("call_1x", "call_2x")],
    },
    {"role": "tool", "tool_call_id": "call_2x", "content": "second"},
    {"role": "tool", "tool_call_id": "call_1x", "content": "first"},
]


def test_ids_that_a_template_refuses_are_replaced_by_ids_that_it_takes_in_calls_and_results_alike():
    chat = Chat(byte_tokenizer(NINE + CALLED, TOKENS), frozenset([2]))
    assert not chat.template.takes_ids and chat.template.writes_calls
    text = chat.render(normalise(AGENT), reply=True)
    ids = re.findall(r'"id": "(\w{9})"', text)
    assert len(set(ids)) == 2 and re.findall(r"tool (\w{9})\n(\w+)", text) == [(ids[0], "first"), (ids[1], "second")]
    behind = chat.template.behind_reply(AGENT[:1], normalise(AGENT)[1]["tool_calls"], normalise(AGENT)[2:])
    assert text.endswith(behind), "a delta has the ids of the whole rendering"
    assert Chat(byte_tokenizer(DIALECTS_HEAD + CALLED, TOKENS), frozenset([2])).template.takes_ids


def test_a_template_that_counts_calls_is_known_to_look_back():
    chat = Chat(byte_tokenizer(COUNTS + PLAIN_CALLED, TOKENS), frozenset([2]))
    assert chat.looks_back
    assert not Chat(byte_tokenizer(DIALECTS_HEAD + PLAIN_CALLED, TOKENS), frozenset([2])).looks_back
