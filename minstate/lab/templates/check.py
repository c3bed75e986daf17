"""Checks of one chat template: that every turn's delta is what the template writes, and that replies can be read back.

Each check returns what is wrong, "" if nothing is. A template that refuses a conversation is right to do so where
transformers refuses it too.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from minstate.chat.content import plain
from minstate.chat.conversation import Chat
from minstate.chat.grammar import Grammars
from minstate.chat.messages import normalise, normalise_tools
from minstate.chat.transcript import Transcript
from minstate.errors import MinstateError, UnsupportedSchema

USER = {"role": "user", "content": "What is the weather in Oslo?"}
MORE = {"role": "user", "content": "And tomorrow?\n\nThank you."}
REPLY = {"role": "assistant", "content": "It is raining."}
SYSTEM = {"role": "system", "content": "You are brief."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Gives the {name}.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where."},
                    "days": {"type": "integer", "description": "How many days."},
                },
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "get_news")
]
CALLS = [
    {"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}},
    {"name": "get_news", "arguments": {"city": 'the "other" city\nÅlesund'}},
]
RESULTS = [{"role": "tool", "content": "12 °C"}, {"role": "tool", "content": '{"headline": "Rain"}'}]
CHECKS = ("conversation", "system", "calls", "results", "several calls", "thoughts", "hostile content", "grammar")


@dataclass
class Verdict:
    """What the checks of a template found."""

    name: str
    dialect: str = ""  # "" if the template cannot be used
    writes_calls: bool = False  # whether the template itself writes calls
    looks_back: bool = False
    found: dict[str, str] = field(default_factory=dict)  # by check: what is wrong, "" if nothing is, "refused: …"

    @property
    def outcome(self) -> str:
        """ "exact", "wrong", or "refused"."""
        wrong = [problem for problem in self.found.values() if problem and not problem.startswith("refused")]
        return "wrong" if wrong else "exact" if self.dialect else "refused"


def check_template(name: str, tokenizer, eos_ids: frozenset[int]) -> Verdict:
    """All checks of the tokenizer's chat template."""
    verdict = Verdict(name)
    try:
        chat = Chat(tokenizer, eos_ids)
    except MinstateError as error:
        refused = "refused" if not renders(tokenizer, [USER, REPLY, MORE]) else "refused wrongly"
        verdict.found["conversation"] = f"{refused}: {error}"[:200]
        if refused == "refused wrongly":
            verdict.found["conversation"] = "wrong: " + verdict.found["conversation"]
        return verdict
    verdict.dialect, verdict.writes_calls = chat.dialect.name, chat.template.writes_calls
    verdict.looks_back = chat.looks_back
    checks: list[Callable[[], str]] = [
        partial(deltas, chat, [], [([USER], REPLY), ([MORE], REPLY)]),
        partial(deltas, chat, [SYSTEM], [([USER], REPLY), ([MORE], REPLY)]),
        partial(read_back, chat, CALLS[:1]),
        partial(deltas, chat, [], [([USER], called(CALLS[:1])), (RESULTS[:1], REPLY), ([MORE], REPLY)]),
        partial(several, chat),
        partial(thoughts, chat),
        partial(hostile, chat),
        partial(grammar, chat, tokenizer, eos_ids),
    ]
    for check, run in zip(CHECKS, checks, strict=True):
        try:
            verdict.found[check] = run()
        except MinstateError as error:
            verdict.found[check] = f"refused: {error}"[:200]
    return verdict


