"""Pages: who owns them, that nothing is lost, that nobody writes into another's."""

from contextlib import suppress

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from minstate import BadValue, BrokenInvariant, OutOfPages
from minstate.paged_kv import KVPool, PageAllocator, PageTable, page_runs


def small_pool(num_pages=12, page_size=3) -> KVPool:
    return KVPool(num_layers=2, num_kv_heads=1, head_dim=1, num_pages=num_pages, page_size=page_size)


class PageTables(RuleBasedStateMachine):
    """Tables over one small pool, against plain lists of what each should read back."""

    @initialize(page_size=st.integers(1, 5), num_pages=st.integers(1, 14))
    def start(self, page_size, num_pages):
        self.pool = small_pool(num_pages, page_size)
        self.pool.kv.fill_(-1.0)
        self.tables: list[tuple[PageTable, list[float]]] = [(PageTable(self.pool), [])]
        self.written = 0

    def pick(self, data) -> tuple[PageTable, list[float]]:
        return data.draw(st.sampled_from(self.tables))

    @rule(data=st.data(), count=st.integers(0, 12))
    def append(self, data, count):
        table, content = self.pick(data)
        needed, free = table.pages_needed(count), self.pool.allocator.num_free
        before = (list(table.pages), table.length)
        try:
            slots = table.append(count)
        except OutOfPages:
            assert needed > free
            assert (table.pages, table.length) == before and self.pool.allocator.num_free == free
            return
        assert self.pool.allocator.num_free == free - needed
        values = [float(self.written + i) for i in range(count)]
        self.written += count
        self.pool.kv[:, :, :, slots] = torch.tensor(values)[:, None]
        table.commit()
        content += values

    @rule(data=st.data(), count=st.integers(0, 12))
    def append_in_vain(self, data, count):
        """A forward pass that fails has slots, and writes nothing that counts."""
        table, _ = self.pick(data)
        length, owned = table.length, len(table.own_pages)
        with suppress(OutOfPages):
            table.append(count)
            assert (table.length, table.reserved) == (length, length + count)
        table.truncate(table.length)
        assert (table.length, table.reserved, len(table.own_pages)) == (length, length, owned)

    @rule(data=st.data(), share=st.floats(0, 1))
    def truncate(self, data, share):
        table, content = self.pick(data)
        length = round(share * table.length)
        table.truncate(length)
        del content[length:]

    @rule(data=st.data())
    def fork(self, data):
        table, content = self.pick(data)
        if len(self.tables) < 5:
            free = self.pool.allocator.num_free
            self.tables.append((table.fork(), list(content)))
            assert self.pool.allocator.num_free == free, "a fork copies metadata only"

    @invariant()
    def bookkeeping_adds_up(self):
        for table, _ in self.tables:
            table.check()
        self.pool.allocator.check(table.pages for table, _ in self.tables)

    @invariant()
    def every_table_reads_what_was_written_into_it(self):
        size = self.pool.page_size
        for table, content in self.tables:
            slots = [table.pages[i // size] * size + i % size for i in range(table.length)]
            for layer_and_kind in self.pool.kv.flatten(0, 2)[..., 0]:
                assert layer_and_kind[slots].tolist() == content

    def teardown(self):
        for table, _ in self.tables:
            table.truncate(0)
        assert self.pool.allocator.num_free == self.pool.allocator.num_pages


TestPageTables = PageTables.TestCase
TestPageTables.settings = settings(stateful_step_count=40)


def test_a_sequence_that_grows_stays_in_one_run():
    pool = small_pool(num_pages=64)
    tables = [PageTable(pool) for _ in range(4)]
    for _ in range(8):  # four agents take turns
        for table in tables:
            table.append(5)
            table.commit()
    assert [len(page_runs(table.pages)) for table in tables] == [1, 1, 1, 1]


def test_a_fragmented_pool_is_used_to_the_last_page():
    allocator = PageAllocator(8)
    allocator.allocate(8)
    allocator.release([1, 3, 4, 6])
    assert sorted(allocator.allocate(4)) == [1, 3, 4, 6]
    with pytest.raises(OutOfPages, match="1 more KV pages needed, 0 of 8"):
        allocator.allocate(1)


def test_a_copy_on_write_leaves_the_other_owner_room_to_grow():
    pool = small_pool(num_pages=32)
    parent = PageTable(pool)
    parent.append(4)
    parent.commit()
    child = parent.fork()
    child.append(8)
    parent.append(8)
    assert len(page_runs(parent.pages)) == 1 and len(page_runs(child.pages)) == 2


def test_negative_counts_are_refused():
    table = PageTable(small_pool())
    table.append(9)
    table.commit()
    for nonsense in (lambda: table.append(-5), lambda: table.pool.allocator.allocate(-1)):
        with pytest.raises(BadValue):
            nonsense()
    table.check()
    table.pool.allocator.check([table.pages])


def test_the_last_owner_frees_a_page():
    allocator = PageAllocator(2)
    (page,) = allocator.allocate(1)
    allocator.share([page])
    allocator.release([page])
    assert allocator.num_free == 1
    allocator.release([page])
    assert allocator.num_free == 2


def test_writing_into_a_shared_page_copies_it_and_only_it():
    pool = small_pool()
    parent = PageTable(pool)
    pool.kv[:, :, :, parent.append(4)] = 1.0
    child = parent.fork()
    (slot,) = child.append(1)
    pool.kv[:, :, :, slot] = 2.0
    assert child.pages[0] == parent.pages[0] and child.pages[1] != parent.pages[1]
    assert pool.kv[0, 0, 0, child.pages[1] * 3].item() == 1.0, "the copy brings the page's content along"
    assert parent.append(1) == [parent.pages[1] * 3 + 1], "the page is the parent's alone again: no copy"


@pytest.mark.parametrize("damage", ["leak", "steal", "free twice"])
def test_check_finds_wrong_bookkeeping(damage):
    pool = small_pool()
    table = PageTable(pool)
    table.append(9)
    if damage == "leak":
        pool.allocator.allocate(1)
    elif damage == "steal":
        pool.allocator.owners[table.pages[0]] += 1
    else:
        pool.allocator._free[table.pages[0]] = 1
    with pytest.raises(BrokenInvariant):
        pool.allocator.check([table.pages])


def test_a_table_with_a_page_too_many_is_found():
    pool = small_pool()
    table = PageTable(pool)
    table.append(3)
    table.pages.append(7)
    with pytest.raises(BrokenInvariant):
        table.check()


@pytest.mark.parametrize("make", [lambda: PageAllocator(0), lambda: small_pool(page_size=0)])
def test_sizes_must_be_positive(make):
    with pytest.raises(BadValue):
        make()


def test_truncating_to_a_length_that_never_was_is_refused():
    table = PageTable(small_pool())
    table.append(2)
    for length in (-1, 3):
        with pytest.raises(BadValue):
            table.truncate(length)


def test_page_runs():
    assert page_runs([]) == []
    assert page_runs([3, 4, 5, 9, 8]) == [(3, 6), (9, 10), (8, 9)]
