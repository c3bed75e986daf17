"""The judge of lab 2: the engine speaks a family's dialect of tool calls that its chat template does not show.

The family is InternLM 2 and 2.5. Its calls are described in
[Chat Format](https://github.com/InternLM/InternLM/blob/main/chat/chat_format.md). The template here has the form of
that family's: it writes the contents of messages, and leaves calls out, so there is nothing for a probe to see.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from minstate.chat.conversation import Chat
from minstate.chat.dialect import Dialect
from minstate.chat.grammar import Grammars
from minstate.engine import Engine
from minstate.lab.course.finding import Finding
from minstate.lab.engines.small_engine import CONFIG, byte_tokenizer
from minstate.lab.engines.template_styles import CHATML, CHATML_TOKENS
from minstate.model import Model
from minstate.sampling import Sampling

TOKENS = [*CHATML_TOKENS, "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>"]
END = TOKENS.index("<|im_end|>")
OPEN, CLOSE = "<|action_start|><|plugin|>\n", "<|action_end|>"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["location"],
        },
    },
}
WAIT = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, WAIT]
CALL = {"name": "get_current_weather", "arguments": {"location": "Shanghai", "days": 2}}
WRITTEN = OPEN + '{"name": "get_current_weather", "parameters": {"location": "Shanghai", "days": 2}}' + CLOSE
CODE = "<|action_start|><|interpreter|>\n```python\nprint(1)\n```<|action_end|>"
REPLIES = [  # what a model may write, the content in it, and the arguments of its call; None for a call that is wrong
    (f"I look.{WRITTEN}", "I look.", [CALL["arguments"]]),
    (WRITTEN.replace("\n", ""), "", [CALL["arguments"]]),
    (WRITTEN.replace("parameters", "arguments"), "", [CALL["arguments"]]),
    (OPEN + '{"parameters": {"location": "a"}, "name": "get_current_weather"}' + CLOSE, "", [{"location": "a"}]),
    (WRITTEN.replace("Shanghai", CLOSE), "", [{"location": CLOSE, "days": 2}]),
    (WRITTEN.replace("Shanghai", 'a \\"b\\" {'), "", [{"location": 'a "b" {', "days": 2}]),
    (WRITTEN.removesuffix(CLOSE), "", [None]),
    (WRITTEN.replace("2}}", "2}"), "", [None]),
    (WRITTEN.replace("get_current_weather", "walk"), "", [None]),
    ("It rains in Shanghai.", "It rains in Shanghai.", []),
    (CODE, CODE, []),
]
REFUSED = [  # what a reply that has to be a call must not be
    "It rains.",
    WRITTEN.replace("2}", '"two"}'),
    WRITTEN.replace("get_current_weather", "walk"),
    WRITTEN.replace("parameters", "arguments"),
    WRITTEN + "\n" + WRITTEN,
    '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>',
]
FAMILIES = {  # texts that show which family a template or a tokenizer is of, and the dialect's name
    "<|channel|><|message|><|start|>commentary": "Harmony",
    "<|tool_call|><|/tool_call|>": "Phi-4-mini",
    "<|tool_call_start|><|tool_call_end|>": "LFM2",
    "<|start_of_role|><|tool_call|>": "Granite 3",
    "[TOOL_CALLS][TOOL_RESULTS]": "Mistral",
    " functools[": "Firefunction",
    "<function_calls>newline-separated": "OLMo 3",
    "a model of no family": "Hermes",
}


def judge_dialect() -> Iterator[Finding]:
    """What the engine writes, reads, allows and lets a model write, in this dialect and in the others."""
    chat = chat_of(CHATML, TOKENS)
    dialect = chat.dialect
    written, wanted = dialect.write_message({"content": "I look.", "tool_calls": [CALL]}), f"I look.{WRITTEN}"
    yield Finding("A call is written as the family writes it, right behind the text.", written == wanted, repr(written))
    wrong = [text for text, content, calls in REPLIES if _read(dialect, text) != (content, calls)]
    shown = f"not so: {wrong[0]!r} is read as {_read(dialect, wrong[0])}" if wrong else "each as it is meant"
    yield Finding(f"{len(REPLIES)} replies are read: text, calls, and what is wrong with them.", not wrong, shown)
    fits = {text: _fits(chat, text) for text in (WRITTEN, *REFUSED)}
    wrong = [text for text, fit in fits.items() if fit != (text == WRITTEN)]
    shown = f"not so: {wrong[0]!r}" if wrong else f"the call fits, and {len(REFUSED)} texts that are none do not"
    yield Finding("Under tool_choice='required' the grammar allows one call in this dialect.", not wrong, shown)
    turn = _engine().open(tools=TOOLS).send("go", tool_choice="wait", max_new_tokens=150, sampling=Sampling(1.0))
    text = chat.tokenizer.decode(turn.token_ids)  # `turn.text` leaves special tokens out
    right = [(call.name, call.error) for call in turn.tool_calls] == [("wait", "")] and text.startswith(OPEN)
    yield Finding("A random model that has to call a tool calls it in this dialect.", right, repr(text))
    found = {text: chat_of("{#- " + text + " #}" + CHATML, CHATML_TOKENS).dialect.name for text in FAMILIES}
    wrong = [f"{text!r} is taken for {name}" for text, name in found.items() if name != FAMILIES[text]]
    yield Finding("Other families are known as before.", not wrong, wrong[0] if wrong else f"{len(found)} families")


def chat_of(template: str, tokens: list[str]) -> Chat:
    """A chat with this template and these special tokens."""
    return Chat(byte_tokenizer(template, tokens), frozenset([END]))


def _read(dialect: Dialect, text: str) -> tuple[str, list]:
    """A reply's text, and the arguments of its calls; None for a call that is reported as wrong."""
    reply = dialect.read(text, TOOLS)
    return reply.content, [None if call.error else call.arguments for call in reply.calls]


def _fits(chat: Chat, text: str) -> bool:
    """Whether a reply may consist of this text, if it has to call a tool and may call several."""
    grammars = Grammars(chat.tokenizer, len(TOKENS) + 256, frozenset([END]), chat.dialect)
    constraint = grammars.constraint(TOOLS, "required", None, parallel=True)
    for token in chat.encode(text):
        if not constraint.allows(token):
            return False
        constraint.advance(token)
    return constraint.ended or constraint.allows(END)


def _engine() -> Engine:
    """An engine with the family's tokens, around a small random model."""
    config = replace(CONFIG, vocab_size=len(TOKENS) + 256)
    draw = torch.Generator().manual_seed(0)
    shapes = config.tensor_shapes().items()
    weights = {name: 0.3 * torch.randn(size, generator=draw, dtype=torch.float64) for name, size in shapes}
    return Engine(Model(config, weights), byte_tokenizer(CHATML, TOKENS), eos_ids=[END], page_size=16, num_pages=100)
