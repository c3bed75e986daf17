"""Where a history differs from the log, why, and that syncing costs the least work."""

import copy

import pytest
import templates
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minstate import BadMessage, Engine, Sampling, SessionBusy, StaleMark
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine

GREEDY = Sampling(ignore_eos=True)
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("ls", "cat")]
CALL = '<tool_call>{"name":"ls","arguments":{}}</tool_call>'  # without the spaces that json.dumps would write


def engine(cls=Engine, **settings) -> Engine:
    """A tiny engine with room for some conversation."""
    return tiny.engine(cls, num_pages=600, positions=1500, **settings)


def styled(style: str, cls=Engine, **settings) -> Engine:
    """Its tokenizer has the chat template of `style`; for styles that use ChatML's tokens."""
    e = engine(cls, **settings)
    e.tokenizer = copy.copy(e.tokenizer)
    e.tokenizer.chat_template = templates.STYLES[style][0]
    return e


def talk(e: Engine, *replies: str, tools=()):
    session = e.open([SYSTEM], tools)
    for number, reply in enumerate(replies):
        session.send(f"q{number}", replay=reply)
    return session


def edited(messages: list[dict], index: int, **changes) -> list[dict]:
    return [{**message, **(changes if i == index else {})} for i, message in enumerate(messages)]


@pytest.mark.parametrize("style", ["chatml", "qwen2.5"])
def test_the_sessions_own_messages_extend_its_log(style):
    session = talk(styled(style), "yes", "no")
    drift = session.drift(session.messages)
    assert drift.extends and drift.reason == "" and drift.at == len(session.token_ids) and drift.rest <= 1
    more = session.drift([*session.messages, {"role": "user", "content": "and?"}])
    assert more.extends and more.rest > 0 and "are new" in str(more)


def test_messages_are_those_of_the_user_and_the_model():
    session = talk(engine(), "yes", "no")
    assert [message["content"] for message in session.messages] == ["Be brief.", "q0", "yes", "q1", "no"]
    session.send(token_ids=[5], max_new_tokens=1)
    assert session.messages is None, "which messages raw ids are is unknown"


def test_a_reply_that_went_on_is_one_message():
    session = engine().open()
    session.send("hi", replay=[70, 71])
    session.send(token_ids=[], replay=[72, 2])
    assert session.messages[-1] == {"role": "assistant", "content": session.engine.tokenizer.decode([70, 71, 72])}
    assert session.drift(session.messages).extends


def test_messages_follow_marks_forks_and_aborts():
    session = talk(engine(), "yes")
    mark, messages = session.mark(), session.messages
    session.send("q", replay="more")
    child = session.fork()
    assert child.messages == session.messages != messages
    handle = session.engine.submit(session, "q", max_new_tokens=9)
    handle.abort()
    assert child.messages == session.messages
    session.rollback(mark)
    assert session.messages == messages


