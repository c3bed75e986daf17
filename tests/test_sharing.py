"""Tokens that sessions have in common are computed once: sharing, forks, compaction, and what eviction costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import IDS, SAMPLINGS, engine

from minstate import BadValue, Engine, Sampling, SessionBusy, SessionClosed
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.paged_kv import KVPool

GREEDY = Sampling(ignore_eos=True)
SYSTEM = [{"role": "system", "content": "You keep the books of a small shop."}]


def send(session, ids, count=3, sampling=GREEDY):
    return session.send(token_ids=ids, max_new_tokens=count, sampling=sampling)


def without_cache(log, count=3, sampling=GREEDY):
    return send(engine(NaiveEngine, num_pages=80).open(), log, count, sampling).token_ids


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_cached_prefix_is_shared_to_the_token_with_every_page_size(page_size):
    e = engine(page_size=page_size)
    first = e.open()
    send(first, list(range(20, 71)))
    turn = send(e.open(), [*range(20, 57), 100, 101])
    assert (turn.stats.shared, turn.stats.prefilled) == (37, 2)
    assert turn.token_ids == without_cache([*range(20, 57), 100, 101])
    e.check()


def test_agents_share_their_opening():
    e = engine()
    turns = [e.open(SYSTEM).send(text, max_new_tokens=3) for text in ("count the till", "call the bank")]
    same = len(
        e.tokenizer.encode("<|im_start|>system\nYou keep the books of a small shop.<|im_end|>\n<|im_start|>user\nc")
    )
    assert turns[1].stats.shared == same


def test_a_turn_borrows_what_another_turn_that_is_ahead_has_prefilled():
    e = engine(token_budget=8)
    prompt = list(range(20, 90))
    ahead = e.submit(e.open(), token_ids=prompt, max_new_tokens=2, sampling=GREEDY)
    for _ in range(3):
        e.step()
    behind = e.submit(e.open(), token_ids=[*prompt, 7], max_new_tokens=2, sampling=GREEDY)
    e.run()
    assert ahead.turn.stats.prefilled == 70 and behind.turn.stats.shared >= 64
    assert behind.turn.token_ids == without_cache([*prompt, 7], 2)


def test_the_bookkeeping_of_a_turn_does_not_depend_on_the_length_of_the_session():
    e = engine(num_pages=200)
    tree, sessions = e.cache.tree, [e.open(), e.open()]
    send(sessions[0], list(range(3, 20)))
    send(sessions[1], list(range(40, 200)))
    work = []
    for session in sessions:
        before = tree.nodes_visited, tree.tokens_compared
        send(session, [200] * 9, count=8)
        work.append((tree.nodes_visited - before[0], tree.tokens_compared - before[1]))
    assert work[0] == work[1] == (0, 0)


def test_a_fork_goes_on_from_where_its_parent_was(monkeypatch):
    e, copies = engine(), []
    copy_page = KVPool.copy_page
    monkeypatch.setattr(KVPool, "copy_page", lambda self, *pages: (copies.append(pages), copy_page(self, *pages)))
    parent = e.open()
    send(parent, list(range(20, 51)))
    log, free = parent.token_ids, e.pool.allocator.num_free
    child = parent.fork()
    assert child.token_ids == log and e.pool.allocator.num_free == free and not copies
    turn = send(child, [80, 81])
    assert turn.stats.prefilled == turn.stats.delta == 3
    assert len(copies) == 1, "of the tail, by the fork that writes first"
    other = send(parent, [90])
    assert (other.stats.recomputed, other.stats.delta, other.stats.shared) == (0, 2, 1), (
        "the child has forwarded the parent's last token"
    )
    assert turn.token_ids == without_cache([*log, 80, 81]) and other.token_ids == without_cache([*log, 90])
    e.check()


def test_a_fork_of_a_session_that_has_not_begun_begins_as_it_would():
    e = engine()
    parent = e.open(SYSTEM)
    child = parent.fork()
    assert child.send("hi", max_new_tokens=2).token_ids == parent.send("hi", max_new_tokens=2).token_ids
    assert child.token_ids == parent.token_ids


def test_a_fork_outlives_its_parent_and_the_other_way_round():
    for e in (engine(), engine(prefix_cache=False)):
        parent = e.open()
        send(parent, list(range(20, 50)))
        child, grandchild = parent.fork(), parent.fork().fork()
        parent.close()
        turn = send(child, [80])
        assert turn.stats.prefilled == turn.stats.delta
        child.close()
        assert send(grandchild, [80]).stats.recomputed == 0
        grandchild.close()
        e.check()
        assert e.cache.num_available == e.pool.allocator.num_pages


def test_forks_draw_noise_of_their_own_and_always_the_same():
    noisy = Sampling(temperature=2.0, seed=3, ignore_eos=True)

    def family():
        parent = engine().open()
        send(parent, [20, 21])
        first, second = parent.fork(), parent.fork()
        return [send(session, [30], 8, noisy).token_ids for session in (parent, first, second, first.fork())]

    outputs = family()
    assert len(set(outputs)) == 4 and family() == outputs


def test_only_an_idle_open_session_can_be_forked():
    e = engine()
    session = e.open()
    handle = e.submit(session, token_ids=[5], max_new_tokens=2)
    with pytest.raises(SessionBusy):
        session.fork()
    handle.abort()
    session.close()
    with pytest.raises(SessionClosed):
        session.fork()


def test_compaction_costs_the_summary_and_no_more():
    """Roll back to where the task was stated, and go on from a summary of what came after."""
    e = engine()
    session = e.open(SYSTEM)
    session.send("the task", max_new_tokens=2)
    task = session.mark()
    before = session.token_ids
    for detail in ("first detail", "second detail"):
        session.send(detail, max_new_tokens=4)
    session.rollback(task)
    turn = session.send("in short: both looked at", max_new_tokens=4, sampling=GREEDY)
    log = session.token_ids
    assert log[: len(before)] == before
    assert turn.stats.recomputed == 0 and turn.stats.prefilled <= turn.stats.delta
    assert turn.token_ids == without_cache(log[: len(log) - 4], 4)


def test_tenants_share_nothing():
    e = engine()
    send(e.open(tenant="A"), list(range(20, 50)))
    assert send(e.open(tenant="A"), list(range(20, 50))).stats.shared == 29
    assert send(e.open(tenant="B"), list(range(20, 50))).stats.shared == 0
    with pytest.raises(BadValue):
        e.open(tenant=None)


def test_without_a_prefix_cache_a_session_shares_with_its_forks_only():
    e = engine(prefix_cache=False)
    session = e.open()
    send(session, list(range(20, 50)))
    assert send(e.open(), list(range(20, 50))).stats.shared == 0
    assert send(session.fork(), [7]).stats.recomputed == 0


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_pool_a_quarter_of_the_working_set_serves_all_sessions(prefix_cache):
    """Each session takes its turn after seven others. No turn is refused and outputs stay the same, at a price."""

    def serve(num_pages):
        e = engine(num_pages=num_pages, prefix_cache=prefix_cache)
        sessions, outputs, recomputed = [e.open() for _ in range(8)], [], []
        for turn in range(5):
            for number, session in enumerate(sessions):
                answer = send(session, [30 + number, 50 + turn] * 8, count=6)
                e.check()
                outputs.append(answer.token_ids)
                recomputed.append(answer.stats.recomputed)
                assert answer.stats.prefilled == answer.stats.delta + answer.stats.recomputed - answer.stats.shared
        return outputs, sum(recomputed), sum(-(-session.resident // 4) for session in sessions)

    plenty, nothing_lost, working_set = serve(num_pages=300)
    scarce, lost, _ = serve(num_pages=working_set // 4)
    assert scarce == plenty and nothing_lost == 0 and lost > 500


def test_the_first_page_evicted_is_the_last_of_the_session_that_has_been_idle_longest():
    e = engine()
    sessions = [e.open() for _ in range(3)]
    for number, session in enumerate(sessions):
        send(session, [30 + number] * 15, count=2)  # 16 tokens with K/V: four pages
    e.cache.make_room(2)
    assert [session.resident for session in sessions] == [8, 16, 16]
    stats = send(sessions[0], [9]).stats
    assert (stats.recomputed, stats.prefilled) == (8, 10)


@given(turns=st.lists(st.tuples(IDS, st.integers(1, 9), SAMPLINGS), min_size=1, max_size=4))
def test_stateless_prefix_reuse_has_the_same_output_and_computes_its_tail_again(turns):
    ours, theirs = engine().open(), engine(PrefixReuseEngine).open()
    for ids, limit, sampling in turns:
        options = {"token_ids": ids, "max_new_tokens": limit, "sampling": sampling}
        stateful, stateless = ours.send(**options), theirs.send(**options)
        theirs.engine.check()
        assert stateless.token_ids == stateful.token_ids
        assert stateless.stats.recomputed == stateless.stats.context % 4, "whole pages are found, and no more"
    assert ours.token_ids == theirs.token_ids


def test_stateless_prefix_reuse_loses_what_text_does_not_give_back():
    """Half a character decodes to a replacement character, and the client sends that back as text."""
    text = engine().tokenizer.encode("torn: ")
    deltas = {}
    for cls in (Engine, PrefixReuseEngine):
        session = engine(cls).open(SYSTEM)
        session.send("hi", replay="a whole answer, in text")
        assert session.send("and?", replay=[*text, 3 + 0x94, 2]).stats.recomputed < 4
        mark, before = session.mark(), session.token_ids
        turn = session.send("so?", max_new_tokens=2)
        session.engine.check()
        deltas[cls] = turn.stats.delta
        assert (session.token_ids[: len(before)] == before) == (cls is Engine)
    assert deltas[PrefixReuseEngine] > deltas[Engine]
    with pytest.raises(ValueError, match="no mark of this session"):
        session.rollback(mark)
