"""Play a trace on an engine, turn by turn, and measure what was played."""

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
    """Play a trace to its end, yielding each turn as the trace has it and as the engine did it.

    Sessions are opened, and forked, when their first turn comes; they are closed when the iteration ends, early or not.
    Delays are not slept, and turns do not overlap: each is done before the next one begins.

    tenant    whose prefix cache is used
    sessions  an empty dict, to be filled with the sessions by name: their logs can be read even when they are closed

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
    """Figures of a trace that was played, for its header.

    `played` is what `replay` yields, `logs` the token ids of each session at the end. Returns the number of turns and
    of sessions, the positions that the longest log takes, the median number of a turn's input and output tokens (the
    first input includes the session's opening; the last token of an output is the end of its message), and
    `repeated_4grams`.
    """
    played = list(played)
    outputs: dict[str, list[range]] = {name: [] for name in logs}
    inputs = []
    for record, turn in played:
        start = turn.stats.context + turn.stats.delta
        outputs[record.session].append(range(start, start + turn.stats.generated))
        inputs.append(turn.stats.delta - bool(turn.stats.context))  # less the last token of the output before
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
    """How many tokens of the spans end a 4-gram that occurs in the log before: it ends at an earlier position."""
    first: dict[tuple[int, ...], int] = {}
    for end in range(NGRAM - 1, len(log)):
        first.setdefault(tuple(log[end - NGRAM + 1 : end + 1]), end)
    ends = (end for span in spans for end in span if end >= NGRAM - 1)
    return sum(first[tuple(log[end - NGRAM + 1 : end + 1])] < end for end in ends)
