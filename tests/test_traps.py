"""Traps that well-known engines fell into, by name.

Each is a function that falls over if the trap is open. It is run as things are, and again with the fix undone by
`undo`, when it has to fail: so each of these tests is seen to fail for the reason that it names.
"""

from collections.abc import Callable

import pytest
from tiny import engine, model, tokenizer

from minstate import BrokenInvariant, Engine, NonFiniteLogits, OutOfPages, Sampling
from minstate.lab.engines.baselines import NaiveEngine, drop_kv
from minstate.paged_kv import PageTable
from minstate.prefix_cache import PrefixCache
from minstate.radix_node import Node, Place
from minstate.radix_tree import RadixTree

GREEDY = Sampling(ignore_eos=True)
PROMPT = list(range(10, 30))  # five pages of four
FAILURES = (
    AssertionError,
    BrokenInvariant,
    OutOfPages,
    ValueError,
    IndexError,
    RuntimeError,
    StopIteration,
    NonFiniteLogits,
)


def say(session, ids, count=3):
    return session.send(token_ids=ids, max_new_tokens=count, sampling=GREEDY)


def afresh(log, count=3):
    """What a model without memory says after `log`."""
    return say(engine(NaiveEngine, num_pages=99).open(), log, count).token_ids


def together(e: Engine, ids, count=3):
    """Two sessions whose turns go through the same steps."""
    handles = [e.submit(e.open(), token_ids=ids, max_new_tokens=count, sampling=GREEDY) for _ in range(2)]
    e.run()
    for handle in handles:
        if handle.error:
            raise handle.error
    return handles


def duplicates_freed_while_a_page_table_still_points_at_them():
    e = engine()
    handles = together(e, PROMPT, count=9)
    e.check()
    for handle in handles:
        assert handle.turn.token_ids == afresh(PROMPT, 9)
        assert say(handle.session, [40, 41]).token_ids == afresh([*PROMPT, *handle.turn.token_ids, 40, 41])


