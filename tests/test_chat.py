"""Deltas of messages are the tokens that the whole conversation would have had."""

import json

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from minstate import BadMessage, UnsupportedModel
from minstate.chat import Chat, ToolCall, parse_tool_calls
from minstate.weights import find_model, read_tokenizer

TOKENIZERS = {"tiny": tiny.tokenizer, "real": lambda: read_tokenizer(find_model())}
CONVERSATION = [
    {"role": "user", "content": "  List the files,\n\n please. "},
    {"role": "assistant", "content": "Sure.\n"},
    {"role": "tool", "content": '["setup.py", "naïve 日本.txt"]\n\n\n'},
    {"role": "assistant", "content": "Two files."},
    {"role": "user", "content": "\nThanks"},
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_deltas_add_up_to_the_whole_rendering(name, system):
    tokenizer = TOKENIZERS[name]()
    chat = Chat(tokenizer)
    opening = [{"role": "system", "content": system}] if system else []
    log = chat.opening(opening, tools=[]) if opening else []
    for i, message in enumerate(CONVERSATION):
        if message["role"] == "assistant":  # sampled: its text, then the end-of-message token
            log += [*tokenizer.encode(message["content"], add_special_tokens=False), chat.end_of_message]
        else:
            log += chat.close_reply(log[-1]) if i else []
            log += chat.delta(message, first=not log)
    whole = tokenizer.apply_chat_template(opening + CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert log == tokenizer.encode(whole, add_special_tokens=False)


def test_a_reply_that_was_cut_off_is_closed():
    chat = Chat(tiny.tokenizer())
    decode = tiny.tokenizer().decode
    assert decode(chat.close_reply(chat.end_of_message)) == "\n"
    assert decode(chat.close_reply(70)) == "<|im_end|>\n"


def test_the_templates_default_system_message_comes_once():
    chat, decode = Chat(tiny.tokenizer()), tiny.tokenizer().decode
    assert decode(chat.delta("hi", first=True)).startswith("<|im_start|>system\nDefault.<|im_end|>\n")
    assert decode(chat.delta("hi", first=False)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "Be brief."}]])
def test_tools_are_described_in_the_system_message(messages):
    text = tiny.tokenizer().decode(Chat(tiny.tokenizer()).opening(messages, [TOOL]))
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n")
    assert json.dumps(TOOL) in text and text.count("<|im_start|>") == 1
    assert ("Be brief." in text) == bool(messages)


@pytest.mark.parametrize("tools", ["ls", [5], [{"f": object()}], {"name": "ls"}])
def test_tools_must_be_schemas(tools):
    with pytest.raises(BadMessage, match="tools"):
        Chat(tiny.tokenizer()).opening([], tools)


@pytest.mark.parametrize(
    "call",
    [
        {"name": "ls", "arguments": {"path": "é"}},
        {"type": "function", "id": "1", "function": {"name": "ls", "arguments": '{"path": "é"}'}},
        ToolCall("ls", {"path": "é"}, raw=""),
    ],
    ids=["plain", "OpenAI", "parsed"],
)
def test_tool_calls_are_written_as_they_are_read(call):
    message = {"role": "assistant", "content": "Let me look.", "tool_calls": [call]}
    text = tiny.tokenizer().decode(Chat(tiny.tokenizer()).delta(message, first=False))
    body = text.removeprefix("<|im_start|>assistant\n").partition("<|im_end|>")[0]
    assert body.startswith("Let me look.\n<tool_call>\n")
    (parsed,) = parse_tool_calls(body)
    assert (parsed.name, parsed.arguments, parsed.error) == ("ls", {"path": "é"}, "")


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
    (call,) = parse_tool_calls("First I look. " + text)
    assert error in call.error and call.arguments == {}


def test_several_calls_are_found_in_order():
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call> and <tool_call>{"name": "b"}</tool_call>'
    assert [call.name for call in parse_tool_calls(text)] == ["a", "b"]


@pytest.mark.parametrize(
    "template, says",
    [
        (None, "no chat template"),
        ("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}", "not append-only ChatML"),
        ("{{ raise_exception('only two roles') }}", "only two roles"),
        (  # a template that merges neighbouring tool results
            "{% for m in messages %}{% if m['role'] != 'tool' or messages[loop.index0 - 1]['role'] != 'tool' %}"
            "{{ '<|im_start|>' + m['role'] + '\n' }}{% endif %}{{ m['content'] }}"
            "{% if loop.last or m['role'] != 'tool' or messages[loop.index0 + 1]['role'] != 'tool' %}"
            "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            "not append-only ChatML",
        ),
        (  # a template that drops all but the last message's text
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
            "{% if loop.last %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}",
            "not append-only ChatML",
        ),
    ],
)
def test_templates_that_are_not_append_only_chatml_are_refused(template, says):
    raw = tiny.tokenizer().backend_tokenizer
    with pytest.raises(UnsupportedModel, match=says):
        Chat(PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=template))
