"""A turn without room: what the error says helps, and what makes room if the oldest exchanges may be dropped."""

import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import LOOK, engine

from minstate import BadValue, ContextOverflow, OutOfPages, Sampling, StaleMark
from minstate.chat.shortening import exchanges
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine

FREE = Sampling(ignore_eos=True)
SYSTEM = {"role": "system", "content": "Be."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": {"path": "a"}}]}
RESULT = {"role": "tool", "content": "b"}


def user(text):
    return {"role": "user", "content": text}


# ---- The error


def test_the_error_of_a_refused_turn_has_its_figures():
    e = engine(positions=64, num_pages=12)
    with pytest.raises(ContextOverflow) as refused:
        e.open().send(token_ids=[5] * 60, max_new_tokens=9)
    assert (refused.value.needed, refused.value.limit) == (69, 64)
    with pytest.raises(OutOfPages) as refused:
        e.open().send(token_ids=[5] * 50, max_new_tokens=4)
    assert (refused.value.needed, refused.value.available) == (14, 12)
    with pytest.raises(OutOfPages) as refused:
        e.pool.allocator.allocate(13)
    assert (refused.value.needed, refused.value.available) == (13, 12)


def test_the_error_of_a_turn_that_has_begun_has_its_figures():
    e = engine(num_pages=3)
    request = e.submit(e.open(), token_ids=[5] * 5, max_new_tokens=5)
    e.pool.allocator.allocate(2)  # by nobody: the turn cannot know of it
    e.run()
    assert (request.error.needed, request.error.available) == (2, 1)


@cache
def idle_engine(**sizes):
    """An engine whose sessions share nothing, to try things on."""
    return engine(prefix_cache=False, **sizes)


def remedies(message):
    """The single remedies that a message lists."""
    return message.rpartition(": ")[2].split(", or ")


def helps(session, remedy, input_, options):
    """Whether the turn has room after one remedy."""
    (number,) = re.findall(r"\d+", remedy) or [None]
    if remedy.startswith("lower"):
        assert "replay" not in options
        options = {**options, "max_new_tokens": int(number)}
    elif remedy.startswith("replay"):
        options = {**options, "replay": options["replay"][: int(number)]}
    elif remedy.startswith("roll back"):
        session.rollback(next(mark for mark in session.marks if mark.length == int(number)))
    elif remedy.startswith("pass"):
        options = {**options, "on_overflow": "drop_oldest"}
    elif remedy.startswith("open"):
        session = session.engine.open()
    elif remedy.startswith("send a shorter input"):
        session = session.engine.open() if "another" in remedy else session
        input_ = {"token_ids": [5]} if "token_ids" in input_ else {"messages": "a"}
        options = {**options, "replay": [5]} if "replay" in options else {"max_new_tokens": 1}
    else:
        positions = session.engine.model.config.max_positions
        larger = idle_engine(num_pages=int(number), positions=positions)
        sequence = larger.new_sequence("default", session.transcript.tools)
        sequence.log += session.sequence.log
        session = larger.new_session("default", sequence, session.transcript)
    session.engine.submit(session, **input_, **options).abort()
    return True


@given(
    sent=st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=4),
    raw=st.booleans(),
    length=st.integers(1, 200),
    output=st.integers(1, 200),
    replayed=st.booleans(),
    num_pages=st.sampled_from([25, 30, 64]),
)
def test_everything_that_the_message_of_a_refused_turn_names_helps(sent, raw, length, output, replayed, num_pages):
    def text(count):
        return {"token_ids": [5] * count} if raw else {"messages": "x" * count}

    def build():
        session = idle_engine(positions=180, num_pages=num_pages).open()
        for count, marked in sent:
            if marked:
                session.mark()
            try:
                session.send(**text(count), max_new_tokens=2)
            except (ContextOverflow, OutOfPages):
                break
        return session

    options = {"replay": [5] * output} if replayed else {"max_new_tokens": output}
    session = build()
    try:
        session.engine.submit(session, **text(length), **options)
    except (ContextOverflow, OutOfPages) as error:
        said = remedies(str(error))
        for remedy in said:
            assert helps(build(), remedy, text(length), options), remedy
        shorter = {"replay": [5]} if replayed else {"max_new_tokens": 1}
        if not any(word in remedy for remedy in said for word in ("lower", "replay at most")):
            with pytest.raises((ContextOverflow, OutOfPages)):
                session.engine.submit(session, **text(length), **shorter)
        if not any(remedy.startswith("pass") for remedy in said):
            with pytest.raises((ContextOverflow, OutOfPages, BadValue)):
                session.engine.submit(session, **text(length), **options, on_overflow="drop_oldest")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token_ids": [5] * 50, "max_new_tokens": 30}, "lower max_new_tokens to at most 14$"),
        ({"token_ids": [5] * 50, "replay": [5] * 30}, ": replay at most 14 tokens$"),
        ({"token_ids": [5] * 70, "max_new_tokens": 30}, ": send a shorter input with less output if need be$"),
        (
            {"token_ids": [5] * 70, "max_new_tokens": 64},
            ": send a shorter input with less output if need be$",
        ),
    ],
)
def test_a_message_names_nothing_that_does_not_help(options, says):
    with pytest.raises(ContextOverflow, match=says):
        engine(positions=64).open().send(**options)


