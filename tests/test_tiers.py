"""Tiers below the pool: what is evicted comes back, the same to the bit, or is computed; it survives the process."""

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FLAT, engine

from minstate import BadValue, BrokenInvariant, OutOfPages, Sampling, Speculation, disk_store
from minstate.lab.engines.baselines import NaiveEngine
from minstate.lab.engines.faults import faults
from minstate.paged_kv import KVPool
from minstate.tiers import Tiers

FREE = Sampling(ignore_eos=True)
PAGE_FILE = 4096  # bytes that a page of the tiny model takes on the disk, at most


def send(session, ids, count=3):
    return session.send(token_ids=ids, max_new_tokens=count, sampling=FREE)


def evict_all(e):
    e.cache.make_room(e.pool.allocator.num_pages)
    assert e.pool.allocator.num_free == e.pool.allocator.num_pages
    e.check()


@pytest.fixture(params=["host", "disk", "both"])
def tiers(request, tmp_path):
    disk = {"disk": tmp_path / "pages", "disk_bytes": 200 * PAGE_FILE}
    return {"host": {"host_tokens": 200}, "disk": disk, "both": {"host_tokens": 8, **disk}}[request.param]


def test_evicted_pages_come_back_and_all_counts_stay_exact(tiers):
    e, prompt = engine(**tiers), list(range(20, 61))
    session = e.open()
    send(session, prompt)
    log = session.token_ids
    evict_all(e)
    turn = send(session, [7, 8])
    whole = (len(log) - 1) // 4 * 4  # whole pages; the tail is computed again
    assert turn.stats.promoted == turn.stats.reused == whole and turn.stats.promoted_s > 0
    assert turn.stats.recomputed == len(log) - 1 - whole < 4
    assert turn.stats.prefilled == turn.stats.delta + turn.stats.recomputed - turn.stats.shared
    assert turn.stats.prefilled == len(log) + 2 - whole
    assert turn.token_ids == send(engine(NaiveEngine).open(), [*log, 7, 8]).token_ids
    e.check()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 12), st.booleans()), min_size=4, max_size=25), st.data())