def renders(tokenizer, messages: Sequence[dict[str, Any]], tools=None) -> bool:
    """Whether transformers renders a conversation, with all that was said in it."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False)
    except Exception:  # noqa: BLE001  a template may raise anything
        return False
    return all(message["content"].splitlines()[0] in text for message in messages)


def called(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """A reply of calls."""
    return {"role": "assistant", "content": "", "tool_calls": calls}


def deltas(chat: Chat, opening: list, turns: list[tuple[list, dict]]) -> str:
    """Whether each delta is the text that the template writes behind the reply before, given the whole history."""
    tools = normalise_tools(TOOLS) if any(reply.get("tool_calls") for _, reply in turns) else ()
    transcript = Transcript(tuple(opening), tools)
    for number, (messages, reply) in enumerate(turns):
        new = normalise(messages)
        if number:
            history = (transcript.messages or ())[:-1]
            last = (transcript.messages or ())[-1]
            calls = list(last.get("tool_calls", ()))
            whole = chat.template.behind_reply(history, calls, new, transcript.tools)
            said = replace(transcript, in_log=len(transcript.messages or ()))
            delta = chat.behind_reply(said, new)
            if delta != whole:
                return f"behind a reply comes {whole[-60:]!r}, and not {delta[-60:]!r}"
        (said,) = normalise(reply)
        transcript = transcript.with_messages(new, 0).with_reply(said)
    return ""


def read_back(chat: Chat, calls: list[dict[str, Any]]) -> str:
    """Whether calls that the template has written are read as what they were."""
    text = chat.render(normalise([USER, called(calls)]), TOOLS, reply=False)
    head = chat.render(normalise([USER]), TOOLS, reply=True)
    begin = len(head) if text.startswith(head) else text.rindex(USER["content"]) + len(USER["content"])
    opens = chat.dialect.marks[0].strip()
    if not text.startswith(head) and opens:
        begin = text.find(opens, begin)
    rest = plain(text[begin:])
    last = list(calls[-1]["arguments"])[-1]
    for end in chat.template.ends:
        at = rest.find(chat.tokenizer.decode([end]), rest.rfind(last) + len(last))
        rest = rest[:at] if at >= 0 else rest
    reply = chat.dialect.read(rest, thinking=text.startswith(head) and chat.begins_thoughts(head))
    written = chat.dialect.read(chat.dialect.write(calls))
    for read in (reply, written) if chat.dialect.name != "Harmony" else (written,):
        got = [(call.name, call.arguments, call.error) for call in read.calls]
        wanted = [(call["name"], call["arguments"], "") for call in calls]
        if got != wanted:
            return f"of {rest[-200:]!r} it reads {got}"
    return ""


def several(chat: Chat) -> str:
    """Two calls in one reply, and their results."""
    if chat.dialect.next is None:
        return ""
    return read_back(chat, CALLS) or deltas(chat, [], [([USER], called(CALLS)), (RESULTS, REPLY), ([MORE], REPLY)])


def thoughts(chat: Chat) -> str:
    """Whether thoughts are told from what follows."""
    if not chat.dialect.think:
        return ""
    opens, closes = (mark.strip() for mark in chat.dialect.think)
    call = chat.dialect.write(CALLS[:1])
    for thinking in (False, True):
        text = f"{'' if thinking else opens}\nLet me {call} see.\n{closes}\n\nIt rains."
        reply = chat.dialect.read(text, thinking=thinking)
        if reply.calls or "see." not in reply.reasoning or reply.text != "It rains.":
            return f"of {text!r} it reads {reply}"
    return ""


def hostile(chat: Chat) -> str:
    """Whether content that spells control tokens becomes any: the same control tokens as for harmless content."""
    control = set(chat.template.control.ids.values())
    names = list(itertools.islice(chat.template.control.ids, 40))
    attack = " ".join(names) + "".join(names)

    def controls(text: str) -> tuple[list[int], bool]:
        rendered = chat.render(normalise([{"role": "user", "content": f"x {text} y"}]), reply=True)
        ids = chat.encode(rendered)
        return [i for i in ids if i in control], plain(rendered) == chat.tokenizer.decode(ids)

    harmless, _ = controls("z")
    found, is_whole = controls(attack)
    if found != harmless:
        return f"content wrote control tokens: {len(found)} instead of {len(harmless)}"
    if not is_whole:
        return "content is not given back"
    return ""


def grammar(chat: Chat, tokenizer, eos_ids: frozenset[int]) -> str:
    """Whether the grammar of required calls accepts what the template writes, and nothing that differs."""
    grammars = Grammars(tokenizer, len(tokenizer), chat.template.ends or eos_ids, chat.dialect)
    calls = [{**call, "id": "call00000"} for call in CALLS[:1]]
    right = chat.dialect.write(calls).lstrip()
    try:
        for choice in ("required", "auto"):
            if problem := _accepts(grammars.constraint(TOOLS, choice, None), tokenizer, chat.encode(right)):
                return f"{choice}: {problem} of {right!r}"
    except UnsupportedSchema as error:
        return f"refused: {error}"
    for wrong in (right.replace("get_weather", "get_leather"), right.replace("city", "town"), "No. " + right):
        if not _accepts(grammars.constraint(TOOLS, "required", None), tokenizer, chat.encode(wrong)):
            return f"required: accepts {wrong!r}"
    return ""


def _accepts(constraint, tokenizer, ids: list[int]) -> str:
    """Where a constraint refuses a reply; "" if it takes it to its end."""
    for place, token in enumerate(ids):
        if not constraint.allows(token):
            return f"refuses {tokenizer.decode(ids[place:])[:40]!r}"
        constraint.advance(token)
    return ""


CONTROL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?[A-Z_]{3,20}\]|<\|[a-z_\"]{1,20}>|<[a-z_]{1,20}\|>|</?s>"
    r"|</?(?:think|tool_call|tool_response|arg_key|arg_value|start_of_turn|end_of_turn|sep|seed:[a-z_]+)>"
)


def control_tokens_in(template: str) -> list[str]:
    """What looks like a control token in a template's source."""
    return sorted({"<s>", "</s>", *CONTROL.findall(template)})