# ---- Where a conversation may be cut


@pytest.mark.parametrize(
    ("roles", "begin", "places"),
    [
        ("", 0, []),
        ("s", 1, []),
        ("su", 1, []),
        ("suaua", 1, [3]),
        ("uaua", 0, [2]),
        ("sduauau", 2, [4, 6]),
        ("auau", 0, [1, 3]),
        ("suasu", 1, [4]),
        ("ucrau", 0, [4]),
        ("ucurau", 0, [5]),  # the result answers the call in front of the question
        ("uccrurua", 0, [6]),
        ("ucuau", 0, [2, 4]),  # a call that nobody answered
        ("ucucru", 0, [2, 5]),
        ("urau", 0, [3]),  # a result without a call
    ],
)
def test_a_conversation_goes_on_at_a_question_and_calls_stay_with_their_results(roles, begin, places):
    made = {"s": SYSTEM, "d": {**SYSTEM, "role": "developer"}, "u": user("x"), "c": CALL, "r": RESULT}
    messages = [made.get(role, {"role": "assistant", "content": "y"}) for role in roles]
    assert exchanges(messages) == (begin, places)


# ---- Dropping


def take(session, messages, **options):
    """A turn, recounted after every step."""
    request = session.engine.submit(session, messages, **options)
    while not request.done:
        session.engine.step()
        session.engine.check()
    assert request.error is None
    return request.turn


INPUTS = st.one_of(
    st.integers(1, 25).map(lambda count: [user("q" * count)]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)).map(
        lambda counts: [user("c" * counts[0]), CALL, {**RESULT, "content": "r" * counts[1]}]
    ),
)


@given(
    opening=st.sampled_from([(), (SYSTEM,), (SYSTEM, user("hm"), {"role": "assistant", "content": "well"})]),
    tools=st.sampled_from([(), (LOOK,)]),
    inputs=st.lists(st.tuples(INPUTS, st.integers(1, 9), st.sampled_from(["", "", "evict", "abort"]))),
    positions=st.sampled_from([140, 200, 256]),
    num_pages=st.sampled_from([40, 64]),
    settings=st.sampled_from([{}, {"speculation": True}, {"prefix_cache": False}]),
    kind=st.sampled_from([None, None, NaiveEngine, PrefixReuseEngine]),
)
def test_a_turn_that_drops_generates_what_a_session_opened_with_the_rest_generates(
    opening, tools, inputs, positions, num_pages, settings, kind
):
    sizes = {"positions": positions + 400 * len(tools), "num_pages": num_pages + 100 * len(tools)}
    e = engine(kind, **sizes) if kind else engine(**sizes, **settings)
    session = e.open(opening, tools)
    begin = 1 if opening else 0
    for new, count, happening in inputs:
        options = {"max_new_tokens": count, "sampling": FREE, "on_overflow": "drop_oldest", "tool_choice": None}
        mark, log, old = session.mark(), session.token_ids, session.messages
        before = e.read_input(session.transcript, log, new, None)
        whole = before.keep + len(before.ids)
        if happening == "evict":
            e.cache.make_room(5)
        try:
            if happening == "abort":
                request = e.submit(session, new, **options)
                e.step()
                request.abort()
                e.check()
                assert (session.token_ids, session.messages) == (log, old) and mark in session.marks
            turn = take(session, new, **options)
        except (ContextOverflow, OutOfPages):
            assert (session.token_ids, session.messages) == (log, old) and mark in session.marks
            alone = idle_engine(**sizes).open(opening[:begin], tools)
            with pytest.raises((ContextOverflow, OutOfPages)):
                alone.send(new, max_new_tokens=count)
            continue
        rest, stats = session.messages[: -len(new) - 1], turn.stats
        place = len(old) - len(rest) + begin
        assert stats.prefilled == stats.delta + stats.recomputed - stats.shared
        assert stats.forwarded - stats.drafted + stats.accepted == stats.prefilled + stats.generated - 1
        assert stats.dropped == whole - (stats.context + stats.delta)
        if len(rest) == len(old):
            assert not stats.dropped and mark in session.marks
            continue
        assert stats.dropped > 0 and rest == [*old[:begin], *old[place:]]
        fresh = idle_engine(**sizes).open(rest, tools)
        assert turn.token_ids == fresh.send(new, max_new_tokens=count, sampling=FREE, tool_choice=None).token_ids
        assert session.token_ids == fresh.token_ids and session.messages == fresh.messages
        places = [each for each in exchanges([*old, *new])[1] if each <= place]
        assert places[-1] == place, "the rest begins at a question, and has all calls of its results"
        for less in places[:-1]:  # as little as possible is dropped
            with pytest.raises((ContextOverflow, OutOfPages)):
                idle_engine(**sizes).open([*old[:begin], *old[less:]], tools).send(new, max_new_tokens=count)


