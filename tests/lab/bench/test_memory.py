"""The benchmark of memory counts what a small pool loses, and what the tiers below it bring back."""

from tiny import engine

from minstate.lab.bench import memory
from minstate.lab.machines import tier_timing


def test_after_a_restart_all_whole_pages_come_back_and_the_same_tokens_follow(monkeypatch, tmp_path):
    monkeypatch.setattr(tier_timing, "OUT", tmp_path)
    monkeypatch.setattr(tier_timing, "TOKENS", 64)
    table = memory.restart(engine(), "200")
    assert table["prefilled"].to_dict() == {"nothing": 200, "disk": 8, "export": 2}
    assert set(table.attrs["bytes a second"]) == {"host_bytes_per_s", "disk_bytes_per_s"}
    assert not list(tmp_path.iterdir()), "its folders are gone"


def test_a_small_pool_computes_again_what_a_tier_below_it_brings_back(monkeypatch, tmp_path):
    monkeypatch.setattr(tier_timing, "OUT", tmp_path)
    monkeypatch.setattr(memory, "AMPLE", 8192)
    rows = memory.pressure(engine(positions=16384), agents="4", turns="1", shares="1/2")
    assert rows.loc[("ample", "none"), ["recomputed", "promoted"]].tolist() == [0, 0]
    assert rows.loc[("1/2", "none"), "recomputed"] > 0 == rows.loc[("1/2", "none"), "promoted"]
    assert rows.loc[("1/2", "host"), "promoted"] > 0
    assert rows.loc[("1/2", "host"), "recomputed"] < 16 * 4
