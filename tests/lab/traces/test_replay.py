"""A replay runs the recorded conversation, and its statistics count what ran."""

import tiny
from hypothesis import given
from hypothesis import strategies as st
from trace_examples import small_trace

from minstate.lab.traces.replay import repeated_tokens, replay, trace_statistics


def test_a_replayed_log_is_the_rendered_conversation():
    engine, sessions = tiny.engine(num_pages=1024, positions=4096), {}
    trace = small_trace()
    played = list(replay(engine, trace, sessions=sessions))
    assert [record for record, _ in played] == list(trace.turns)
    text = engine.tokenizer.decode(sessions["sub"].token_ids)
    parts = ["Be brief.", "hi", '"folder": "naïve"', "a.py", "One file.", "Read a.py", "It is", "go on", "empty."]
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and text.endswith("<|im_end|>")
    assert [session.closed for session in sessions.values()] == [True, True]
    engine.check()


def test_every_output_equals_the_recorded_one():
    engine, sessions, ends = tiny.engine(num_pages=1024, positions=4096), {}, {}
    for record, turn in replay(engine, small_trace(), sessions=sessions):
        log = sessions[record.session].token_ids
        assert turn.text == engine.tokenizer.decode(engine.chat.encode_reply(record.output)[:-1])
        assert turn.stats.generated == len(engine.chat.encode_reply(record.output))
        assert log[-turn.stats.generated :] == list(turn.token_ids)
        before = ends.get(record.fork_of.session if record.fork_of else record.session, 0)
        assert len(log) == turn.stats.context + turn.stats.delta + turn.stats.generated
        assert turn.stats.context == max(0, before - 1) and turn.stats.recomputed == 0
        ends[record.session] = len(log)


def test_a_replay_that_is_left_early_closes_its_sessions():
    engine, sessions = tiny.engine(num_pages=1024, positions=4096), {}
    replayed = replay(engine, small_trace(), sessions=sessions)
    next(replayed)
    replayed.close()
    assert sessions["main"].closed


def test_statistics_count_the_replayed_turns():
    engine, sessions = tiny.engine(num_pages=1024, positions=4096), {}
    played = list(replay(engine, small_trace(), sessions=sessions))
    logs = {name: session.token_ids for name, session in sessions.items()}
    statistics = trace_statistics(played, logs)
    outputs = sum(turn.stats.generated for _, turn in played)
    assert statistics["turns"] == 5 and statistics["positions"] == max(map(len, logs.values()))
    assert 0 < statistics["repeated_4grams"] < 1 and statistics["median_output_tokens"] < outputs
    both = len(logs["main"]) + len(logs["sub"])
    shared = played[2][1].stats.context + 1
    inputs = [turn.stats.delta - min(1, turn.stats.context) for _, turn in played]
    assert sum(inputs) + outputs == both - shared
    assert statistics["median_input_tokens"] == sorted(inputs)[2]


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_repeated_tokens_end_a_4gram_that_ended_before(log, start, stop):
    span = range(start, min(stop, len(log)))
    grams = [tuple(log[end - 3 : end + 1]) for end in range(3, len(log))]
    expected = sum(end >= 3 and grams[end - 3] in grams[: end - 3] for end in span)
    assert repeated_tokens(log, [span]) == expected
