"""Families of models whose dialects are known by name, and the marks around thoughts."""

from minstate.chat.dialect import Dialect, Json
from minstate.chat.spelling import PYTHON, Tagged

THOUGHTS = [  # around thoughts; the second mark is in the template of every model that has them
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
]
HARMONY = Dialect(
    "Harmony",
    open="<|channel|>commentary to=functions.",
    next=None,
    close="",
    arguments=Json(" <|constrain|>json<|message|>"),
    behind_content="<|end|><|start|>assistant",
    behind_thoughts="<|start|>assistant",
    before_answer="<|channel|>final<|message|>",
    frame=(
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>commentary<|message|>",
        "<|end|>",
    ),
)


def _list_of_calls(name: str, opens: str, closes: str, key: str = "arguments") -> Dialect:
    """A dialect whose calls are one JSON list between two marks."""
    return Dialect(
        name,
        open=f'{opens}[{{"name": "',
        next='}, {"name": "',
        close=f"}}]{closes}",
        arguments=Json(f'", "{key}": ', begins=len(opens)),
    )


def _pythonic(name: str, opens: str, closes: str) -> Dialect:
    """A dialect whose calls are a list of calls in Python."""
    calls = Tagged("(", "(", ", ", "=", "=", "", "", PYTHON)
    return Dialect(name, open=f"{opens}[", next="), ", close=f")]{closes}", arguments=calls)


# Texts that occur in a model's template or among its tokens, all of them, and the dialect that they are evidence of.
NAMED: list[tuple[tuple[str, ...], Dialect]] = [
    (("<|channel|>", "<|message|>", "<|start|>", "commentary"), HARMONY),
    (("<|tool_call|>", "<|/tool_call|>"), _list_of_calls("Phi-4-mini", "<|tool_call|>", "<|/tool_call|>")),
    (("<|tool_call_start|>", "<|tool_call_end|>"), _pythonic("LFM2", "<|tool_call_start|>", "<|tool_call_end|>")),
    (("<|start_of_role|>", "<|tool_call|>"), _list_of_calls("Granite 3", "<|tool_call|>", "")),
    (("[TOOL_CALLS]", "[TOOL_RESULTS]"), _list_of_calls("Mistral", "[TOOL_CALLS]", "")),
    ((" functools[",), _list_of_calls("Firefunction", " functools", "")),
    (("<function_calls>", "newline-separated"), _pythonic("OLMo 3", "<function_calls>", "</function_calls>")),
    (("[func_name1(params_name1=params_value1",), _pythonic("Pythonic", "", "")),
]
