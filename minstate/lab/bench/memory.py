"""What a small pool costs, with and without tiers below it; a restart; and how many sessions fit into a gigabyte."""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from random import Random
from time import perf_counter

import pandas as pd
import torch

from minstate.engine import Engine
from minstate.lab.machines.tier_timing import drop_cached_files, tier_bytes_per_s
from minstate.lab.measure import turn_row
from minstate.lab.paths import source_text
from minstate.lab.traces.replay import replay
from minstate.lab.traces.scripted_trace import scripted_trace
from minstate.sampling import Sampling

PAGE_SIZE, AMPLE = 16, 4096  # tokens, pages
FORMATS = ("float32", "bfloat16")  # of K/V
LONG, SHORT = 7000, 1000  # tokens of a session
ONE = {"max_new_tokens": 1, "sampling": Sampling(ignore_eos=True)}


def memory(agents: str = "10", turns: str = "3", shares: str = "1/2 1/4 1/8", dtype: str = "float32") -> pd.DataFrame:
    """A row for each pool and tier: coding agents take turns in random order, one turn at a time, the outputs replayed.

    A share is that of the working set: of all pages that are in use at the end if none has to be evicted. Each agent is
    a tenant of its own, so that nothing is shared, and speculates. `of ample` is the turn rate as a share of that of a
    pool which never evicts.
    """
    first = Engine.from_pretrained(dtype=dtype, num_pages=1)
    restarted = pd.DataFrame(restart(first))
    print(restarted.round(3).to_string(index=False))
    rows, working_set, ample = [], AMPLE, 0.0
    for share in (None, *map(Fraction, shares.split())):
        for tier in ("none", "host", "disk") if share == Fraction(1, 4) else ("none", "host") if share else ("none",):
            pages = int(share * working_set) if share else AMPLE
            with tempfile.TemporaryDirectory(prefix="minstate-", dir=Path.cwd()) as folder:
                settings = {"none": {}, "host": {"host_tokens": working_set * PAGE_SIZE}, "disk": {"disk": folder}}[
                    tier
                ]
                engine = _engine(first, pages, speculation=True, **settings)
                costs = pd.DataFrame(take_turns(engine, int(agents), int(turns)))
            if share is None:
                working_set, ample = (
                    engine.pool.allocator.num_pages - engine.pool.allocator.num_free,
                    costs.total_s.sum(),
                )
            rows.append({"pool": str(share or "ample"), "tier": tier, "pages": pages, **_summary(costs, ample)})
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1))
    table = pd.DataFrame(rows).set_index(["pool", "tier"])
    table.attrs = {
        "working set, pages": working_set,
        "rates": {name: round(rate) for name, rate in tier_bytes_per_s(first).items()},
        "restart": restarted.round(3).to_dict("records"),
        "sessions per GB": sessions_per_gb(first),
    }
    return table


def take_turns(engine: Engine, agents: int, turns: int) -> Iterator[dict]:
    """The turns of the agents in an order that is the same in every run. All sessions stay open until the last turn."""
    played = [
        islice(replay(engine, scripted_trace("coding", seed), tenant=f"agent {seed}"), turns) for seed in range(agents)
    ]
    order = [agent for agent in range(agents) for _ in range(turns)]
    Random("order").shuffle(order)
    for agent in order:
        _, turn = next(played[agent])
        yield turn_row(turn)


def _summary(costs: pd.DataFrame, ample_s: float) -> dict:
    total_s = costs["total_s"].sum()
    return {
        "turns": len(costs),
        "hit rate": 1 - costs["recomputed"].sum() / costs["context"].sum(),
        "recomputed": int(costs["recomputed"].sum()),
        "promoted": int(costs["promoted"].sum()),
        "promoted s": costs["promoted_s"].sum(),
        "total s": total_s,
        "turns a minute": 60 * len(costs) / total_s,
        "of ample": ample_s / total_s,
    }


def restart(like: Engine, tokens: int = LONG) -> list[dict]:
    """Seconds to the first token of a long session that an engine has never seen: computed, from disk, from an export.

    The second and the third engine have what the first has flushed to a folder, or exported. The files are read from
    the disk, not from the operating system's memory of files, where that can be asked for.
    """
    prompt, pages = like.tokenizer.encode(source_text())[:tokens], tokens // PAGE_SIZE + 64
    with tempfile.TemporaryDirectory(prefix="minstate-", dir=Path.cwd()) as folder:
        engine = _engine(like, pages, disk=folder)
        session = engine.open()
        computed = session.send(token_ids=prompt, **ONE)
        start_s = perf_counter()
        engine.flush()
        flush_s = perf_counter() - start_s
        data = engine.export(session)
        export_s = perf_counter() - start_s - flush_s
        drop_cached_files(folder)
        start_s = perf_counter()
        other = _engine(like, pages, disk=folder)
        open_s = perf_counter() - start_s
        from_disk = other.open().send(token_ids=prompt, **ONE)
        del other
    start_s = perf_counter()
    adopted = _engine(like, pages).adopt(data)
    adopt_s = perf_counter() - start_s
    moved = adopted.send(token_ids=[5], **ONE)
    assert from_disk.token_ids == computed.token_ids and moved.token_ids == session.send(token_ids=[5], **ONE).token_ids
    return [
        {
            "from": "nothing",
            "tokens": tokens,
            "prefilled": computed.stats.prefilled,
            "first token s": computed.stats.ttft_s,
        },
        {
            "from": "disk",
            "tokens": tokens,
            "prefilled": from_disk.stats.prefilled,
            "first token s": open_s + from_disk.stats.ttft_s,
            "before s": flush_s,
        },
        {
            "from": "export",
            "tokens": tokens,
            "prefilled": moved.stats.prefilled,
            "first token s": adopt_s + moved.stats.ttft_s,
            "before s": export_s,
        },
    ]


def sessions_per_gb(engine: Engine) -> list[dict]:
    """How many sessions a gigabyte of K/V holds, by the format of K/V and the length of a session."""
    each = {name: engine.model.config.kv_bytes_per_token(getattr(torch, name)) for name in FORMATS}
    return [
        {"format": name, "bytes a token": size, **{f"of {n:,} tokens": int(1e9 // (size * n)) for n in (SHORT, LONG)}}
        for name, size in each.items()
    ]


def _engine(like: Engine, num_pages: int, **settings) -> Engine:
    return Engine(
        like.model, like.tokenizer, eos_ids=like.eos_ids, page_size=PAGE_SIZE, num_pages=num_pages, **settings
    )
