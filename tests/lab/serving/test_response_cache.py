"""The response cache answers exact repeats, says what the model would say, and shares between tenants nothing."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import engine

from minstate import BadValue, Sampling, SessionBusy
from minstate.lab.engines.baselines import NaiveEngine
from minstate.lab.serving.response_cache import ResponseCache

FREE = Sampling(ignore_eos=True)
ASK = {"token_ids": [5, 6, 7], "max_new_tokens": 4, "sampling": FREE}


def two_sessions(**tenants):
    e = engine()
    return ResponseCache(e), e.open(), e.open(**tenants)


def test_an_exact_repeat_costs_no_pass_and_is_counted_apart():
    cache, first, second = two_sessions()
    said = cache.send(first, **ASK)
    steps = cache.engine.scheduler.steps
    again = cache.send(second, **ASK)
    cache.engine.check()
    assert (cache.hits, cache.misses) == (1, 1) and cache.engine.scheduler.steps == steps
    assert (again.text, again.token_ids, again.finish_reason) == (said.text, said.token_ids, said.finish_reason)
    stats = again.stats
    assert (stats.steps, stats.forwarded, stats.prefilled, stats.flops) == (0, 0, 0, 0)
    assert (stats.context, stats.delta, stats.generated) == (0, 3, 4) and stats.total_s > 0
    assert second.token_ids == first.token_ids


def test_the_conversation_goes_on_as_if_it_had_been_computed():
    cache, first, second = two_sessions()
    for _ in range(2):
        cache.send(first, "hello", max_new_tokens=5, sampling=FREE)
    for _ in range(2):
        cache.send(second, "hello", max_new_tokens=5, sampling=FREE)
    assert cache.hits == 2 and second.messages == first.messages and second.resident < first.resident
    new, old = (cache.send(one, "and now?", max_new_tokens=5, sampling=FREE) for one in (second, first))
    assert new.stats.steps and old.stats.steps == 0
    plain = engine().open()
    for text in ("hello", "hello", "and now?"):
        expected = plain.send(text, max_new_tokens=5, sampling=FREE)
    assert new.token_ids == old.token_ids == expected.token_ids
    cache.engine.check()


@pytest.mark.parametrize(
    "other",
    [
        {"token_ids": [5, 6, 8]},
        {"max_new_tokens": 5},
        {"sampling": Sampling(temperature=1.0, ignore_eos=True)},
        {"sampling": Sampling()},
        {"logprobs": True},
        {"top_logprobs": 1},
        {"sampling": replace(FREE, repetition_penalty=1.2)},
        {"sampling": replace(FREE, presence_penalty=0.1)},
        {"sampling": replace(FREE, frequency_penalty=0.1)},
        {"sampling": replace(FREE, logit_bias={7: 1})},
        {"tools": [{"name": "f", "parameters": {}}], "tool_choice": "required", "max_new_tokens": 40},
        {"replay": [9, 9]},
    ],
)
def test_what_may_be_answered_otherwise_is_no_repeat(other):
    cache, first, second = two_sessions()
    cache.send(first, **ASK)
    assert cache.send(second, **{**ASK, **other}).stats.steps and cache.hits == 0


def test_a_repeat_in_the_form_of_another_api_is_an_exact_one():
    cache, first, second = two_sessions()
    schema = {"type": "boolean"}
    cache.send(first, **ASK, response_format=schema)
    cache.send(second, **ASK, response_format={"type": "json_schema", "json_schema": {"name": "b", "schema": schema}})
    assert cache.hits == 1


def test_the_same_settings_as_other_kinds_of_numbers_are_an_exact_repeat():
    cache, first, second = two_sessions()
    cache.send(first, **ASK | {"sampling": replace(FREE, repetition_penalty=2, logit_bias={7: 1, 5: 2})})
    again = replace(FREE, repetition_penalty=np.float32(2), logit_bias={np.int64(5): 2.0, 7: np.int8(1)})
    cache.send(second, **ASK | {"sampling": again, "max_new_tokens": np.int32(4)})
    assert cache.hits == 1


def test_a_name_that_is_no_option_is_answered_as_by_a_session():
    cache, session, _ = two_sessions()
    with pytest.raises(TypeError, match="did you mean max_new_tokens"):
        cache.send(session, token_ids=[5], max_tokens=5)


def test_sessions_with_other_tools_are_answered_apart_though_none_are_named():
    e = engine()
    cache, free = ResponseCache(e), {**ASK, "tools": None, "max_new_tokens": 8}
    plain, armed = e.open(), e.open()
    for session in (plain, armed):
        session.send(token_ids=[4], max_new_tokens=1)
    armed.transcript = replace(armed.transcript, tools=({"name": "f", "parameters": {}},))
    cache.send(plain, **free)
    assert cache.send(armed, **free).stats.steps and cache.hits == 0


def test_tenants_hear_nothing_of_each_other():
    cache, first, second = two_sessions(tenant="other")
    cache.send(first, **ASK)
    assert cache.send(second, **ASK).stats.prefilled == 3 and cache.hits == 0
    assert cache.send(cache.engine.open(tenant="other"), **ASK).stats.prefilled == 0, "within a tenant they do"


def test_forks_that_draw_other_noise_are_answered_apart():
    e = engine()
    cache, parent = ResponseCache(e), e.open()
    noisy = {**ASK, "sampling": Sampling(temperature=1.0, seed=3, ignore_eos=True)}
    parent.send(token_ids=[4], max_new_tokens=1)
    left, right = parent.fork(), parent.fork()
    assert cache.send(left, **noisy).stats.steps and cache.send(right, **noisy).stats.steps
    cache.send(left, **ASK)
    assert e.open().token_ids == [] and cache.hits == 0


def test_a_repeat_after_a_rollback_is_answered_from_memory():
    e = engine()
    cache, session = ResponseCache(e), e.open()
    session.send(token_ids=[4] * 9, max_new_tokens=1)
    mark = session.mark()
    said = cache.send(session, **ASK).token_ids
    session.rollback(mark)
    assert cache.send(session, **ASK).token_ids == said and cache.hits == 1
    session.rollback(mark)
    e.check()


def test_it_is_bounded_and_forgets_what_was_not_used_for_longest():
    e = engine()
    cache = ResponseCache(e, capacity=2)
    for token in (5, 6, 5, 7, 5, 6):
        cache.send(e.open(), token_ids=[token], max_new_tokens=1)
    assert (cache.hits, cache.misses) == (2, 4)


def test_errors_are_those_of_a_session_and_nothing_is_kept():
    cache, first, _ = two_sessions()
    with pytest.raises(BadValue):
        cache.send(first, token_ids=[5], sampling=None)
    with pytest.raises(BadValue):
        cache.send(first, token_ids=[5], max_new_tokens=0)
    cache.engine.submit(first, token_ids=[5], max_new_tokens=3)
    with pytest.raises(SessionBusy):
        cache.send(first, **ASK)
    assert not cache._turns and cache.hits == 0


def test_no_engine_and_no_foil_uses_it_by_itself():
    for kind in (type(engine()), NaiveEngine):
        e = engine(kind)
        assert all(e.open().send(**ASK).stats.steps for _ in range(2))


def test_an_answer_from_memory_has_no_drafts_and_replay_none_is_no_replay():
    e = engine(speculation=True)
    cache, ask = ResponseCache(e), {"token_ids": [5, 6] * 20, "max_new_tokens": 20, "sampling": FREE, "replay": None}
    first = cache.send(e.open(), **ask)
    again = cache.send(e.open(), **ask)
    assert cache.hits == 1 and first.verdicts and again.verdicts == () and again.stats.drafted == 0
