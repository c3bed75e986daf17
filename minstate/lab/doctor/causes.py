"""Why a request parts from what its session had computed: the cause, the message, and how to mend it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minstate.chat.content import common_prefix

CAUSES = {  # what is wrong, and what to change
    "volatile": ("a date, a time or an id in the system prompt", "move it from the system prompt to the last message"),
    "system": ("another system prompt", "keep one system prompt, and put what varies behind the conversation"),
    "tools_order": ("the same tools in another order", "sort the tools by name before each request"),
    "tools_form": ("the same tools, serialised differently", "serialise the tools once, and send this text always"),
    "tools": ("other tools than before", "send all tools from the first request on, and restrict with tool_choice"),
    "thought": ("the thoughts of an earlier reply were dropped", "send them back, or let the engine keep the session"),
    "template": ("the template writes an earlier message differently", "keep the session in the engine, which appends"),
    "retokenised": ("a reply's text gives other tokens than were generated", "send token ids, or keep the session"),
    "calls": ("an earlier call was serialised anew", "send calls back exactly as the model wrote them"),
    "trimmed": ("earlier messages were left out", "trim rarely and much, not a little at every request"),
    "limit": ("an earlier message was cut to a limit", "cut a long result before it is sent for the first time"),
    "edited": ("an earlier message was edited", "append a correction, and leave earlier messages alone"),
}
VOLATILE = re.compile(
    r"\d{1,2}:\d\d|\d{4}-\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}|[0-9a-f]{8,}|[0-9a-f]{8}-[0-9a-f]{4}|\d{6,}"
    r"|\b(?:jan|feb|mar|apr|may|june?|july?|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)[a-z]*\b|\b(?:19|20)\d\d\b",
    re.IGNORECASE,
)


def canonical(value: Any) -> str:
    """A JSON value as text, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def meaning(message: Mapping) -> tuple:
    """What a message says, whatever its ids, its thoughts and the space around its text."""
    calls = tuple((call["name"], canonical(call["arguments"])) for call in message.get("tool_calls") or ())
    return message["role"], without_thoughts(message["content"]).strip(), calls


def without_thoughts(text: str) -> str:
    """A reply's text without thoughts that stand at its beginning."""
    return re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)


def tools_cause(before: Sequence[Mapping], now: Sequence[Mapping]) -> str:
    """What happened to the tools; "" if their text is the same."""
    if json.dumps(list(before)) == json.dumps(list(now)):
        return ""
    old, new = [canonical(tool) for tool in before], [canonical(tool) for tool in now]
    if old == new:
        return "tools_form"
    return "tools_order" if sorted(old) == sorted(new) else "tools"


def messages_cause(before: Sequence[Mapping], now: Sequence[Mapping]) -> tuple[str, int | None]:
    """What happened to the messages, and to which; `("", None)` if each is as it was, as far as messages tell."""
    for index, (old, new) in enumerate(zip(before, now, strict=False)):
        same_calls = json.dumps(old.get("tool_calls")) == json.dumps(new.get("tool_calls"))  # in this order of keys
        if old == new and same_calls:
            continue
        if meaning(old) == meaning(new):
            if _thoughts(old) and not _thoughts(new):
                return "thought", index
            if not same_calls:
                return "calls", index
            continue
        if old["role"] == new["role"] == "system":
            return _system_cause(old["content"], new["content"]), index
        later = {meaning(each) for each in before[index + 1 :]}
        if "system" in (old["role"], new["role"]):
            return "system", index
        goes_on = len(before) - index > 1 and index + 1 < len(now)
        if meaning(new) in later or (goes_on and meaning(now[index + 1]) != meaning(before[index + 1])
                                     and any(meaning(each) in later for each in now[index + 1 :])):  # fmt: skip
            return "trimmed", index
        return ("limit" if _is_cut(old["content"], new["content"]) else "edited"), index
    return "", None


def _thoughts(message: Mapping) -> bool:
    return bool(message.get("reasoning_content")) or without_thoughts(message["content"]) != message["content"]


def changed_part(old: str, new: str) -> tuple[str, str]:
    """The words of two texts between what they have in common at the beginning and at the end."""
    start = common_prefix(old, new)
    end = common_prefix(old[start:][::-1], new[start:][::-1])
    first = max(old.rfind(space, 0, start) for space in " \n") + 1
    behind = [place for space in " \n" if (place := old.find(space, len(old) - end)) >= 0]
    tail = len(old) - min(behind, default=len(old))
    return old[first : len(old) - tail], new[first : len(new) - tail]


def _system_cause(old: str, new: str) -> str:
    parts = changed_part(old, new)
    small = max(map(len, parts)) <= max(80, min(len(old), len(new)) // 4)
    return "volatile" if small and all(VOLATILE.search(part) or not part for part in parts) and any(parts) else "system"


def _is_cut(old: str, new: str) -> bool:
    """Whether the new text is the old one's beginning, perhaps with its end, and a few words about what was cut."""
    start = common_prefix(old, new)
    end = common_prefix(old[start:][::-1], new[start:][::-1])
    return len(new) < len(old) and start + end >= len(new) - 60 and start >= min(20, len(new) // 2)