REASONS = {
    "tools": lambda messages: (messages, TOOLS[::-1]),
    "system": lambda messages: (edited(messages, 0, content="Be brief! It is 10:42."), None),
    "edited": lambda messages: (edited(messages, 3, content="another question"), None),
    "shorter": lambda messages: (messages[:3], None),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_the_client_changed_is_named(reason):
    session = talk(engine(), "yes", "no", tools=TOOLS)
    history, tools = REASONS[reason](session.messages)
    drift = session.drift(history, tools)
    assert drift.reason == reason and not drift.extends
    assert drift.message == {"tools": 0, "system": 0, "edited": 3, "shorter": 3}[reason]
    assert 0 < drift.at < len(session.token_ids) == drift.at + drift.dropped
    assert str(drift.dropped) in str(drift)


def test_a_template_that_strips_thoughts_is_named():
    session = talk(styled("qwen3"), "<think>\nhm\n</think>\n\nyes", "no")
    drift = session.drift([*session.messages, {"role": "user", "content": "and?"}])
    assert (drift.reason, drift.message) == ("template", 2)
    assert drift.seen.startswith("<think>") and drift.given.startswith("yes")


def test_of_several_reasons_the_first_is_named():
    session = talk(styled("qwen3"), "<think>\nhm\n</think>\n\nyes", "<think>\nwell\n</think>\n\nno", "so")
    messages = session.messages
    for history in (messages[:-1], edited(messages, 5, content="another question")):
        drift = session.drift(history)
        assert (drift.reason, drift.message) == ("template", 2), "what comes later does not matter"
    early = session.drift(edited(messages, 1, content="another question"))
    assert (early.reason, early.message) == ("edited", 1)


def test_a_tool_call_that_is_written_anew_is_named():
    session = talk(styled("qwen2.5"), "let me look\n" + CALL, "no")
    history = session.messages
    history[2] = {"role": "assistant", "content": "let me look", "tool_calls": [{"name": "ls", "arguments": "{}"}]}
    drift = session.drift(history)
    assert (drift.reason, drift.message) == ("template", 2), "the same call, spelt differently"


def test_text_that_does_not_give_back_the_ids_is_named():
    session = talk(engine(), "yes")
    session.send("q", replay=[*session.engine.tokenizer.encode("torn: "), 3 + 0x94, 2])
    drift = session.drift(session.messages)
    assert (drift.reason, drift.message) == ("retokenised", 4)
    cut = engine().open([SYSTEM])
    ids = cut.engine.tokenizer.encode("stop here; and no further")
    steps = iter(ids)
    cut.engine.scheduler.running.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minstate.output.choose", lambda *_, **__: next(steps))
        turn = cut.send("q", sampling=Sampling(stop="; a"), max_new_tokens=20)
    assert turn.text == "stop here"
    assert cut.messages[-1]["content"] == "stop here; a" and cut.drift(cut.messages).extends, "what the log holds"


def test_a_history_of_raw_ids_can_only_be_compared_as_text():
    session = engine().open()
    session.send(token_ids=[5, 6], max_new_tokens=2, sampling=GREEDY)
    drift = session.drift([{"role": "user", "content": "x"}])
    assert drift.reason == "edited" and drift.message is None


@given(turns=st.lists(st.sampled_from(["yes", "no", "well"]), min_size=1, max_size=4), data=st.data())
def test_syncing_costs_what_differs_and_answers_as_if_nothing_had_been(turns, data):
    session = talk(engine(), *turns)
    index = data.draw(st.integers(0, len(session.messages) - 1))
    history = [*edited(session.messages, index, content=data.draw(st.sampled_from(["yes", "never"])))]
    history.append({"role": "user", "content": "so?"})
    before = session.token_ids
    drift = session.sync(history)
    session.engine.check()
    assert session.token_ids == before[: drift.at] and session.messages == history
    turn = session.send([], max_new_tokens=3, sampling=GREEDY)
    session.engine.check()
    assert turn.stats.recomputed == 0 and turn.stats.prefilled <= drift.rest + 1
    naive = engine(NaiveEngine).open(history)
    assert naive.send([], max_new_tokens=3, sampling=GREEDY).token_ids == turn.token_ids
    assert naive.token_ids == session.token_ids


def test_syncing_is_idempotent_and_takes_new_tools():
    session = talk(engine(), "yes", tools=TOOLS)
    history = session.messages
    first, second = session.sync(history, TOOLS[:1]), session.sync(history, TOOLS[:1])
    assert first.reason == "tools" and second.extends
    session.send("go on", max_new_tokens=2)
    assert '"cat"' not in session.engine.tokenizer.decode(session.token_ids)


def test_marks_behind_a_divergence_are_stale_and_others_hold():
    session = talk(engine(), "yes")
    early = session.mark()
    session.send("q", replay="no")
    late, messages = session.mark(), session.messages
    session.sync([*messages[:-2], {"role": "user", "content": "another"}])
    with pytest.raises(StaleMark):
        session.rollback(late)
    session.rollback(early)
    assert session.messages == messages[:-2]


def test_errors_change_nothing():
    session = talk(engine(), "yes")
    before, messages = session.token_ids, session.messages
    with pytest.raises(BadMessage):
        session.sync([{"role": "wizard", "content": "x"}])
    with pytest.raises(BadMessage, match="empty"):
        session.send([])  # no message is pending
    handle = session.engine.submit(session, "q", max_new_tokens=2)
    with pytest.raises(SessionBusy):
        session.sync(messages)
    handle.abort()
    session.sync([*messages[:-1], {"role": "assistant", "content": "maybe"}, {"role": "user", "content": "so?"}])
    waiting = session.messages
    session.engine.submit(session, [], max_new_tokens=5).abort()
    assert session.messages == waiting and session.token_ids == before[: len(session.token_ids)]
    session.engine.check()


def test_stripped_thoughts_cost_a_stateless_client_and_not_a_session():
    thought = "<think>\n" + "well " * 8 + "\n</think>\n\nyes"
    deltas = {}
    for cls in (Engine, PrefixReuseEngine):
        session = styled("qwen3", cls, page_size=1).open([SYSTEM])
        turns = [session.send("q", replay=thought) for _ in range(3)]
        deltas[cls] = [turn.stats.prefilled for turn in turns]
        session.engine.check()
    ours, theirs = deltas[Engine], deltas[PrefixReuseEngine]
    assert ours[1] == ours[2] < theirs[1] == theirs[2]


def test_replay_takes_text_ids_or_a_message():
    ids = tiny.tokenizer().encode("yes<|im_end|>")
    outputs = [
        engine().open().send("q", replay=r).token_ids for r in ("yes", ids, {"role": "assistant", "content": "yes"})
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    with pytest.raises(BadMessage, match="assistant"):
        engine().open().send("q", replay={"role": "user", "content": "yes"})


def test_a_history_that_goes_on_keeps_the_log_however_it_would_be_written_now():
    """A call in the model's own spelling, a thought that the template strips: `drift` sees them, `sync` keeps them."""
    for style, reply in [("qwen2.5", "let me look\n" + CALL), ("qwen3", "<think>\nhm\n</think>\n\nyes")]:
        session = talk(styled(style), reply, "no")
        before, history = session.token_ids, [*session.messages, {"role": "user", "content": "and?"}]
        assert session.drift(history).reason == "template"
        drift = session.sync(history)
        assert drift.extends and session.token_ids == before and session.messages == history
        turn = session.send([], max_new_tokens=2)
        assert turn.stats.prefilled == turn.stats.delta == drift.rest + 1
        assert session.token_ids[: len(before)] == before
        session.engine.check()
    assert session.sync(session.messages).rest == 0
