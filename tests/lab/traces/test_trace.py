"""Traces: what is written is read, what is damaged is named with its line, what is replayed is what was recorded."""

import json
import math
from contextlib import suppress
from dataclasses import replace as changed
from itertools import islice

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minstate.lab.traces.replay import repeated_tokens, replay, trace_statistics
from minstate.lab.traces.trace import (
    Fork,
    Opening,
    Trace,
    TraceError,
    TraceHeader,
    TraceTurn,
    TraceWriter,
    read_trace,
    write_trace,
)

TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
CALL = {"name": "ls", "arguments": {"folder": "naïve"}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def said(text: str, *calls: dict) -> dict:
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


def small() -> Trace:
    """Two turns, a fork, its second turn, and a turn that waits for it."""
    opening = Opening(({"role": "system", "content": "Be brief."},), (TOOL,))
    header = TraceHeader("small", {"main": opening}, seed=3, about="a test", turns=5, more={"repeated_4grams": 0.25})
    turns = (
        TraceTurn("main", 1, (user("hi"),), said("", CALL), 1.5),
        TraceTurn("main", 2, ({"role": "tool", "name": "ls", "content": "a.py"},), said("One file.")),
        TraceTurn("sub", 1, (user("Read a.py"),), said("It is", CALL), 0, Fork("main", 2)),
        TraceTurn("sub", 2, (user("go on"),), said("empty.")),
        TraceTurn("main", 3, (user("empty."), user("thanks")), said("ok"), waits_for=("sub",)),
    )
    return Trace(header, turns)


@pytest.fixture
def lines(tmp_path) -> list[bytes]:
    write_trace(tmp_path / "small.jsonl", small().header, small().turns)
    return (tmp_path / "small.jsonl").read_bytes().splitlines(keepends=True)


def read(tmp_path, lines: list[bytes]) -> list[TraceTurn]:
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines))
    return list(read_trace(tmp_path / "t.jsonl").turns)


# Writing and reading


def test_what_is_written_is_read(tmp_path, lines):
    trace = read_trace(tmp_path / "small.jsonl")
    assert trace.header == small().header
    assert tuple(trace.turns) == small().turns == tuple(trace.turns), "and can be read again"
    assert len(lines) == 6 and all(line.endswith(b"}\n") for line in lines)


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": TEXTS, "arguments": st.dictionaries(TEXTS, VALUES, max_size=3)}),
    min_size=1,
    max_size=2,
)
ASKED = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": TEXTS})
OUTPUTS = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS}, optional={"tool_calls": CALLS}) | (
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": CALLS})
)
DELAYS = st.floats(0, 1e300) | st.integers(0, 99)


@st.composite
def traces(draw) -> Trace:
    """Sessions by the names "0", "1", ...; some of the later ones are forks of what is there."""
    opening = st.builds(Opening, st.lists(ASKED, max_size=2).map(tuple), st.lists(st.just(TOOL), max_size=1).map(tuple))
    roots = draw(st.lists(opening, min_size=1, max_size=2))
    counts = {str(name): 0 for name in range(len(roots))}
    turns = []
    for _ in range(draw(st.integers(1, 6))):
        begun = [name for name, count in counts.items() if count]
        fork = draw(st.none() | st.sampled_from(begun)) if begun else None
        name = str(len(counts)) if fork else draw(st.sampled_from(sorted(counts)))
        at = Fork(fork, counts[fork]) if fork else None
        waits = tuple(draw(st.lists(st.sampled_from(begun), unique=True, max_size=2))) if begun else ()
        counts[name] = counts.get(name, 0) + 1
        messages = tuple(draw(st.lists(ASKED, min_size=1, max_size=2)))
        turns.append(TraceTurn(name, counts[name], messages, draw(OUTPUTS), draw(DELAYS), at, waits))
    more = draw(st.dictionaries(TEXTS.map("x-".__add__), VALUES, max_size=2))
    promised = draw(st.sampled_from([None, len(turns)]))
    sessions = {str(name): root for name, root in enumerate(roots)}
    header = TraceHeader(
        draw(TEXTS), sessions, draw(st.none() | st.integers()), draw(st.text(max_size=3)), promised, more
    )
    return Trace(changed(header, about=header.about.encode("utf-8", "ignore").decode()), tuple(turns))


@given(traces())
def test_any_trace_survives_the_file(tmp_path_factory, trace):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_trace(path, trace.header, trace.turns)
    back = read_trace(path)
    assert (back.header, tuple(back.turns)) == (trace.header, trace.turns)


@given(traces(), st.data())
def test_a_file_that_ends_early_is_never_taken_for_a_whole_one(tmp_path_factory, trace, data):
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    write_trace(path, changed(trace.header, turns=len(trace.turns)), trace.turns)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(TraceError, match=r"cut\.jsonl, line \d+: expected .*(the end of the file|an empty file)"):
        list(read_trace(path).turns)


