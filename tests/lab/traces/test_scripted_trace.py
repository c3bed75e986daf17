"""Traces without a model: tool calls, and the same for a seed."""

import pytest

from minstate.lab.traces.scripted_trace import scripted_trace


@pytest.mark.parametrize("name", ["agentic", "planning"])
def test_a_scripted_trace_calls_tools_and_is_the_same_for_a_seed(name):
    trace, again, other = scripted_trace(name, 3), scripted_trace(name, 3), scripted_trace(name, 4)
    assert trace.turns == again.turns != other.turns
    assert all(one.output.get("tool_calls") or len(one.output["content"].split()) > 5 for one in trace.turns)
