"""Traces for the tests of this folder: a small one, and a strategy that draws any trace that the format allows."""

from dataclasses import replace

from hypothesis import strategies as st

from minstate.lab.traces.trace import Fork, Opening, Trace, TraceHeader, TraceTurn

TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
CALL = {"name": "ls", "arguments": {"folder": "naïve"}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, *calls: dict) -> dict:
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


def small_trace() -> Trace:
    """Two turns, a fork, its second turn, and a turn that waits for it."""
    opening = Opening(({"role": "system", "content": "Be brief."},), (TOOL,))
    header = TraceHeader("small", {"main": opening}, seed=3, about="a test", turns=5, more={"repeated_4grams": 0.25})
    turns = (
        TraceTurn("main", 1, (user("hi"),), assistant("", CALL), 1.5),
        TraceTurn("main", 2, ({"role": "tool", "name": "ls", "content": "a.py"},), assistant("One file.")),
        TraceTurn("sub", 1, (user("Read a.py"),), assistant("It is", CALL), 0, Fork("main", 2)),
        TraceTurn("sub", 2, (user("go on"),), assistant("empty.")),
        TraceTurn("main", 3, (user("empty."), user("thanks")), assistant("ok"), waits_for=("sub",)),
    )
    return Trace(header, turns)


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
INPUTS = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": TEXTS})
OUTPUTS = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS}, optional={"tool_calls": CALLS}) | (
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": CALLS})
)
DELAYS = st.floats(0, 1e300) | st.integers(0, 99)


@st.composite
def traces(draw) -> Trace:
    """Any trace. Its sessions are called "0", "1" and so on; some of them are forks of earlier ones."""
    opening = st.builds(
        Opening, st.lists(INPUTS, max_size=2).map(tuple), st.lists(st.just(TOOL), max_size=1).map(tuple)
    )
    roots = draw(st.lists(opening, min_size=1, max_size=2))
    counts = {str(name): 0 for name in range(len(roots))}
    turns = []
    for _ in range(draw(st.integers(1, 6))):
        started = [name for name, count in counts.items() if count]
        fork = draw(st.none() | st.sampled_from(started)) if started else None
        name = str(len(counts)) if fork else draw(st.sampled_from(sorted(counts)))
        at = Fork(fork, counts[fork]) if fork else None
        waits = tuple(draw(st.lists(st.sampled_from(started), unique=True, max_size=2))) if started else ()
        counts[name] = counts.get(name, 0) + 1
        messages = tuple(draw(st.lists(INPUTS, min_size=1, max_size=2)))
        turns.append(TraceTurn(name, counts[name], messages, draw(OUTPUTS), draw(DELAYS), at, waits))
    more = draw(st.dictionaries(TEXTS.map("x-".__add__), VALUES, max_size=2))
    promised = draw(st.sampled_from([None, len(turns)]))
    sessions = {str(name): root for name, root in enumerate(roots)}
    header = TraceHeader(
        draw(TEXTS), sessions, draw(st.none() | st.integers()), draw(st.text(max_size=3)), promised, more
    )
    return Trace(replace(header, about=header.about.encode("utf-8", "ignore").decode()), tuple(turns))