@given(traces(), st.data())
def test_a_line_that_is_lost_is_noticed(tmp_path_factory, trace, data):
    path = tmp_path_factory.getbasetemp() / "lost.jsonl"
    write_trace(path, changed(trace.header, turns=len(trace.turns)), trace.turns)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[data.draw(st.integers(0, len(lines) - 1))]
    path.write_bytes(b"".join(lines))
    with pytest.raises(TraceError):
        list(read_trace(path).turns)


def test_turns_are_read_one_by_one(tmp_path, lines):
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines[:3]) + b"\xff")
    turns = iter(read_trace(tmp_path / "t.jsonl").turns)
    assert tuple(islice(turns, 2)) == small().turns[:2]
    with pytest.raises(TraceError, match="line 4"):
        next(turns)


def test_turns_are_written_one_by_one(tmp_path):
    path = tmp_path / "growing.jsonl"
    with TraceWriter(path, changed(small().header, turns=None)) as writer:
        for count, turn in enumerate(small().turns, 1):
            writer.append(turn)
            assert len(list(read_trace(path).turns)) == count


def test_a_turn_that_is_refused_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "t.jsonl"
    first, second, *rest = small().turns
    with TraceWriter(path, small().header) as writer:
        writer.append(first)
        for wrong in (
            changed(second, turn=3),
            changed(second, delay_s=math.nan),
            changed(second, output={"role": "assistant", "content": "\ud800"}),
            changed(second, output=said("", {"name": "ls", "arguments": {"x": {1, 2}}})),
            changed(second, output=said("", {"name": "ls", "arguments": {1: 0, "1": 0}})),
        ):
            with pytest.raises(TraceError, match=r"t\.jsonl, line 3: expected"):
                writer.append(wrong)
        for turn in (second, *rest):
            writer.append(turn)
    assert tuple(read_trace(path).turns) == small().turns


def test_a_writer_that_stops_early_says_so(tmp_path):
    with pytest.raises(TraceError, match=r"line 3: expected 5 turns, as the header says, found the end .* after 1"):
        write_trace(tmp_path / "t.jsonl", small().header, small().turns[:1])
    with pytest.raises(ZeroDivisionError), TraceWriter(tmp_path / "t.jsonl", small().header):
        raise ZeroDivisionError


# Damage

BYTES = {
    "empty": (lambda ls: [], 1, "a header, found an empty file"),
    "a header alone": (lambda ls: [ls[0].replace(b'"turns": 5, ', b"")], 2, "at least one turn, found the end"),
    "no newline at the end": (lambda ls: [*ls[:2], ls[2][:-1]], 3, "a newline at the end, found the end of the file"),
    "turns missing": (lambda ls: ls[:4], 5, "5 turns, as the header says, found the end of the file after 3"),
    "turns too many": (lambda ls: [*ls, ls[1]], 7, "the end of the file after 5 turns, .* found another turn"),
    "byte order mark": (lambda ls: [b"\xef\xbb\xbf", *ls], 1, "without a byte order mark"),
    "UTF-16": (lambda ls: [ls[0].decode().encode("utf-16"), *ls[1:]], 1, "found"),
    "CRLF": (
        lambda ls: [line.replace(b"\n", b"\r\n") for line in ls],
        1,
        r'ends in "\\n" alone, found a line that ends in',
    ),
    "not UTF-8": (
        lambda ls: [*ls[:3], ls[3].replace(b"Read", b"R\xe9ad"), *ls[4:]],
        4,
        "UTF-8, found byte 0xe9 at byte",
    ),
    "blank line": (lambda ls: [*ls[:2], b"\n", *ls[2:]], 3, "a JSON object, found a blank line"),
    "not JSON": (lambda ls: [*ls[:2], ls[2].replace(b":", b"=", 1), *ls[3:]], 3, "JSON, found .* at column"),
    "two values": (lambda ls: [*ls[:2], ls[2][:-1] + ls[2], *ls[3:]], 3, "JSON, found Extra data at column"),
    "a list": (lambda ls: [ls[0], b"[1]\n"], 2, r"an object as a turn, found \[1\]"),
    "nesting": (lambda ls: [ls[0], b"[" * 100_000 + b"\n"], 2, "not nested too deeply"),
    "duplicate key": (
        lambda ls: [ls[0], b'{"turn": 1, ' + ls[1][1:]],
        2,
        "occur once in an object, found 'turn' twice",
    ),
    "endless number": (lambda ls: [ls[0], ls[1].replace(b"1.5", b"1e999")], 2, "finite numbers, found 1e999"),
    "no number": (lambda ls: [ls[0], ls[1].replace(b"1.5", b"NaN")], 2, "finite numbers, found NaN"),
    "huge number": (lambda ls: [ls[0], ls[1].replace(b"1.5", b"9" * 5000)], 2, "JSON, found Exceeds"),
    "half a character": (lambda ls: [ls[0], ls[1].replace(b'"hi"', b'"\\ud83d"')], 2, "the lone surrogate '.ud83d'"),
}


