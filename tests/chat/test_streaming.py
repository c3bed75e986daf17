"""However a reply is cut into pieces, they make up what the finished turn says, and none is taken back."""

import json
from dataclasses import replace

import pytest
from dialects import DIALECTS, TOKENS, template
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dialects import CALL, END, NONE, TOOLS, _model, chat_of

from minstate import Engine, Sampling
from minstate.chat.content import without
from minstate.chat.dialect import HERMES
from minstate.chat.families import HARMONY, NAMED, THOUGHTS
from minstate.lab.engines.small_engine import byte_tokenizer
from minstate.serve.streaming import Delta, Deltas, ReplyStream, Settled, deltas, held_back, settle, spoken

THINK = ("<think>", "</think>")
LEARNT = {name: replace(chat_of(name).dialect, think=THINK) for name in DIALECTS}
DIALECT = {**LEARNT, **{d.name: replace(d, think=d.think or THINK) for _, d in NAMED if d is not HARMONY}}
DIALECT["Harmony"] = replace(HARMONY, think=THOUGHTS[-1])
LONG = {"name": "look_up", "arguments": {"city": 'a "b" {c} </tool_call>', "days": 3, "deep": True}}


def joined(pieces: list[Delta]) -> tuple[str, str, dict[int, tuple[str, str, str]]]:
    """Reasoning, content, and each call's id, name and arguments."""
    calls: dict[int, tuple[str, str, str]] = {}
    for piece in pieces:
        if piece.call is not None:
            assert (piece.call in calls) != bool(piece.name), "a call's first piece names it, and no other"
            number, name, arguments = calls.get(piece.call, (piece.id, piece.name, ""))
            calls[piece.call] = number, name, arguments + piece.arguments
    return "".join(p.reasoning for p in pieces), "".join(p.content for p in pieces), calls


def require_same(pieces: list[Delta], reasoning: str, content: str, calls, ids: bool = True) -> None:
    """The pieces say what the finished reply says."""
    got = joined(pieces)
    assert got[:2] == (reasoning, content)
    for place, call in enumerate(calls):
        if call.malformed:
            with pytest.raises(ValueError):
                json.loads(got[2].get(place, ("", "", ""))[2])
        else:
            number, name, arguments = got[2][place]
            assert (name, json.loads(arguments)) == (call.name, call.arguments)
            assert not ids or number == call.id
    assert set(got[2]) <= set(range(len(calls)))


def stream(dialect, text: str, cuts, thinking=False, marks=(), tools=TOOLS) -> list[Delta]:
    """The pieces of a reply that is read after each cut, and then at its end; what has settled stays settled."""
    teller, pieces = Deltas(), []
    reply = dialect.read(text, tools, thinking=thinking)
    end = Settled(reply.reasoning, without(reply.content, marks), [spoken(dialect, call) for call in reply.calls])
    for cut in cuts:
        found = settle(dialect, text[:cut], tools, marks, thinking=thinking)
        assert end.reasoning.startswith(found.reasoning) and end.content.startswith(found.content), text[:cut]
        for call, last, read in zip(found.calls, end.calls, reply.calls, strict=False):
            assert read.malformed or (call.name == last.name and last.raw.startswith(call.raw)), text[:cut]
        assert len(found.calls) <= len(end.calls)
        pieces += teller.of(found)
    pieces += teller.of(end)
    require_same(pieces, end.reasoning, end.content, reply.calls)
    return pieces


def replies(dialect) -> list[tuple[str, bool]]:
    opens, closes = dialect.think
    call, other = dialect.write([{"id": "call00000", **LONG}]), dialect.write([{"id": "call00000", **NONE}])
    several = [{"id": f"call{i:05}", **each} for i, each in enumerate([CALL, NONE, LONG])]
    texts = ["", "{", "[1, 2] <tool", call, f"I look. \n{call}", f"I look.{call} Done. {other}",
             f"{call[:-1]} no end", f"a {call[: len(call) // 2]} {other}", f"{call}{call}", f"< <tool_call> {call}",
             dialect.write(several), f"Well:{dialect.behind_content}{dialect.write(several)}"]  # fmt: skip
    if dialect.frame:
        texts += ["".join((dialect.frame[0], dialect.frame[1], "It rains. <|end", dialect.frame[-1], "\nMore."))]
    thoughts = [f"{opens}Hm, {call}?\n{closes}\n\n{text}" for text in texts[2:6]]
    return [(text, False) for text in [*texts, *thoughts, f"{opens}\nwell <", f" \n{opens}\n x {closes}"]] + [
        (f"well\n\n{closes}\n{call}", True), ("well\n", True)
    ]  # fmt: skip


@pytest.mark.parametrize("name", DIALECT)
def test_pieces_cut_anywhere_make_up_the_reply(name):
    dialect = DIALECT[name]
    for text, thinking in replies(dialect):
        stream(dialect, text, range(len(text) + 1), thinking)
        for end in range(0, len(text), 17):  # a reply that is over in the middle of something
            stream(dialect, text[:end], range(0, end, 5), thinking)


