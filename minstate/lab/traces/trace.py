"""Traces: conversations of agents in a file, which any engine can replay.

A trace is a text file in UTF-8 (no byte order mark) with one JSON object per line, and each line ends in a single
"\\n". The first line is the header. Every other line is one turn, in an order in which the turns can be played. So a
reader holds one line at a time, and it notices a line that is missing at the end or in the middle.

The header:

    {"format": "minstate-trace", "version": 1,
     "name": "planning", "seed": 0, "about": "one sentence",      seed: null if nothing was drawn from a seed
     "sessions": {"main": {"messages": [...], "tools": [...]}},   how each session begins, before its first turn
     "turns": 17,                                                 optional: how many lines follow
     "repeated_4grams": 0.31, ...}                                optional: statistics, and any other key

`repeated_4grams` is the share of output tokens that end a 4-gram of ids which occurs earlier in the session's log.

A turn:

    {"session": "tests", "turn": 1,                counts from 1 in each session, without gaps
     "messages": [{"role": "user", ...}],          its new input: at least one message
     "output": {"role": "assistant", ...},         the assistant's reply
     "delay_s": 0.8,                               seconds, from 0 up
     "fork_of": {"session": "main", "after_turn": 2},             optional
     "waits_for": ["orders"]}                                     optional

A message has a "role" ("system", "user", "assistant" or "tool") and a "content". The content is a string, which may be
empty in a tool's message only. Messages of the assistant, and no others, may have "tool_calls",
`[{"name": "read_file", "arguments": {...}}]`; their content may then be missing, null or empty. An output is one
message. The session's next turn begins with the messages that follow it, and does not repeat the output itself. Further
keys of messages and calls ("name", "tool_call_id", "id") are kept.

`fork_of` marks the first turn of a session that is not in the header: the session begins as a copy of another session's
log. The line comes before the parent's next turn, so `after_turn` is the parent's latest turn. A fork's own turns count
from 1. `delay_s` is the time that tools or people take between the session's previous output (a fork's: its parent's)
and this input. `waits_for` names the sessions whose reports this input contains: their turns so far must be done first.
Both leave out the time that models take to generate, because it depends on the engine.

In JSON, keys must not occur twice in an object, numbers must be finite, and strings must hold no lone surrogates.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minstate.lab.traces.records import (
    Fork,
    Mismatch,
    Opening,
    TraceError,
    TraceHeader,
    TraceTurn,
    dump_line,
    expect,
    header_from_json,
    header_to_json,
    located,
    parse_line,
    turn_from_json,
    turn_to_json,
)

__all__ = [
    "Fork", "Opening", "Trace", "TraceError", "TraceFile", "TraceHeader", "TraceTurn", "TraceWriter", "read_trace",
    "write_trace",
]  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """A header and its turns, which can be iterated any number of times: a tuple, or a file that is read on the way."""

    header: TraceHeader
    turns: Iterable[TraceTurn]


@dataclass(frozen=True)
class TraceFile:
    """The turns of a file, one at a time. Iterating raises `TraceError` at the first malformed line, or OSError."""

    path: Path

    def __iter__(self) -> Iterator[TraceTurn]:
        return read_turns(self.path)


def read_trace(path: str | Path) -> Trace:
    """Read the header. Iterating over the turns reads and checks them. Raises `TraceError`, OSError."""
    with Path(path).open("rb") as file, located(f"{path}, line 1"):
        return Trace(header_from_json(parse_line(file.readline())), TraceFile(Path(path)))


def read_turns(path: Path) -> Iterator[TraceTurn]:
    """Yield a file's turns. Holds one line at a time, and the last output of each session."""
    number = 1
    with path.open("rb") as file:
        with located(f"{path}, line 1"):
            order = TurnOrder(header_from_json(parse_line(file.readline())))
        for number, line in enumerate(file, 2):
            with located(f"{path}, line {number}"):
                turn = turn_from_json(parse_line(line))
                order.take(turn)
            yield turn
    with located(f"{path}, line {number + 1}"):
        order.end()


def write_trace(path: str | Path, header: TraceHeader, turns: Iterable[TraceTurn]) -> None:
    """Write a whole trace, one turn at a time. Raises `TraceError`, OSError."""
    with TraceWriter(path, header) as writer:
        for turn in turns:
            writer.append(turn)


class TraceWriter:
    """Writes a trace line by line; use it in a `with` statement.

    Opening the writer replaces the file. Each line passes a reader's checks before it is written, so a `TraceError`
    leaves the file unchanged. When `append` returns, the operating system has the line.
    """

    def __init__(self, path: str | Path, header: TraceHeader):
        self.path = Path(path)
        self._number = 1
        with located(f"{self.path}, line 1"):
            line = dump_line(header_to_json(header))
            self._order = TurnOrder(header_from_json(parse_line(line)))
        self._file = self.path.open("wb")
        self._write(line)

    def append(self, turn: TraceTurn) -> None:
        """Write the next turn. Raises `TraceError` if a reader would refuse it at this place."""
        with located(f"{self.path}, line {self._number + 1}"):
            line = dump_line(turn_to_json(turn))
            self._order.take(turn_from_json(parse_line(line)))
        self._write(line)
        self._number += 1

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_) -> None:
        """Close the file. Raises `TraceError` if turns are missing, unless another error is being raised."""
        self._file.close()
        if kind is None:
            with located(f"{self.path}, line {self._number + 1}"):
                self._order.end()


class TurnOrder:
    """Checks that each turn of a trace may follow the turns before it."""

    def __init__(self, header: TraceHeader):
        self._promised = header.turns
        self._taken = 0
        self._turns = dict.fromkeys(header.sessions, 0)  # of each session
        self._outputs: dict[str, tuple] = {}  # the last one of each session

    def take(self, turn: TraceTurn) -> None:
        """Accept the next turn. Raises `Mismatch`, and changes nothing, if it cannot come here."""
        fork, known = turn.fork_of, ", ".join(self._turns)
        if self._taken == self._promised:
            raise Mismatch(f"the end of the file after {self._promised} turns, as the header says", "another turn")
        for name in [fork.session if fork else turn.session, *turn.waits_for]:
            expect(name in self._turns, f"one of the sessions so far ({known})", name)
        if fork:
            expect(turn.session not in self._turns, 'a new session on a turn with "fork_of"', turn.session)
            parent, at = fork.session, self._turns[fork.session]
            expect(at, "a fork of a session that has had a turn", parent)
            expect(fork.after_turn == at, f"a fork of {parent} after its latest turn, {at}", fork.after_turn)
        expected = 1 if fork else self._turns[turn.session] + 1
        expect(turn.turn == expected, f"turn {expected} of {turn.session}", turn.turn)
        last = self._outputs.get(fork.session if fork else turn.session)
        for message in turn.messages:
            if message["role"] == "assistant" and content_and_calls(message) == last:
                raise Mismatch("messages that are new", "the previous turn's output again")
        self._turns[turn.session] = turn.turn
        self._outputs[turn.session] = content_and_calls(turn.output)
        self._taken += 1

    def end(self) -> None:
        """The file ends here. Raises `Mismatch` if turns are missing."""
        if self._promised is None and not self._taken:
            raise Mismatch("at least one turn", "the end of the file")
        if self._promised is not None and self._taken != self._promised:
            raise Mismatch(f"{self._promised} turns, as the header says", f"the end of the file after {self._taken}")


def content_and_calls(message: Mapping) -> tuple:
    """A message's content and calls. They are equal for two messages that differ only in form or in other keys."""
    calls = [(call["name"], call["arguments"]) for call in message.get("tool_calls") or []]
    return message.get("content") or "", calls