@pytest.mark.parametrize("damage", BYTES)
def test_damaged_bytes_are_named_with_their_line(tmp_path, lines, damage):
    spoil, number, message = BYTES[damage]
    with pytest.raises(TraceError, match=rf"t\.jsonl, line {number}: expected .*{message}"):
        read(tmp_path, spoil(lines))


def put(path: str, value):
    """A function that puts a value at a place such as "output.role" of a line's object; `...` takes it away."""

    def spoil(line: dict) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            line = line[int(parent)] if isinstance(line, list) else line[parent]
        line.pop(last) if value is ... else line.__setitem__(int(last) if isinstance(line, list) else last, value)

    return spoil


FIRST = {"session": "main", "after_turn": 1}
AGAIN = {"role": "assistant", "tool_calls": [CALL | {"id": "another form"}]}
CONTENT = {
    "another format": (1, put("format", "csv"), "\"format\": \"minstate-trace\", found 'csv'"),
    "another version": (1, put("version", 2), '"version": 1, found 2'),
    "no name": (1, put("name", ""), '"name", found'),
    "a seed of text": (1, put("seed", "3"), "\"seed\", found '3'"),
    "no about": (1, put("about", ...), "the key 'about' in the header, found"),
    "no number of turns": (1, put("turns", 0), '"turns", found 0'),
    "a share above one": (1, put("repeated_4grams", 25), '"repeated_4grams", found 25'),
    "no sessions": (1, put("sessions", {}), '"sessions", found {}'),
    "a session's tools": (1, put("sessions.main.tools", "ls"), "\"tools\" of session 'main', found 'ls'"),
    "a session's message": (1, put("sessions.main.messages.0.role", "boss"), "of session 'main', found 'boss'"),
    "unknown key": (2, put("delay", 1), r"only the keys session, .* found \['delay'\]"),
    "missing key": (2, put("output", ...), "the key 'output' in a turn, found"),
    "no messages": (2, put("messages", []), r"at least one message in \"messages\", found \[\]"),
    "a message of nobody": (2, put("messages.0.role", "operator"), "roles system, .* in message 1, found 'operator'"),
    "an empty message": (2, put("messages.0.content", ""), "not empty in message 1, found ''"),
    "content in parts": (2, put("messages.0.content", ["hi"]), r"a string and not empty in message 1, found \['hi'\]"),
    "a user's tool calls": (2, put("messages.0.tool_calls", [CALL]), "of the assistant only, in message 1"),
    "an output of the user": (3, put("output.role", "user"), "an output of the role assistant, found 'user'"),
    "an output of nothing": (3, put("output.content", ""), "not empty or tool calls in the output, found ''"),
    "arguments as text": (2, put("output.tool_calls.0.arguments", "{}"), '"arguments": object} in the output, found'),
    "a call of nothing": (2, put("output.tool_calls.0.name", ...), "tool calls .* in the output, found"),
    "a negative delay": (2, put("delay_s", -1), '"delay_s", found -1'),
    "a delay of true": (2, put("delay_s", True), '"delay_s", found True'),
    "unknown session": (3, put("session", "other"), "one of the sessions so far \\(main\\), found 'other'"),
    "turns that jump": (3, put("turn", 3), "turn 2 of main, found 3"),
    "turns that stand still": (3, put("turn", 1), "turn 2 of main, found 1"),
    "a turn of true": (2, put("turn", True), '"turn", found True'),
    "the output again": (3, put("messages.0", AGAIN), "messages that are new, found the previous turn's output again"),
    "the parent's output again": (4, put("messages.0", said("One file.")), "messages that are new"),
    "fork of nobody": (4, put("fork_of.session", "other"), "one of the sessions so far \\(main\\), found 'other'"),
    "fork of itself": (4, put("fork_of.session", "sub"), "one of the sessions so far \\(main\\), found 'sub'"),
    "fork of a turn to come": (4, put("fork_of.after_turn", 3), "after its latest turn, 2, found 3"),
    "fork of a turn gone by": (4, put("fork_of.after_turn", 1), "after its latest turn, 2, found 1"),
    "fork of no turn": (2, lambda line: line.update(session="x", fork_of=FIRST), "had a turn"),
    "fork without a turn": (4, put("fork_of", {"session": "main"}), "the key 'after_turn' in \"fork_of\", found"),
    "fork of null": (4, put("fork_of", None), 'an object as "fork_of", found None'),
    "fork into what is there": (5, put("fork_of", {"session": "main", "after_turn": 2}), "a new session .*'sub'"),
    "waiting for nobody": (6, put("waits_for", ["other"]), "sessions so far \\(main, sub\\), found 'other'"),
    "waiting twice": (6, put("waits_for", ["sub", "sub"]), 'each once, in "waits_for"'),
}  # fmt: skip


