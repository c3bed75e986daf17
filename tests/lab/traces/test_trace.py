"""Traces: a reader reads what a writer has written, one turn at a time, and notices missing lines."""

import math
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_examples import assistant, small_trace, traces

from minstate.lab.traces.trace import TraceError, TraceWriter, read_trace, write_trace


def test_a_reader_reads_what_a_writer_wrote(tmp_path, lines):
    trace = read_trace(tmp_path / "small.jsonl")
    assert trace.header == small_trace().header
    assert tuple(trace.turns) == small_trace().turns == tuple(trace.turns), "and can be read again"
    assert len(lines) == 6 and all(line.endswith(b"}\n") for line in lines)


@given(traces())
def test_any_trace_can_be_written_and_read_back(tmp_path_factory, trace):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_trace(path, trace.header, trace.turns)
    back = read_trace(path)
    assert (back.header, tuple(back.turns)) == (trace.header, trace.turns)


@given(traces(), st.data())
def test_a_truncated_file_is_never_accepted(tmp_path_factory, trace, data):
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    write_trace(path, replace(trace.header, turns=len(trace.turns)), trace.turns)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(TraceError, match=r"cut\.jsonl, line \d+: expected .*(the end of the file|an empty file)"):
        list(read_trace(path).turns)


@given(traces(), st.data())
def test_a_missing_line_is_noticed(tmp_path_factory, trace, data):
    path = tmp_path_factory.getbasetemp() / "lost.jsonl"
    write_trace(path, replace(trace.header, turns=len(trace.turns)), trace.turns)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[data.draw(st.integers(0, len(lines) - 1))]
    path.write_bytes(b"".join(lines))
    with pytest.raises(TraceError):
        list(read_trace(path).turns)


def test_turns_are_read_one_by_one(tmp_path, lines):
    (tmp_path / "t.jsonl").write_bytes(b"".join(lines[:3]) + b"\xff")
    turns = iter(read_trace(tmp_path / "t.jsonl").turns)
    assert tuple(islice(turns, 2)) == small_trace().turns[:2]
    with pytest.raises(TraceError, match="line 4"):
        next(turns)


def test_turns_are_written_one_by_one(tmp_path):
    path = tmp_path / "growing.jsonl"
    with TraceWriter(path, replace(small_trace().header, turns=None)) as writer:
        for count, turn in enumerate(small_trace().turns, 1):
            writer.append(turn)
            assert len(list(read_trace(path).turns)) == count


def test_a_refused_turn_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "t.jsonl"
    first, second, *rest = small_trace().turns
    with TraceWriter(path, small_trace().header) as writer:
        writer.append(first)
        for wrong in (
            replace(second, turn=3),
            replace(second, delay_s=math.nan),
            replace(second, output={"role": "assistant", "content": "\ud800"}),
            replace(second, output=assistant("", {"name": "ls", "arguments": {"x": {1, 2}}})),
            replace(second, output=assistant("", {"name": "ls", "arguments": {1: 0, "1": 0}})),
        ):
            with pytest.raises(TraceError, match=r"t\.jsonl, line 3: expected"):
                writer.append(wrong)
        for turn in (second, *rest):
            writer.append(turn)
    assert tuple(read_trace(path).turns) == small_trace().turns


def test_a_writer_that_stops_early_raises(tmp_path):
    with pytest.raises(TraceError, match=r"line 3: expected 5 turns, as the header says, found the end .* after 1"):
        write_trace(tmp_path / "t.jsonl", small_trace().header, small_trace().turns[:1])
    with pytest.raises(ZeroDivisionError), TraceWriter(tmp_path / "t.jsonl", small_trace().header):
        raise ZeroDivisionError
