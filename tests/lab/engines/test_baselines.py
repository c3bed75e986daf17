"""The baselines keep less K/V than the engine, generate the same tokens, and refuse what the engine refuses."""

import pytest
from tiny import engine

from minstate import Engine, Sampling
from minstate.errors import SessionBusy, SessionClosed
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine

GREEDY = Sampling(ignore_eos=True)


def turns(kind: type[Engine]) -> list:
    e = engine(kind)  # pages of 4 tokens
    with e.open() as session:
        taken = [session.send(token_ids=[5] * 7, max_new_tokens=6, sampling=GREEDY) for _ in range(4)]
    e.check()
    return taken


def test_naive_forwards_the_whole_log_and_prefix_reuse_all_but_full_pages():
    stateful, naive, reuse = turns(Engine), turns(NaiveEngine), turns(PrefixReuseEngine)
    assert [turn.token_ids for turn in naive] == [turn.token_ids for turn in stateful]
    assert [turn.token_ids for turn in reuse] == [turn.token_ids for turn in stateful]
    for ours, from_nothing, from_pages in zip(stateful, naive, reuse, strict=True):
        context, delta = ours.stats.context, ours.stats.delta
        assert ours.stats.prefilled == delta
        assert from_nothing.stats.prefilled == context + delta
        assert from_pages.stats.prefilled == delta + context % 4


@pytest.mark.parametrize("kind", [NaiveEngine, PrefixReuseEngine])
def test_a_session_that_cannot_take_a_turn_keeps_its_kv(kind):
    e = engine(kind)
    session = e.open()
    request = e.submit(session, token_ids=[5] * 9, max_new_tokens=6, sampling=GREEDY)
    e.step()
    resident = session.sequence.kv_len
    with pytest.raises(SessionBusy):
        session.send(token_ids=[5], max_new_tokens=1)
    assert session.sequence.kv_len == resident > 0
    e.run()
    assert request.turn.stats.generated == 6
    session.close()
    with pytest.raises(SessionClosed):
        session.send(token_ids=[5], max_new_tokens=1)
    e.check()


@pytest.mark.parametrize("kind", [NaiveEngine, PrefixReuseEngine])
def test_a_refused_turn_leaves_the_log_as_it_was(kind):
    e = engine(kind)
    session = e.open()
    session.send(token_ids=[5] * 9, max_new_tokens=6, sampling=GREEDY)
    log = session.token_ids
    with pytest.raises(ValueError):
        session.send(token_ids=[5], max_new_tokens=0)
    assert session.token_ids == log
    e.check()