@pytest.mark.parametrize("name", DIALECT)
@settings(max_examples=12)
@given(
    text=st.lists(
        st.sampled_from(["<", "a", " ", "\n", "{", '"', "}", "open", "close", "call", "half", "think"]), max_size=6
    )
)
def test_any_reply_comes_in_pieces_that_stay(name, text):
    dialect = DIALECT[name]
    call = dialect.write([{"id": "call00000", **LONG}])
    meant = {"open": dialect.open, "close": dialect.close, "call": call, "half": call[: len(call) // 2],
             "think": dialect.think[0]}  # fmt: skip
    text = "".join(meant.get(part, part) for part in text)
    stream(dialect, text, range(len(text) + 1))


def test_arguments_in_json_are_streamed_and_the_last_brace_waits_for_the_end_of_the_call():
    text = HERMES.write([LONG])
    pieces = stream(HERMES, text, range(len(text) + 1))
    named = next(i for i, piece in enumerate(pieces) if piece.name)
    assert len(pieces) - named > len(json.dumps(LONG["arguments"])) / 2, "arguments come piece by piece"
    assert stream(HERMES, text[: -len("</tool_call>")], range(len(text)))[-1].arguments != "}"
    closed = [piece.arguments for piece in stream(HERMES, text[:-1] + "> x", range(len(text)))]
    assert closed[-1].endswith("}")


@pytest.mark.parametrize(
    "wrong",
    [
        '{"name": "wait", "arguments": {}, "name": "look_up"}',
        '{"name": "wait", "arguments": {}, "function": "look_up"}',
        '{"name": "wait", "arguments": {}, "arguments": {"a": 1}}',
        '{"name": "wait", "arguments": {"a": 1, "a": 2}}',
        '{"name": "wait", "arguments": {}, "parameters": {"a": 1}}',
        '{"name": "wait", "arguments": {}} {',
        '{"name": "wait", "arguments": {}',
    ],
)
def test_a_call_that_says_two_things_is_malformed_and_its_arguments_never_parse(wrong):
    text = f"<tool_call>{wrong}</tool_call>"
    stream(HERMES, text, range(len(text) + 1))
    assert HERMES.read(text).calls[0].malformed


def test_an_id_that_is_no_part_of_the_dialect_is_none_of_the_call_s():
    (call,) = HERMES.read('<tool_call>{"name": "wait", "arguments": {}, "id": "late"}</tool_call>').calls
    assert (call.id, call.error) == ("", "")


def test_a_tag_written_without_its_line_break_ends_the_argument_all_the_same():
    dialect = LEARNT["XML"]
    text = (
        "<tool_call>\n<function=look_up>\n<parameter=city>a</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    (call,) = dialect.read(text, TOOLS).calls
    assert (call.arguments, call.error) == ({"city": "a", "days": 3}, "")
    holds = {"name": "look_up", "arguments": {"city": "a</parameter>b", "days": 3}}
    assert dialect.read(dialect.write([holds]), TOOLS).calls[0].arguments == holds["arguments"]


def test_what_may_begin_a_mark_is_held_back():
    assert held_back("a <tool", ["<tool_call>", "stop"]) == "a "
    assert held_back("a st", ["<tool_call>", "stop"]) == "a " and held_back("a", []) == "a"


@pytest.fixture(
    scope="module", params=["JSON between marks", "a JSON list with ids", "names outside", "XML", "pythonic"]
)
def engine(request):
    source = template(request.param).replace("(m.content or '')", "(m.content or '').split('</think>')[-1]")
    return Engine(_model(), byte_tokenizer(source, TOKENS), eos_ids=[END], page_size=16, num_pages=400)


@pytest.mark.parametrize("cut", [10_000, 60, 25, 3])
def test_a_turn_s_pieces_are_the_turn_s(engine, cut):
    dialect = engine.chat.dialect
    calls = dialect.write(
        [{"id": f"call{i:05}", **each} for i, each in enumerate([LONG, NONE])][: 1 if dialect.next is None else 2]
    )
    for text in (
        "It rains in Ålesund 🌧.",
        f"<think>\nHm\n</think>\n\nI look.{dialect.behind_content}{calls}",
        f"x{calls[:-9]}",
    ):
        ids = engine.chat.encode(text)[:cut]
        with engine.open(tools=TOOLS) as session, session.stream("go", replay=ids, tool_choice=None) as tokens:
            pieces = list(deltas(tokens))
            turn = tokens.turn
        require_same(pieces, turn.reasoning, turn.content, turn.tool_calls)
        assert turn.content == turn.text or turn.tool_calls
        engine.check()


def test_drafts_and_stop_strings_take_nothing_back():
    source = template("JSON between marks")
    engine = Engine(_model(), byte_tokenizer(source, TOKENS), eos_ids=[END], page_size=16, num_pages=400)
    for seed in range(4):
        sampling = Sampling(temperature=1.0, seed=seed, stop=("ab", "e", "\n<"), ignore_eos=True)
        session = engine.open(tools=TOOLS)
        request = engine.submit(session, "go", sampling=sampling, max_new_tokens=80, tool_choice=None)
        reply, pieces = ReplyStream(engine.core.output, request), []
        while not request.done:
            engine.step()
            pieces += reply.new()
        assert reply.new() == []
        require_same(pieces, request.turn.reasoning, request.turn.content, request.turn.tool_calls)


def test_letters_that_spell_a_special_token_are_shown():
    engine = Engine(_model(), byte_tokenizer(template("pythonic"), TOKENS), eos_ids=[END], page_size=16, num_pages=400)
    letters = [i for char in "ends with <|im_end|>." for i in engine.tokenizer.encode(char)]
    with engine.open() as session, session.stream("go", replay=letters, tool_choice=None) as tokens:
        pieces = list(deltas(tokens))
    assert joined(pieces)[1] == tokens.turn.text == "ends with <|im_end|>."
