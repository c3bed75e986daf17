"""Replay a trace on an engine, turn by turn, and compute the statistics of its header."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from minstate.engine import Engine
from minstate.lab.traces.trace import Trace, TraceTurn
from minstate.session import Session
from minstate.turn import Turn

NGRAM = 4


def replay(
    engine: Engine, trace: Trace, *, tenant: str = "default", sessions: dict[str, Session] | None = None
) -> Iterator[tuple[TraceTurn, Turn]]:
    """Replay a whole trace. Yields each turn twice: as the trace has it, and as the engine ran it.

    A session is opened, or forked, at its first turn. All sessions are closed when the iteration ends, even early. The
    replay does not wait for delays, and each turn is complete before the next one begins.

    tenant    whose prefix cache the sessions use
    sessions  an empty dict that the replay fills with the sessions by name, so that you can read their logs

    Raises what reading the trace raises, and what `Session.send` raises.
    """
    sessions = {} if sessions is None else sessions
    try:
        for record in trace.turns:
            if record.fork_of:
                sessions[record.session] = sessions[record.fork_of.session].fork()
            elif record.session not in sessions:
                opening = trace.header.sessions[record.session]
                sessions[record.session] = engine.open(opening.messages, opening.tools, tenant)
            session = sessions[record.session]
            yield record, session.send(list(record.messages), replay=record.output)
    finally:
        for session in sessions.values():
            session.close()


def trace_statistics(played: Iterable[tuple[TraceTurn, Turn]], logs: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Statistics of a replayed trace, for its header.

    `played` is what `replay` yields, and `logs` holds each session's token ids at the end. Returns the number of turns,
    the length of the longest log, the median numbers of input and output tokens per turn (a first input includes the
    session's opening, and an output includes the token that ends its message), and `repeated_4grams`.
    """
    played = list(played)
    outputs: dict[str, list[range]] = {name: [] for name in logs}
    inputs = []
    for record, turn in played:
        start = turn.stats.context + turn.stats.delta
        outputs[record.session].append(range(start, start + turn.stats.generated))
        # The delta also has the last token of the previous output, if there is one.
        inputs.append(turn.stats.delta - 1 if turn.stats.context else turn.stats.delta)
    repeated = sum(repeated_tokens(log, outputs[name]) for name, log in logs.items())
    generated = [turn.stats.generated for _, turn in played]
    return {
        "turns": len(played),
        "positions": max(map(len, logs.values())),
        "median_input_tokens": statistics.median(inputs),
        "median_output_tokens": statistics.median(generated),
        "repeated_4grams": round(repeated / sum(generated), 4),
    }


def repeated_tokens(log: Sequence[int], spans: Iterable[range]) -> int:
    """How many tokens of the spans end a 4-gram that occurs in the log before, ending at an earlier position."""
    first: dict[tuple[int, ...], int] = {}  # where each 4-gram ends when it occurs for the first time
    for end in range(NGRAM - 1, len(log)):
        first.setdefault(tuple(log[end - NGRAM + 1 : end + 1]), end)
    ends = (end for span in spans for end in span if end >= NGRAM - 1)
    return sum(first[tuple(log[end - NGRAM + 1 : end + 1])] < end for end in ends)