def test_whatever_is_evicted_tokens_are_those_of_the_naive_engine(tmp_path_factory, turns, data):
    host, slots = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 40))
    folder = tmp_path_factory.mktemp("tier")
    e = engine(num_pages=24, host_tokens=host, disk=folder, disk_bytes=slots * PAGE_FILE)
    naive, sessions = engine(NaiveEngine), [e.open(tenant=f"tenant {i % 2}") for i in range(5)]
    for number, (who, count, hint) in enumerate(turns):
        if len(sessions[who].token_ids) > 60:
            sessions[who].close()
            sessions[who] = e.open(tenant=f"tenant {who % 2}")
        ids = [20 + (number // 3 + i) % 5 for i in range(count)]
        log = sessions[who].token_ids
        assert send(sessions[who], ids).token_ids == send(naive.open(), [*log, *ids]).token_ids
        if hint:
            sessions[who].expect(5.0)
        e.check()
    assert len(list(folder.glob("*.page"))) <= slots


def test_what_costs_less_to_compute_is_computed_and_the_timeline_says_so():
    slow = Speculation(replace(FLAT, host_bytes_per_s=1.0))
    e = engine(host_tokens=200, speculation=slow)
    session = e.open()
    send(session, list(range(20, 61)))
    evict_all(e)
    turn = send(session, [7])
    assert turn.stats.promoted == 0 and turn.stats.recomputed == 43
    assert [(event.what, event.tokens) for event in e.scheduler.timeline if event.what == "compute"] == [
        ("compute", 40)
    ]


def test_of_each_tier_the_least_recently_used_goes_first_and_a_hint_counts_as_a_use(tmp_path):
    e = engine(host_tokens=32, disk=tmp_path / "d", disk_bytes=8 * PAGE_FILE)
    host, disk = e.cache.tiers.tiers
    sessions = [e.open(), e.open(), e.open()]
    for start, session in zip((20, 60, 100), sessions, strict=True):
        send(session, list(range(start, start + 15)))  # four whole pages each
    evict_all(e)
    assert (len(host.used), len(disk.used)) == (8, 4)
    sessions[1].expect(5.0)
    other = e.open()
    send(other, list(range(140, 155)))
    evict_all(e)
    assert send(sessions[1], [7]).stats.promoted == 16, "it was expected, so that of the other two one went to the disk"
    e.check()


def test_tenants_find_only_their_own_pages(tiers):
    e, prompt = engine(**tiers), list(range(20, 61))
    send(e.open(tenant="one"), prompt)
    evict_all(e)
    assert send(e.open(tenant="two"), prompt).stats.promoted == 0
    assert send(e.open(tenant="one"), prompt).stats.promoted == 40


def restarted(folder, **settings):
    return engine(disk=folder, disk_bytes=200 * PAGE_FILE, **settings)


@pytest.fixture
def folder(tmp_path):
    """A disk tier with two sessions of a common beginning, left by an engine that is gone."""
    e = restarted(tmp_path / "d", host_tokens=12)
    for end in ([7] * 5, [8] * 5):
        send(e.open(), [*range(20, 61), *end])
    e.flush()
    return tmp_path / "d"


def test_after_a_restart_the_whole_prefix_cache_is_there(folder):
    e = restarted(folder)
    first = send(e.open(), [*range(20, 61), *[7] * 5])
    assert (first.stats.promoted, first.stats.prefilled) == (44, 2)
    assert send(e.open(), [*range(20, 61), *[8] * 5]).stats.reused == 44
    assert first.token_ids == send(engine().open(), [*range(20, 61), *[7] * 5]).token_ids
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    e.check()


def test_after_a_restart_tenants_find_only_their_own_pages(folder):
    e = restarted(folder)
    assert send(e.open(tenant="another"), [*range(20, 61), *[7] * 5]).stats.promoted == 0
    assert send(e.open(), [*range(20, 61), *[7] * 5]).stats.promoted == 44


def test_a_folder_of_another_model_dtype_or_layout_is_refused(folder):
    for settings in ({"family": "qwen2"}, {"page_size": 8}):
        with pytest.raises(BadValue, match="another model, dtype or layout"):
            restarted(folder, **settings)
    pool = KVPool(num_layers=2, num_kv_heads=2, head_dim=8, num_pages=64, page_size=4, dtype=torch.float32)
    with pytest.raises(BadValue, match="another model, dtype or layout"):
        Tiers(pool).add_disk(folder, 200 * PAGE_FILE, restarted(folder).model.fingerprint)
    with pytest.raises(BadValue, match="disk_bytes"):
        engine(disk=folder, disk_bytes=10)


DAMAGE = {
    "one bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "another signature": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_page_is_absent(folder, damage, early):
    """Whether it is damaged before the engine opens the folder, or while the engine counts on it."""
    e = None if early else restarted(folder)
    for path in folder.glob("*.page"):
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    e = e or restarted(folder)
    turn = send(e.open(), [*range(20, 61), *[7] * 5])
    assert turn.stats.promoted == 0 and turn.stats.prefilled == 46
    assert turn.token_ids == send(engine().open(), [*range(20, 61), *[7] * 5]).token_ids
    e.check()


def test_a_page_under_the_name_of_another_is_absent(folder):
    one, two = sorted(folder.glob("*.page"))[:2]
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    e = restarted(folder)
    for end in ([7] * 5, [8] * 5):
        turn = send(e.open(), [*range(20, 61), *end])
        assert turn.token_ids == send(engine().open(), [*range(20, 61), *end]).token_ids


def test_where_the_disk_is_full_pages_are_lost_and_no_turn_fails(tmp_path):
    e = restarted(tmp_path / "d")
    session = e.open()
    with faults(e, lambda seam: seam == "disk") as injected:
        send(session, list(range(20, 61)))
        evict_all(e)
        turn = send(session, [7])
    assert injected["disk"] and turn.stats.promoted == 0 and not list((tmp_path / "d").glob("*.*"))
    e.check()


def test_a_smaller_bound_drops_what_was_used_first(folder):
    assert len(list(folder.glob("*.page"))) == 14
    e = engine(disk=folder, disk_bytes=5 * PAGE_FILE)
    assert len(list(folder.glob("*.page"))) == 5 == len(e.cache.tiers.tiers[0].used)
    e.check()


def test_the_pages_of_the_next_waiting_turn_are_read_while_another_turn_runs(folder, monkeypatch):
    e, begun = restarted(folder, num_pages=16), []

    def submit(function, *args):
        begun.append(args)
        return original(function, *args)

    original = disk_store.submit
    monkeypatch.setattr(disk_store, "submit", submit)
    running = e.submit(e.open(), token_ids=[5] * 40, max_new_tokens=9, sampling=FREE)
    waiting = e.submit(e.open(), token_ids=[*range(20, 61), *[7] * 5], max_new_tokens=2, sampling=FREE)
    assert len(begun) == 11 and e.scheduler.waiting == [waiting]
    e.step()
    assert len(begun) == 11, "they are read once"
    store = e.cache.tiers.tiers[-1].store
    monkeypatch.setattr(store, "_read", None)  # whoever reads again, fails
    e.run()
    assert running.turn and waiting.turn.stats.promoted == 44 and not store._ahead
    assert waiting.turn.token_ids == send(engine().open(), [*range(20, 61), *[7] * 5], 2).token_ids
    e.check()


def test_what_was_read_ahead_for_a_turn_that_is_given_up_is_not_kept_for_ever(folder):
    e = restarted(folder, num_pages=16)
    e.submit(e.open(), token_ids=[5] * 40, max_new_tokens=9, sampling=FREE)
    waiting = e.submit(e.open(), token_ids=[*range(20, 61), *[7] * 5], max_new_tokens=2, sampling=FREE)
    store = e.cache.tiers.tiers[-1].store
    assert len(store._ahead) == 11
    waiting.abort()
    other = e.submit(e.open(), token_ids=[*range(20, 61), *[8] * 5], max_new_tokens=2, sampling=FREE)
    assert len(store._ahead) == 11
    e.run()
    assert other.turn.stats.promoted == 44 and not store._ahead
    e.check()


def test_check_finds_a_wrong_count():
    e = engine(host_tokens=40)
    send(e.open(), list(range(20, 61)))
    evict_all(e)
    e.cache.tiers.tiers[0].used.remove(e.cache.tiers.tiers[0].used.first())
    with pytest.raises(BrokenInvariant, match="HostStore"):
        e.check()


def test_promotion_ends_where_the_pool_does():
    e = engine(num_pages=12, host_tokens=200)
    session = e.open()
    send(session, list(range(20, 61)))
    with pytest.raises(OutOfPages):
        send(session, [7] * 30)
    other = e.open()
    send(other, list(range(80, 121)))
    turn = send(session, [7])
    assert 0 < turn.stats.promoted < 44 and turn.stats.reused >= turn.stats.promoted
    e.check()


WRITER = """
import sys
from tiny import engine
from minstate import Sampling
e = engine(num_pages=24, disk=sys.argv[1], disk_bytes=400 * 4096)
print("ready", flush=True)
number = 0
while True:
    number += 1
    with e.open() as session:
        session.send(token_ids=[20 + number % 50] * 50, max_new_tokens=2, sampling=Sampling(ignore_eos=True))
"""


@pytest.mark.parametrize("after_s", [0.05, 0.31, 0.77])
def test_what_a_killed_process_has_left_is_right_or_absent(tmp_path, after_s):
    here = Path(__file__).resolve().parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    run = [sys.executable, "-c", WRITER, tmp_path / "d"]
    process = subprocess.Popen(run, env=env, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(after_s)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    (tmp_path / "d" / "half.page.1.writing").write_bytes(b"half")
    e = engine(num_pages=24, disk=tmp_path / "d", disk_bytes=400 * PAGE_FILE)
    assert not list((tmp_path / "d").glob("*.writing"))
    for token in range(20, 30):
        expected = send(engine().open(), [token] * 50, 2).token_ids
        assert send(e.open(), [token] * 50, 2).token_ids == expected
        e.check()
