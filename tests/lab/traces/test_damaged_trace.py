"""A damaged trace raises a `TraceError` that names the line, what was expected there, and what was found."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_examples import CALL, assistant, small_trace

from minstate.lab.traces.trace import TraceError, TraceTurn, read_trace, write_trace


def read(tmp_path, lines: list[bytes]) -> list[TraceTurn]:
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines))
    return list(read_trace(tmp_path / "t.jsonl").turns)


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
    "infinite number": (lambda ls: [ls[0], ls[1].replace(b"1.5", b"1e999")], 2, "finite numbers, found 1e999"),
    "NaN": (lambda ls: [ls[0], ls[1].replace(b"1.5", b"NaN")], 2, "finite numbers, found NaN"),
    "huge number": (lambda ls: [ls[0], ls[1].replace(b"1.5", b"9" * 5000)], 2, "JSON, found Exceeds"),
    "lone surrogate": (lambda ls: [ls[0], ls[1].replace(b'"hi"', b'"\\ud83d"')], 2, "the lone surrogate '.ud83d'"),
}


@pytest.mark.parametrize("damage", BYTES)
def test_an_error_names_the_line_with_damaged_bytes(tmp_path, lines, damage):
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
    "the parent's output again": (4, put("messages.0", assistant("One file.")), "messages that are new"),
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
def test_an_error_names_the_line_with_damaged_content(tmp_path, lines, damage):
    number, spoil, message = CONTENT[damage]
    value = json.loads(lines[number - 1])
    spoil(value)
    lines[number - 1] = json.dumps(value).encode() + b"\n"
    with pytest.raises(TraceError, match=rf"t\.jsonl, line {number}: expected .*{message}"):
        read(tmp_path, lines)


@given(st.integers(0, 10_000), st.integers(0, 40), st.binary(max_size=3))
def test_no_file_raises_anything_but_a_trace_error(tmp_path_factory, at, length, junk):
    path = tmp_path_factory.getbasetemp() / "junk.jsonl"
    write_trace(path, small_trace().header, small_trace().turns)
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + junk + whole[at + length :])
    with suppress(TraceError):
        list(read_trace(path).turns)


def test_an_error_shows_a_long_value_in_part(tmp_path, lines):
    lines[1] = lines[1].replace(b'"main"', b'"' + b"x" * 9999 + b'"')
    with pytest.raises(TraceError) as error:
        read(tmp_path, lines)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none.jsonl")
