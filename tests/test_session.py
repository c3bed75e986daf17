"""A session: what a turn costs, that the answer does not depend on it, and that nothing is lost when a turn fails."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import IDS, SAMPLINGS, VOCABULARY, engine

from minstate import (
    BadMessage,
    BadValue,
    ContextOverflow,
    OutOfPages,
    Sampling,
    SessionBusy,
    SessionClosed,
    StaleMark,
)
from minstate.lab.engines.baselines import NaiveEngine


@given(turns=st.lists(st.tuples(IDS, st.integers(1, 9), SAMPLINGS), min_size=1, max_size=5))
def test_stateful_and_naive_give_the_same_tokens(turns):
    stateful, naive = engine(token_budget=11).open(), engine(NaiveEngine).open()
    for ids, limit, sampling in turns:
        options = {"token_ids": ids, "max_new_tokens": limit, "sampling": sampling}
        ours, theirs = stateful.send(**options), naive.send(**options)
        stateful.engine.check()
        assert ours.token_ids == theirs.token_ids
        assert ours.stats.prefilled == ours.stats.delta
        assert theirs.stats.prefilled == theirs.stats.context + theirs.stats.delta
        for turn in (ours, theirs):
            stats = turn.stats
            assert stats.forwarded == stats.prefilled + stats.generated - 1, "the last new token is never forwarded"
            assert stats.generated == limit == len(turn.token_ids)
    assert stateful.token_ids == naive.token_ids


def test_delta_is_what_is_new():
    session = engine().open()
    first = session.send(token_ids=[5, 6, 7], max_new_tokens=4, sampling=Sampling(ignore_eos=True)).stats
    assert (first.context, first.delta, first.reused) == (0, 3, 0)
    second = session.send(token_ids=[8, 9], max_new_tokens=1).stats
    assert (second.context, second.delta, second.reused) == (6, 3, 6), "the last sampled token was never forwarded"


def test_noise_belongs_to_a_position_and_not_to_a_turn():
    noisy = Sampling(temperature=1.5, seed=4, ignore_eos=True)
    whole = engine().open().send(token_ids=[5, 6, 7], max_new_tokens=9, sampling=noisy).token_ids
    session = engine().open()
    parts = session.send(token_ids=[5, 6, 7], max_new_tokens=4, sampling=noisy).token_ids
    assert parts + session.send(token_ids=[], max_new_tokens=5, sampling=noisy).token_ids == whole


def test_the_opening_comes_once_and_before_everything_else():
    session = engine().open(messages=[{"role": "system", "content": "Be brief."}])
    session.send("hi", max_new_tokens=2)
    session.send("ho", max_new_tokens=2)
    text = session.engine.tokenizer.decode(session.token_ids)
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant"
    )
    assert text.count("system") == 1 and "Default" not in text


def test_tool_calls_and_text_leave_out_special_tokens():
    e = engine()
    said = '<tool_call>{"name": "ls", "arguments": {"path": "."}}</tool_call>'
    turn = e.open().send("list", replay=e.tokenizer.encode(said + "<|im_end|>"))
    assert turn.text == said and turn.token_ids[-1] == 2
    assert [(call.name, call.arguments) for call in turn.tool_calls] == [("ls", {"path": "."})]
    assert "".join(token.text for token in e.open().stream("list", replay=turn.token_ids)) == said


def test_agreement_is_with_the_most_likely_token_whatever_the_sampling():
    said = engine().open().send(token_ids=[5, 6], max_new_tokens=9, sampling=Sampling(ignore_eos=True)).token_ids
    hot = Sampling(temperature=9.0, seed=1)
    assert engine().open().send(token_ids=[5, 6], replay=said, sampling=hot).stats.agreed == 9


def test_the_log_that_one_is_given_is_a_copy():
    session = engine().open()
    session.send(token_ids=[5, 6], max_new_tokens=2)
    session.token_ids.clear()
    assert session.token_ids[:2] == [5, 6]


def test_messages_cost_nothing_per_old_token(monkeypatch):
    """Only the new message is rendered and tokenised, however long the history."""
    session = engine(num_pages=99).open(messages=[{"role": "system", "content": "Be brief."}])
    session.send("first", max_new_tokens=5)
    encoded = []
    encode = session.engine.tokenizer.encode

    def spy(text, **options):
        encoded.append(text)
        return encode(text, **options)

    monkeypatch.setattr(session.engine.tokenizer, "encode", spy)
    session.send("second", max_new_tokens=5)
    assert "first" not in "".join(encoded) and len("".join(encoded)) < 80


@pytest.mark.parametrize("raw", [False, True])
def test_no_old_token_is_decoded_again(monkeypatch, raw):
    session, decoded = engine(num_pages=99).open(), []
    decode = session.engine.tokenizer.decode

    def spy(ids, **options):
        decoded.append(len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(session.engine.tokenizer, "decode", spy)
    for _ in range(3):
        session.send(**({"token_ids": [5] * 30} if raw else {"messages": "hello there"}), max_new_tokens=4)
    assert max(decoded) <= 4 + 4, "but the answer, and some tokens in front of it"


def test_a_cut_off_answer_is_closed_by_the_next_delta():
    session = engine().open()
    session.send("hi", max_new_tokens=3, sampling=Sampling(ignore_eos=True))
    session.send("and?", max_new_tokens=1)
    text = session.engine.tokenizer.decode(session.token_ids)
    assert "<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n" in text
    ended = engine().open()
    ended.send("hi", replay=[70, 71, 2])
    ended.send("and?", max_new_tokens=1)
    assert ended.token_ids.count(2) == 4, "an answer that ended by itself is not ended again"


def test_a_cut_off_answer_can_go_on():
    greedy = Sampling(ignore_eos=True)
    whole = engine().open().send(token_ids=[5, 6], max_new_tokens=8, sampling=greedy).token_ids
    session = engine().open()
    parts = session.send(token_ids=[5, 6], max_new_tokens=3, sampling=greedy).token_ids
    rest = session.send(token_ids=[], max_new_tokens=5, sampling=greedy)
    assert parts + rest.token_ids == whole and rest.stats.delta == 1


def test_replay_does_all_the_work_and_reports_agreement():
    said = engine().open().send(token_ids=[5, 6], max_new_tokens=6, sampling=Sampling(ignore_eos=True)).token_ids
    session = engine().open()
    faithful = session.send(token_ids=[5, 6], replay=said)
    assert faithful.token_ids == said and faithful.stats.agreed == 6 and faithful.stats.steps == 6
    wrong = engine().open().send(token_ids=[5, 6], replay=[said[0], said[1] ^ 1, said[2]])
    assert wrong.token_ids == (said[0], said[1] ^ 1, said[2]) and 1 <= wrong.stats.agreed <= 2
    assert wrong.finish_reason == "replay"


def test_streaming_gives_the_tokens_of_send_one_by_one():
    sent = engine().open().send("hi", max_new_tokens=6, sampling=Sampling(ignore_eos=True))
    stream = engine().open().stream("hi", max_new_tokens=6, sampling=Sampling(ignore_eos=True))
    tokens = list(stream)
    assert tuple(token.token_id for token in tokens) == sent.token_ids == stream.turn.token_ids


def test_leaving_a_stream_early_aborts_the_turn():
    session = engine().open()
    session.send("hi", max_new_tokens=3)
    before = session.token_ids
    for _ in session.stream("more", max_new_tokens=30, sampling=Sampling(ignore_eos=True)):
        break
    assert session.token_ids == before and not session.running
    stream = session.stream("more", max_new_tokens=30, sampling=Sampling(ignore_eos=True))
    next(stream)
    with pytest.raises(SessionBusy):
        session.send("again")
    stream.close()
    session.engine.check()
    after = session.send("more", max_new_tokens=3)
    assert after.stats.recomputed == 0, "an abort costs the session none of its history"
    assert after.stats.shared > 0, "what the aborted turn computed is found again"


def test_stop_conditions():
    greedy = Sampling(ignore_eos=True)
    free = engine().open().send(token_ids=[5, 6], max_new_tokens=12, sampling=greedy)
    third = free.token_ids[2]
    by_id = engine().open().send(token_ids=[5, 6], max_new_tokens=12, sampling=Sampling(stop=third, ignore_eos=True))
    assert by_id.token_ids == free.token_ids[: free.token_ids.index(third) + 1] and by_id.finish_reason == "stop"
    said = [ord(c) for c in "ab}cd"]  # any text will do: replay shows that stop strings are the sampler's business
    ids = engine().tokenizer.encode(bytes(said).decode())
    assert engine().open().send(token_ids=[5], replay=ids).text == "ab}cd"
    piece = next((t for t in free.text if t.isascii() and t.isprintable()), None)
    assert piece, "the tiny model says something printable"
    by_text = engine().open().send(token_ids=[5, 6], max_new_tokens=12, sampling=Sampling(stop=piece, ignore_eos=True))
    assert by_text.finish_reason == "stop" and by_text.text == free.text.partition(piece)[0]


def test_the_text_is_cut_at_the_first_of_several_stops(monkeypatch):
    e = engine()
    said = iter(e.tokenizer.encode("say Hello, Hello"))
    monkeypatch.setattr("minstate.output.choose", lambda *_, **__: next(said))
    assert e.open().send(token_ids=[5], sampling=Sampling(stop=("ell", "Hel")), max_new_tokens=20).text == "say "
    said = iter(e.tokenizer.encode("<|im_start|>x"))
    turn = e.open().send(token_ids=[5], sampling=Sampling(stop="<|im_start|>"), max_new_tokens=2)
    assert turn.finish_reason == "stop" and turn.text == "", "special tokens stop by name"


def test_end_of_sequence_ends_a_turn_unless_ignored():
    e = engine()
    e.core.output.eos_ids = frozenset(range(VOCABULARY))
    assert e.open().send(token_ids=[5], max_new_tokens=9).stats.generated == 1
    assert e.open().send(token_ids=[5], max_new_tokens=9, sampling=Sampling(ignore_eos=True)).stats.generated == 9


def test_rollback_goes_back_to_a_mark_and_only_there():
    session, greedy = engine().open(), Sampling(ignore_eos=True)
    start = session.mark()
    session.send(token_ids=[5, 6, 7], max_new_tokens=3, sampling=greedy)
    middle, log = session.mark(), session.token_ids
    session.send(token_ids=[8], max_new_tokens=9, sampling=greedy)
    later = session.mark()
    session.rollback(middle)
    assert session.token_ids == log
    with pytest.raises(StaleMark):
        session.rollback(later)
    stats = session.send(token_ids=[9, 9], max_new_tokens=1).stats
    assert stats.delta == 3 and stats.recomputed == 0
    session.rollback(start)
    assert session.token_ids == []
    with pytest.raises(StaleMark):
        session.rollback(middle)
    with pytest.raises(StaleMark):
        session.engine.open().rollback(start)
    session.engine.check()


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_pages_come_back(prefix_cache):
    e = engine(prefix_cache=prefix_cache)
    allocator = e.pool.allocator

    def require_all_back():
        e.check()
        assert e.cache.num_available == allocator.num_pages, "nothing is held back"
        assert allocator.num_free == allocator.num_pages - 5 * prefix_cache, "but a shared prefix stays known"

    session = e.open()
    session.send(token_ids=[5] * 20, max_new_tokens=1)
    session.close()
    session.close()
    require_all_back()
    with pytest.raises(SessionClosed):
        session.send(token_ids=[5])
    dropped = e.open()
    dropped.send(token_ids=[5] * 20, max_new_tokens=1)
    del dropped
    gc.collect()
    require_all_back()


BAD = [
    ({"messages": ""}, BadMessage, "empty"),
    ({"messages": []}, BadMessage, "empty"),
    ({"messages": 7}, BadMessage, "int"),
    ({"messages": ["hi"]}, BadMessage, "str"),
    ({"messages": {"role": "user", "content": None}}, BadMessage, "NoneType"),
    ({"messages": {"role": "user", "content": b"bytes"}}, BadMessage, "bytes"),
    ({"messages": {"role": "wizard", "content": "hi"}}, BadMessage, "wizard"),
    ({"messages": {"role": ["user"], "content": "hi"}}, BadMessage, "role"),
    ({"messages": {"role": "user", "content": "hi", "tool_calls": [{"name": "f"}]}}, BadMessage, "only the assistant"),
    ({"messages": {"role": "assistant", "tool_calls": [{"arguments": {}}]}}, BadMessage, "malformed tool call"),
    ({"messages": {"role": "assistant", "tool_calls": 3}}, BadMessage, "tool_calls"),
    ({"messages": "lone surrogate \ud800"}, BadMessage, "surrogate"),
    ({"messages": "hi", "token_ids": [5]}, BadMessage, "either"),
    ({}, BadMessage, "either"),
    ({"token_ids": [VOCABULARY]}, BadMessage, str(VOCABULARY)),
    ({"token_ids": [-1]}, BadMessage, "-1"),
    ({"token_ids": [1.5]}, BadMessage, "whole number"),
    ({"token_ids": 5}, BadMessage, "whole numbers"),
    ({"token_ids": [5], "replay": []}, BadMessage, "at least one"),
    ({"token_ids": [5], "replay": ["a"]}, BadMessage, "replay"),
    ({"token_ids": [5], "max_new_tokens": 0}, BadValue, "max_new_tokens"),
    ({"token_ids": [5], "max_new_tokens": 2.0}, BadValue, "max_new_tokens"),
    ({"token_ids": [5], "timeout_s": 0}, BadValue, "timeout_s"),
    ({"token_ids": [5], "timeout_s": float("nan")}, BadValue, "timeout_s"),
    ({"token_ids": [5], "max_new_tokens": True}, BadValue, "max_new_tokens"),
    ({"token_ids": [5], "sampling": {"temperature": 1}}, BadValue, "Sampling"),
    ({"token_ids": [5] * 200, "max_new_tokens": 60}, ContextOverflow, "256 positions"),
    ({"token_ids": [5] * 200, "max_new_tokens": 14}, OutOfPages, "whole pool has 60"),
]


@pytest.mark.parametrize("options, error, says", BAD)
def test_bad_input_changes_nothing(options, error, says):
    e = engine(num_pages=60)
    e.submit(e.open(), token_ids=[4] * 30, max_new_tokens=9)
    e.step()
    session = e.open()
    session.send("hi", max_new_tokens=3)
    mark, before = session.mark(), session.token_ids
    with pytest.raises(error, match=says):
        session.send(**{"max_new_tokens": 5, **options})
    e.check()
    assert session.token_ids == before
    stats = session.send("still here", max_new_tokens=3).stats
    assert stats.recomputed == 0
    session.rollback(mark)
    assert session.token_ids == before


@pytest.mark.parametrize("speculation", [False, True])
def test_a_turn_that_is_taken_back_was_never_there(speculation):
    e = engine(speculation=speculation)
    session = e.open([{"role": "system", "content": "Be."}])
    greedy = Sampling(ignore_eos=True)
    session.send("hi", max_new_tokens=5, sampling=Sampling(stop=("<|endoftext|>",)))
    early = session.mark()
    before, messages = session.token_ids, session.messages
    turn = session.send("more", max_new_tokens=9, sampling=greedy)
    late = session.mark()
    session.take_back()
    e.check()
    assert (session.token_ids, session.messages) == (before, messages)
    assert session.send("more", max_new_tokens=9, sampling=greedy).token_ids == turn.token_ids
    session.take_back()
    with pytest.raises(StaleMark):
        session.rollback(late)
    with pytest.raises(StaleMark, match="no turn to take back"):
        session.take_back()
    session.rollback(early)
    assert session.token_ids == before


@pytest.mark.parametrize("what", ["rollback", "sync", "nothing sent", "fork"])
def test_only_the_last_thing_that_happened_can_be_taken_back(what):
    session = engine().open()
    mark = session.mark()
    if what != "nothing sent":
        session.send("hi", max_new_tokens=3)
    if what == "rollback":
        session.rollback(mark)
    elif what == "sync":
        session.sync([*session.messages, {"role": "user", "content": "more"}])
    elif what == "fork":
        session = session.fork()
    log = session.token_ids
    with pytest.raises(StaleMark, match="no turn to take back"):
        session.take_back()
    assert session.token_ids == log
    session.engine.check()


def test_what_the_input_of_a_turn_cut_off_is_back_with_its_marks():
    session = engine(positions=100).open()
    session.send("a" * 20, max_new_tokens=5)
    mark, before, messages = session.mark(), session.token_ids, session.messages
    assert session.send("b" * 30, max_new_tokens=5, on_overflow="drop_oldest").stats.dropped
    session.take_back()
    session.engine.check()
    assert (session.token_ids, session.messages) == (before, messages)
    session.send("c", max_new_tokens=1)
    session.rollback(mark)
    assert session.token_ids == before


def test_the_first_turn_needs_a_token():
    with pytest.raises(BadMessage, match="at least one token"):
        engine().open().send(token_ids=[])