@pytest.mark.parametrize("damage", CONTENT)
def test_damaged_content_is_named_with_its_line(tmp_path, lines, damage):
    number, spoil, message = CONTENT[damage]
    value = json.loads(lines[number - 1])
    spoil(value)
    lines[number - 1] = json.dumps(value).encode() + b"\n"
    with pytest.raises(TraceError, match=rf"t\.jsonl, line {number}: expected .*{message}"):
        read(tmp_path, lines)


@given(st.integers(0, 10_000), st.integers(0, 40), st.binary(max_size=3))
def test_whatever_stands_in_a_file_nothing_worse_than_a_trace_error_comes_of_it(tmp_path_factory, at, length, junk):
    path = tmp_path_factory.getbasetemp() / "junk.jsonl"
    write_trace(path, small().header, small().turns)
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + junk + whole[at + length :])
    with suppress(TraceError):
        list(read_trace(path).turns)


def test_a_long_value_is_shown_in_part(tmp_path, lines):
    lines[1] = lines[1].replace(b'"main"', b'"' + b"x" * 9999 + b'"')
    with pytest.raises(TraceError) as error:
        read(tmp_path, lines)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_no_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none.jsonl")


# Replay


def test_a_replayed_log_is_the_rendered_conversation():
    engine, sessions = tiny.engine(num_pages=1024, positions=4096), {}
    trace = small()
    played = list(replay(engine, trace, sessions=sessions))
    assert [record for record, _ in played] == list(trace.turns)
    text = engine.tokenizer.decode(sessions["sub"].token_ids)
    spoken = ["Be brief.", "hi", '"folder": "naïve"', "a.py", "One file.", "Read a.py", "It is", "go on", "empty."]
    places = [text.index(words) for words in spoken]
    assert places == sorted(places) and text.endswith("<|im_end|>")
    assert [session.closed for session in sessions.values()] == [True, True]
    engine.check()


def test_every_output_is_the_recorded_one():
    engine, sessions, ends = tiny.engine(num_pages=1024, positions=4096), {}, {}
    for record, turn in replay(engine, small(), sessions=sessions):
        log = sessions[record.session].token_ids
        assert turn.text == engine.tokenizer.decode(engine.chat.reply(record.output)[:-1])
        assert turn.stats.generated == len(engine.chat.reply(record.output))
        assert log[-turn.stats.generated :] == list(turn.token_ids)
        before = ends.get(record.fork_of.session if record.fork_of else record.session, 0)
        assert len(log) == turn.stats.context + turn.stats.delta + turn.stats.generated
        assert turn.stats.context == max(0, before - 1) and turn.stats.recomputed == 0
        ends[record.session] = len(log)


def test_a_replay_that_is_left_early_closes_its_sessions():
    engine, sessions = tiny.engine(num_pages=1024, positions=4096), {}
    playing = replay(engine, small(), sessions=sessions)
    next(playing)
    playing.close()
    assert sessions["main"].closed


def test_figures_count_what_was_played():
    engine, sessions = tiny.engine(num_pages=1024, positions=4096), {}
    played = list(replay(engine, small(), sessions=sessions))
    logs = {name: session.token_ids for name, session in sessions.items()}
    figures = trace_statistics(played, logs)
    outputs = sum(turn.stats.generated for _, turn in played)
    assert figures["turns"] == 5 and figures["positions"] == max(map(len, logs.values()))
    assert 0 < figures["repeated_4grams"] < 1 and figures["median_output_tokens"] < outputs
    both = len(logs["main"]) + len(logs["sub"])
    shared = played[2][1].stats.context + 1
    inputs = [turn.stats.delta - bool(turn.stats.context) for _, turn in played]
    assert sum(inputs) + outputs == both - shared
    assert figures["median_input_tokens"] == sorted(inputs)[2]


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_repeated_tokens_end_a_4gram_that_ended_before(log, start, stop):
    span = range(start, min(stop, len(log)))
    grams = [tuple(log[end - 3 : end + 1]) for end in range(3, len(log))]
    expected = sum(end >= 3 and grams[end - 3] in grams[: end - 3] for end in span)
    assert repeated_tokens(log, [span]) == expected
