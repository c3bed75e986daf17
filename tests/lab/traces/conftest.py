import pytest
from trace_examples import small_trace

from minstate.lab.traces.trace import write_trace


@pytest.fixture
def lines(tmp_path) -> list[bytes]:
    """The lines of `small_trace`, which is also in the file small.jsonl."""
    trace = small_trace()
    write_trace(tmp_path / "small.jsonl", trace.header, trace.turns)
    return (tmp_path / "small.jsonl").read_bytes().splitlines(keepends=True)
