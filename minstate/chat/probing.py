"""Which dialect a model speaks: learnt from what its chat template writes, or known by name.

A template that can write tool calls is given a conversation with calls of two *probe tools*. What it writes between
names and arguments are the pieces of the dialect. The dialect is taken only if it then writes and reads these calls as
the template does. `families.NAMED` has the dialects of templates from which this cannot be learnt: they leave calls
out, or write in another form than the model does.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from minstate.chat.content import common_prefix, common_tail
from minstate.chat.dialect import HERMES, ID, INDEX, NEXT_ID, Dialect, Json
from minstate.chat.families import HARMONY, NAMED, THOUGHTS
from minstate.chat.json_calls import read_json
from minstate.chat.spelling import GEMMA, PYTHON, Tagged

Render = Callable[..., str]  # (messages, tools=(), reply=False) → text; raises ValueError
LEARNT = replace(HERMES, name="learnt")
VARIANTS = [  # of how calls are passed to a template
    LEARNT,
    replace(LEARNT, none_content=True),
    replace(LEARNT, text_arguments=True, none_content=True),
    replace(LEARNT, ids="functions.{name}:{index}"),
]


def find_dialect(
    render: Render, template: str, tokens: Iterable[str], ends: tuple[str, ...], reply_end: str
) -> tuple[Dialect, bool]:
    """The dialect of a model, and whether its template writes calls in it.

    template   its source
    tokens     the tokenizer's added tokens
    ends       those that end a reply
    reply_end  what the template writes behind a reply
    """
    think = next((marks for marks in THOUGHTS[:-1] if marks[1] in template), None)  # the last one is Harmony's
    known = template + "\n".join(tokens)
    named = next((dialect for evidence, dialect in NAMED if all(text in known for text in evidence)), None)
    if named is HARMONY:  # its templates write calls in another way than its models do
        asked = Probe(render, None, ends, reply_end, LEARNT)
        return replace(HARMONY, think=THOUGHTS[-1]), asked.is_answered()
    for variant in VARIANTS:
        try:
            learnt = Probe(render, think, ends, reply_end, variant).dialect()
        except ValueError:
            continue
        pieces = (learnt.open, learnt.next, learnt.close, learnt.arguments)
        is_hermes = pieces == (HERMES.open, HERMES.next, HERMES.close, HERMES.arguments)
        return replace(learnt, think=think, name=HERMES.name if is_hermes else learnt.name), True
    return replace(named or HERMES, think=think), False


A, B = "probe_tool_a", "probe_tool_b"
TEXT, NUMBER = "probe text", 7301
FIRST, SECOND = {"alpha": TEXT, "beta": NUMBER}, {"alpha": NUMBER, "beta": TEXT}
HARD = 'a "quoted"\nback\\slash'
QUESTION = {"role": "user", "content": "probe question"}
IDS = ("probe0001", "probe0002")  # nine letters and digits, as Mistral's templates demand
SPELLINGS = [Json(""), Json("", separators=(",", ":"))]
SPELLINGS += [Json("", (",", ": "), indent, margin) for indent in (2, 4) for margin in (0, 2, 4, 8)]


def probe_tool(name: str) -> dict[str, Any]:
    """A tool with all that templates read of one."""
    kinds = {"alpha": "string", "beta": "integer"}
    properties = {key: {"type": kind, "description": f"The {key}."} for key, kind in kinds.items()}
    parameters = {"type": "object", "properties": properties, "required": list(FIRST)}
    return {"type": "function", "function": {"name": name, "description": "Probes.", "parameters": parameters}}


PROBE_TOOLS = [probe_tool(A), probe_tool(B)]


class Probe:
    """Learns a dialect from a template. Every method raises ValueError where the template does not play along."""

    def __init__(self, render: Render, think, ends: tuple[str, ...], reply_end: str, variant: Dialect):
        self.render, self.think, self.ends, self.reply_end = render, think, ends, reply_end.strip()
        self.variant = variant  # how calls are passed to the template
        head = render([QUESTION], PROBE_TOOLS, reply=True)
        with_reply, found, _ = self._rendered([QUESTION, {"role": "assistant", "content": A}]).rpartition(A)
        # Some templates write the last question in another way than an earlier one.
        self.heads = [head, with_reply] if found else [head]

    def dialect(self) -> Dialect:
        """The dialect, which writes and reads what the template writes."""
        one = self._calls([(A, FIRST)])
        opens, at = self._opening(one)
        two = self._two_calls()
        found = self._json(one, at)
        dialect = self._with_json(opens, one, two, at, found) if found else self._tagged(opens, one, two)
        dialect = replace(dialect, behind_content=self._behind_content(opens))
        self._verify(dialect, one, two)
        return dialect

    def is_answered(self) -> bool:
        """Whether the template writes calls at all."""
        with suppress(ValueError):
            return bool(self._calls([(A, FIRST)]))
        return False

    def _call(self, index: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        plain = self.variant.ids == HERMES.ids
        call_id = IDS[index] if plain else self.variant.ids.format(name=name, index=index)
        value = json.dumps(arguments) if self.variant.text_arguments else dict(arguments)
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}

    def _calls(self, calls: list[tuple[str, Mapping[str, Any]]], content: str | None = None) -> str:
        """What the template writes for a reply of these calls, from its beginning to the end of its calls."""
        written = [self._call(i, name, arguments) for i, (name, arguments) in enumerate(calls)]
        empty = None if self.variant.none_content else ""
        talk = [QUESTION, {"role": "assistant", "content": content or empty, "tool_calls": written}]
        results = [{"role": "tool", "name": call["function"]["name"], "tool_call_id": call["id"],
                    "content": "probe result"} for call in written]  # fmt: skip
        names = [name for name, _ in calls]
        texts = [text for text in (self._reply([*talk, *results]), self._reply(talk)) if all(map(text.count, names))]
        if not texts:
            raise ValueError("the template refuses calls, or leaves them out")
        text, last = texts[0].partition("probe result")[0], names[-1]
        at = text.rindex(last)
        if (end := self._end(text, at)) is None:  # then it is behind what a last reply and another have in common
            behind = texts[-1][texts[-1].rindex(last) :]
            end = at + common_prefix(text[at:], behind)
        return text[:end].rstrip()

    def _reply(self, messages) -> str:
        """What the template writes for these messages behind the beginning of the reply; "" if it refuses them."""
        text = self._rendered(messages)
        begin = max(common_prefix(head, text) for head in self.heads)
        tag = text.rfind("<", 0, begin)  # two tags may begin alike
        return text[tag if tag >= 0 and ">" not in text[tag:begin] else begin :]

    def _rendered(self, messages) -> str:
        with suppress(ValueError):
            return self.render(messages, PROBE_TOOLS, reply=False)
        return ""

    def _end(self, text: str, behind: int) -> int | None:
        """Where the reply ends behind a position; None if nothing shows it."""
        ends = (text.find(end, behind) for end in (self.reply_end, *self.ends) if end)
        return min((at for at in ends if at >= 0), default=None)

    def _opening(self, one: str) -> tuple[str, int]:
        """What stands in front of the first name, and where that name ends."""
        at = one.index(A)
        opens = one[:at]
        if self.think and self.think[1] in opens:
            opens = opens.rpartition(self.think[1])[2]
        return opens.lstrip("\n"), at + len(A)

    def _two_calls(self) -> str:
        """What is written for two calls; "" if the template cannot write two in one reply."""
        two = ""
        with suppress(ValueError):
            two = self._calls([(A, FIRST), (B, FIRST)])
        between = two[two.index(A) : two.index(B)] if A in two else self.heads[0]
        return "" if any(end in between for end in (self.reply_end, *self.ends) if end) else two

    def _json(self, text: str, at: int) -> tuple[int, int, Json] | None:
        """Where the arguments begin and end behind a position, and how they are spelt; None if they are no JSON."""
        for begin in (i for i, char in enumerate(text) if i >= at and char == "{"):
            try:
                value, end = read_json(text, begin)
            except ValueError:
                continue
            if value == FIRST:
                spelt = next((each for each in SPELLINGS if each.write(FIRST) == text[begin:end]), None)
                if spelt is None:
                    raise ValueError("arguments are spelt in a way of their own")
                return begin, end, spelt
        return None

    def _with_json(self, opens: str, one: str, two: str, at: int, found) -> Dialect:
        begin, end, spelt = found
        before, close, following = one[at:begin], one[end:], None
        index_opens = index_before = None
        if two:
            first = self._json(two, two.index(A))
            second_at = two.index(B)
            assert first
            following = two[first[1] : second_at]
            second = self._json(two, second_at)
            if second is None:
                raise ValueError("two calls are written in two ways")
            index_before = _number_in(before, two[second_at + len(B) : second[0]])
            index_opens = _number_in(opens, following)
        sample = opens + A + one[at:end] + close
        begins = _json_begin(sample, len(opens) + len(A), len(sample) - len(close))
        arguments = replace(spelt, before=_general(_indexed(before, index_before)), begins=begins)
        return replace(
            self.variant,
            open=_general(_indexed(opens, index_opens)),
            next=None if following is None else _general(_indexed(following, index_opens, "1")),
            close=_general(close),
            arguments=arguments,
        )

    def _tagged(self, opens: str, one: str, two: str) -> Dialect:
        other, none = self._calls([(A, SECOND)]), self._calls([(A, {})])
        first, to_text, between_text, to_other, end_other = _around(one, A, "alpha", TEXT, "beta", str(NUMBER))
        _, _, between_other, _, end_text = _around(other, A, "alpha", str(NUMBER), "beta", TEXT)
        end_none = none[none.index(A) + len(A) :]
        close = common_tail(common_tail(end_text, end_other), end_none)
        if close.startswith(">"):
            close = close[min(i for i in (close.find("<"), close.find("\n")) if i >= 0) :]
        after_text, after_other = end_text[: len(end_text) - len(close)], end_other[: len(end_other) - len(close)]
        separator = between_text[len(after_text) :]
        if not between_text.startswith(after_text) or between_other != after_other + separator:
            raise ValueError("arguments are not written one after the other")
        quote = to_text[len(to_other) :] if to_text.startswith(to_other) else ""
        literals = {'"': PYTHON, "'": PYTHON, GEMMA.quotes[0]: GEMMA}.get(quote)
        if literals:
            to_text, after_text = to_other, after_other
        following = None
        if two:
            rest = two[: two.index(B)]
            following = rest[rest.index(str(NUMBER)) + len(str(NUMBER)) + len(after_other) :]
        arguments = Tagged(
            none=end_none[: len(end_none) - len(close)],
            first=first,
            separator=separator,
            to_text=to_text,
            to_other=to_other,
            after_text=after_text,
            after_other=after_other,
            literals=literals,
        )
        return replace(self.variant, open=opens, next=following, close=close, arguments=arguments)

    def _behind_content(self, opens: str) -> str:
        """What is written between a reply's text and its calls."""
        try:
            text = self._calls([(A, FIRST)], content="probe content")
        except ValueError:
            return "\n"
        _, found, rest = text.rpartition("probe content")
        begin = opens.replace(IDS[0], "").lstrip()[:8]
        return rest[: rest.index(begin)] if found and begin and begin in rest else "\n"

    def _verify(self, dialect: Dialect, one: str, two: str) -> None:
        """Raises ValueError unless the dialect writes what the template writes, and reads it back."""
        hard = {"alpha": HARD, "beta": NUMBER}
        cases = [(one, [(A, FIRST)]), (two, [(A, FIRST), (B, FIRST)]), (self._calls([(A, hard)]), [(A, hard)])]
        for text, calls in cases:
            if not text:
                continue
            wanted = [{"id": self._call(i, name, args)["id"], "name": name, "arguments": args}
                      for i, (name, args) in enumerate(calls)]  # fmt: skip
            written = dialect.write(wanted)
            if not text.endswith(written):
                raise ValueError("the pieces do not make up what the template writes")
            read = dialect.read(written).calls
            if [(call.name, call.arguments, call.error) for call in read] != [(n, a, "") for n, a in calls]:
                raise ValueError("what the template writes cannot be read")