def free_without_adopting(monkeypatch):
    def publish(self, sequence):
        table = sequence.table
        full = table.pages[table.borrowed : sequence.kv_len // self.pool.page_size]
        if full:
            sequence.node, _, pages = self.tree.insert(sequence.node, sequence.log, full)
            self.pool.allocator.release(own for own, page in zip(full, pages, strict=True) if own != page)
            table.borrowed += len(full)  # but it goes on reading its own

    monkeypatch.setattr(PrefixCache, "publish", publish)


def two_sequences_that_compute_the_same_prefix_in_one_step():
    e = engine()
    first, second = together(e, PROMPT)
    e.check()
    assert (first.turn.stats.shared, second.turn.stats.shared) == (0, len(PROMPT) - 1), "the second waits for the first"
    assert first.session.sequence.table.pages[:5] == second.session.sequence.table.pages[:5], "and one copy stays"
    assert e.cache.tree.num_pages == 5


def keep_duplicates(monkeypatch):
    insert = RadixTree.insert

    def without_looking(self, node, log, pages):
        self.match = lambda node, log, stop: Place(node, node.end, [])
        try:
            return insert(self, node, log, pages)
        finally:
            del self.match

    monkeypatch.setattr(RadixTree, "insert", without_looking)


def a_full_hit_that_leaves_a_zero_length_query():
    e = engine()
    first = say(e.open(), PROMPT)
    again = say(e.open(), PROMPT)
    assert again.token_ids == first.token_ids
    assert again.stats.prefilled == 1, "the last token is forwarded, since its logits are wanted"


def match_to_the_very_end(monkeypatch):
    def borrow(self, sequence):
        table = sequence.table
        found = self.tree.match(sequence.node, sequence.log, len(sequence.log))
        if found.pages:
            sequence.node = self.tree.move_lock(sequence.node, found.node, found.at)
            table.borrow(found.pages)

    monkeypatch.setattr(PrefixCache, "_borrow_pages", borrow)


def a_stop_token_counted_as_cached_but_never_forwarded():
    """The token that ended the last turn has no K/V yet: the next turn forwards it."""
    e = engine(page_size=1)
    session = e.open()
    ended = session.send(token_ids=PROMPT, replay=[60, 61, 2])
    assert ended.token_ids[-1] == 2
    log = session.token_ids
    turn = say(session, [40])
    assert turn.stats.delta == 2 and turn.stats.prefilled == 2
    assert turn.token_ids == afresh([*log, 40])


def count_the_last_token_as_cached(monkeypatch):
    end = PrefixCache.end

    def too_much(self, sequence, length):
        if sequence.kv_len == length - 1:
            sequence.table.append(1)
        end(self, sequence, length)

    monkeypatch.setattr(PrefixCache, "end", too_much)
    monkeypatch.setattr(
        "minstate.sequence.Sequence.truncate", lambda self, length: self.log.__delitem__(slice(length, None))
    )


def an_aborted_turn_that_frees_the_sessions_history():
    e = engine()
    session = e.open()
    say(session, PROMPT)
    log = session.token_ids
    handle = e.submit(session, token_ids=[50] * 9, max_new_tokens=9, sampling=GREEDY)
    for _ in range(4):
        e.step()
    handle.abort()
    e.check()
    assert session.token_ids == log
    turn = say(session, [40])
    assert turn.stats.recomputed == 0 and turn.token_ids == afresh([*log, 40])


def free_everything_on_abort(monkeypatch):
    end = PrefixCache.end

    def clear(self, sequence, length):
        aborted = length < len(sequence.log)
        end(self, sequence, length)
        if aborted:
            drop_kv(self, sequence, sequence.root)
            self.make_room(10**6)

    monkeypatch.setattr(PrefixCache, "end", clear)


def idle_sessions_that_pin_the_pool():
    """Twelve sessions over a pool that holds three: each of them can take its turn."""
    e = engine(num_pages=24)
    sessions, logs = [e.open() for _ in range(12)], {}
    for turn in range(3):
        for number, session in enumerate(sessions):
            log = logs.setdefault(session, [])
            log += [30 + number] * 7
            answer = say(session, log[-7:])
            e.check()
            assert answer.token_ids == afresh(log)
            log += answer.token_ids
            assert turn == 0 or answer.stats.recomputed > 0
    tails = engine(num_pages=4)
    for number in range(9):  # conversations of less than a page have nothing in the tree
        say(tails.open(), [30 + number], count=2)
        tails.check()


def lock_idle_sessions(monkeypatch):
    monkeypatch.setattr(RadixTree, "next_victim", lambda self: None)
    monkeypatch.setattr(PrefixCache, "num_available", property(lambda self: self.pool.allocator.num_free))


def an_isolation_test_that_passes_because_nothing_ever_hits():
    e = engine()
    say(e.open(tenant="A"), PROMPT)
    assert say(e.open(tenant="A"), PROMPT).stats.shared > 0, "a hit within"
    assert say(e.open(tenant="B"), PROMPT).stats.shared == 0, "a miss across"


def never_hit(monkeypatch):
    monkeypatch.setattr(PrefixCache, "extend", lambda self, sequence: 0)
    monkeypatch.setattr(PrefixCache, "_borrow_pages", lambda self, sequence: None)


def always_hit(monkeypatch):
    root = RadixTree.root
    monkeypatch.setattr(RadixTree, "root", lambda self, tenant: root(self, "everybody"))


def an_allocation_that_evicts_the_page_it_was_about_to_copy():
    """The pool is full. The page whose beginning is wanted was used longest ago, so it would be the first to go."""
    e = engine(num_pages=8)
    first, second = e.open(), e.open()
    say(first, [10, 11, 12, 13], count=1)  # one page, the tree's
    say(second, [20] * 26, count=2)  # seven, six of them the tree's
    assert e.pool.allocator.num_free == 0 and e.cache.tree.next_victim() is first.sequence.node
    turn = say(e.open(), [10, 11, 12, 50], count=2)
    e.check()
    assert turn.stats.shared == 3, "others were evicted, the common prefix was copied"
    assert turn.token_ids == afresh([10, 11, 12, 50], 2)


def evict_before_looking(monkeypatch):
    copy_page_prefix = PrefixCache._copy_page_prefix

    def late(self, sequence):
        self.make_room(1 - self.pool.allocator.num_free)
        copy_page_prefix(self, sequence)

    monkeypatch.setattr(PrefixCache, "_copy_page_prefix", late)


def copy_what_was_evicted(monkeypatch):
    partial_match, before = RadixTree.partial_match, []

    def remembered(self, node, tokens):  # does not look again
        if before:
            return before.pop()
        if found := partial_match(self, node, tokens):
            before.append(found := found._replace(node=Node(None, 0, bytearray(), [], 0)))  # nor does it count as a use
        return found

    monkeypatch.setattr(RadixTree, "partial_match", remembered)


def an_abandoned_private_page_that_is_borrowed_and_written():
    """A rollback into the middle of a published page: what follows must not be written there."""
    e = engine()
    session = e.open()
    mark_at = say(session, PROMPT[:9], count=1) and session.mark()
    say(session, [50] * 8, count=3)
    other = session.fork()
    log = other.token_ids
    session.rollback(mark_at)
    say(session, [60] * 8)
    e.check()
    assert say(other, [40]).token_ids == afresh([*log, 40]), "the fork's history is untouched"


def write_into_borrowed_pages(monkeypatch):
    def truncate(self, length):
        keep = -(-length // self.pool.page_size)
        released = self.pages[max(keep, self.borrowed) :]
        del self.pages[keep:]
        self.borrowed = min(self.borrowed, length // self.pool.page_size)
        self.length = length
        self.pool.allocator.release(released)

    monkeypatch.setattr(PageTable, "truncate", truncate)
    monkeypatch.setattr(Engine, "check", lambda self: None)  # the outcome alone has to show it


TRAPS: list[tuple[Callable[[], None], list[Callable]]] = [
    (duplicates_freed_while_a_page_table_still_points_at_them, [free_without_adopting]),
    (two_sequences_that_compute_the_same_prefix_in_one_step, [keep_duplicates]),
    (a_full_hit_that_leaves_a_zero_length_query, [match_to_the_very_end]),
    (a_stop_token_counted_as_cached_but_never_forwarded, [count_the_last_token_as_cached]),
    (an_aborted_turn_that_frees_the_sessions_history, [free_everything_on_abort]),
    (idle_sessions_that_pin_the_pool, [lock_idle_sessions]),
    (an_isolation_test_that_passes_because_nothing_ever_hits, [never_hit, always_hit]),
    (an_allocation_that_evicts_the_page_it_was_about_to_copy, [evict_before_looking, copy_what_was_evicted]),
    (an_abandoned_private_page_that_is_borrowed_and_written, [write_into_borrowed_pages]),
]


@pytest.mark.parametrize("trap", [trap for trap, _ in TRAPS], ids=lambda trap: trap.__name__)
def test_no_trap_is_open(trap):
    trap()


@pytest.mark.parametrize(
    "trap, undo",
    [(trap, undo) for trap, undos in TRAPS for undo in undos],
    ids=lambda function: function.__name__,
)
def test_the_trap_is_seen_when_the_fix_is_undone(trap, undo, monkeypatch):
    model(), tokenizer()  # made before anything is patched
    undo(monkeypatch)
    with pytest.raises(FAILURES):
        trap()