def test_marks_beyond_the_cut_become_stale_and_those_before_it_stay():
    session = engine(positions=100).open([SYSTEM])
    start = session.mark()
    session.send("a" * 20, max_new_tokens=5)
    late = session.mark()
    turn = session.send("b" * 30, max_new_tokens=5, on_overflow="drop_oldest")
    assert turn.stats.dropped and session.messages[1] == user("b" * 30)
    with pytest.raises(StaleMark):
        session.rollback(late)
    session.rollback(start)
    assert session.token_ids == [] and session.messages == [SYSTEM]
    session.engine.check()


def test_keys_and_values_of_the_system_message_stay():
    session = engine(positions=160).open([{"role": "system", "content": "s" * 60}])
    session.send("a" * 20, max_new_tokens=5, sampling=FREE)
    turn = session.send("b" * 40, max_new_tokens=5, sampling=FREE, on_overflow="drop_oldest")
    common = len("\x01system\n" + "s" * 60 + "\x02\n\x01user\n")
    assert turn.stats.dropped and turn.stats.context == common - 1 and turn.stats.recomputed == 0
    assert turn.stats.prefilled == turn.stats.delta - turn.stats.shared < common


def test_a_history_that_is_given_as_messages_is_dropped_from_too():
    session = engine(positions=128).open()
    history = [user("a" * 50), {"role": "assistant", "content": "c" * 30}, user("b" * 20)]
    session.sync(history)
    with pytest.raises(ContextOverflow, match="pass on_overflow='drop_oldest'"):
        session.send([], max_new_tokens=5)
    assert session.send([], max_new_tokens=5, on_overflow="drop_oldest").stats.dropped > 80
    assert session.messages[0] == history[2] and len(session.messages) == 2


@pytest.mark.parametrize("begun", ["no", "raw session", "raw input", "a reply goes on"])
def test_of_raw_token_ids_nothing_can_be_dropped(begun):
    e = engine(positions=128)
    session = e.open()
    session.send(**({"token_ids": [5] * 9} if begun.startswith("raw s") else {"messages": "hi"}), max_new_tokens=3)
    log = session.token_ids
    inputs = {"raw input": {"token_ids": [5] * 80}, "a reply goes on": {"token_ids": []}}
    given = inputs.get(begun, {"messages": "x" * 80})
    if begun == "no":
        assert session.send(**given, max_new_tokens=5, on_overflow="drop_oldest").stats.dropped
    else:
        with pytest.raises(BadValue, match="raw token ids"):
            session.send(**given, max_new_tokens=5, on_overflow="drop_oldest")
        assert session.token_ids == log
    e.check()


def test_an_unknown_policy_is_refused():
    with pytest.raises(BadValue, match="'error' or 'drop_oldest', not 'drop'"):
        engine().open().send("hi", on_overflow="drop")