def _around(text: str, *marks: str) -> list[str]:
    """The pieces of text between marks, which follow on each other, and the text behind the last one."""
    pieces, at = [], text.index(marks[0]) + len(marks[0])
    for mark in marks[1:]:
        found = text.index(mark, at)
        pieces.append(text[at:found])
        at = found + len(mark)
    return [*pieces, text[at:]]


def _general(piece: str) -> str:
    """A piece for calls of any id."""
    return piece.replace(IDS[0], ID).replace(IDS[1], NEXT_ID)


def _number_in(first: str, second: str) -> int | None:
    """Where two pieces for the calls 0 and 1 have this number, counted from the end; None if they have none."""
    at = len(common_tail(first, second)) + 1
    return -at if at <= min(len(first), len(second)) and (first[-at], second[-at]) == ("0", "1") else None


def _indexed(piece: str, at: int | None, number: str = "0") -> str:
    """The piece with `INDEX` in place of the number."""
    return (
        piece if at is None or piece[at] != number else piece[: len(piece) + at] + INDEX + piece[len(piece) + at + 1 :]
    )


def _json_begin(text: str, name_end: int, arguments_end: int) -> int | None:
    """Where the JSON value begins that holds both a name and its arguments; None if there is none."""
    for begin in (i for i, char in enumerate(text[:name_end]) if char in "{["):
        try:
            _, end = read_json(text, begin)
        except ValueError:
            continue
        if end > arguments_end:
            return begin
    return None
