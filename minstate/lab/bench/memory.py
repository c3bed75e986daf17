"""What a small pool costs, with and without tiers below it; a restart; and how many sessions fit into a gigabyte."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from random import Random
from time import perf_counter

import pandas as pd
import torch

from minstate.engine import Engine
from minstate.lab.machines.tier_timing import drop_cached_files, scratch_folder, tier_bytes_per_s
from minstate.lab.measure import turn_row
from minstate.lab.paths import source_text
from minstate.lab.traces.replay import replay
from minstate.lab.traces.scripted_trace import scripted_trace
from minstate.lab.traces.trace import TraceTurn
from minstate.sampling import Sampling

PAGE_SIZE, AMPLE = 16, 4096  # tokens, pages
TIERS = ("none", "host", "8 bits", "disk")  # below the pool; or none, and K/V in 8 bits
FORMATS = ("float32", "bfloat16", "int8")  # of K/V
LONG, SHORT = 7000, 1000  # tokens of a session
ONE = {"max_new_tokens": 1, "sampling": Sampling(ignore_eos=True)}


def memory(workload: str = "pressure", dtype: str = "float32", **settings: str) -> pd.DataFrame:
    """The table of `pressure`, or of `restart`: `python -m minstate.lab.bench memory workload=restart`."""
    engine = Engine.from_pretrained(dtype=dtype, num_pages=1)
    table = {"pressure": pressure, "restart": restart}[workload](engine, **settings)
    table.attrs["sessions per GB"] = sessions_per_gb(engine)
    return table


def pressure(like: Engine, agents: str = "9", turns: str = "2", shares: str = "1/4 1/8") -> pd.DataFrame:
    """A row for each pool and tier: coding agents take turns in a random order, one turn at a time.

    A share is that of the working set: of all pages that are in use at the end if none has to be evicted. Each agent is
    a tenant of its own, so nothing is shared. The engine speculates, and outputs are replayed. The first turn of each
    agent is not measured: every engine adopts the sessions as they are after it. `of ample` compares the turn rate with
    that of a pool which never evicts. A pool in 8 bits has as many bytes as the one in float32, so it has more pages.
    """
    traces = [scripted_trace("coding", seed).turns[: 1 + int(turns)] for seed in range(int(agents))]
    adopted = list(_first_turns(like, int(agents)))
    rows, working_set, ample_s = [], AMPLE, 0.0
    for _ in take_turns(_engine(like, AMPLE, speculation=True), adopted[:2], traces[:2]):
        pass  # to warm up
    for share in (None, *map(Fraction, shares.split())):
        for tier in TIERS if share == Fraction(1, 4) else TIERS[:2] if share else TIERS[:1]:
            pages = int(share * working_set) if share else AMPLE
            with scratch_folder() as folder:
                below = {"host": {"host_tokens": working_set * PAGE_SIZE}, "disk": {"disk": folder}}
                if tier == "8 bits":
                    below[tier], wide = {"kv_dtype": "int8"}, like.model.config.kv_bytes_per_token(like.model.dtype)
                    pages = pages * wide // like.model.config.kv_bytes_per_token(torch.int8)
                engine = _engine(like, pages, speculation=True, **below.get(tier, {}))
                costs = pd.DataFrame(take_turns(engine, adopted, traces))
            if share is None:
                working_set, ample_s = pages - engine.pool.allocator.num_free, costs["total_s"].sum()
            rows.append({"pool": str(share or "ample"), "tier": tier, "pages": pages, **_summary(costs, ample_s)})
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1))
    table = pd.DataFrame(rows).set_index(["pool", "tier"])
    table.attrs["working set, pages"] = working_set
    return table


def _first_turns(like: Engine, agents: int) -> Iterator[bytes]:
    """Each agent's session after its first turn, as bytes."""
    for seed in range(agents):
        engine, sessions = _engine(like, AMPLE), {}
        for _ in replay(engine, scripted_trace("coding", seed), sessions=sessions):
            yield engine.export(sessions["main"])
            break


def take_turns(engine: Engine, adopted: Iterable[bytes], traces: Sequence[Sequence[TraceTurn]]) -> Iterator[dict]:
    """All turns of the traces but the first, in an order that is the same in every run. No session is closed before."""
    sessions = [engine.adopt(data, f"agent {number}", convert=True) for number, data in enumerate(adopted)]
    due = [iter(trace[1:]) for trace in traces]
    order = [number for number, trace in enumerate(traces) for _ in trace[1:]]
    Random("order").shuffle(order)
    for number in order:
        record = next(due[number])
        yield turn_row(sessions[number].send(list(record.messages), replay=record.output))
    engine.check()


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


def restart(like: Engine, tokens: str = str(LONG)) -> pd.DataFrame:
    """Seconds to the first token of a long session that an engine has never seen: computed, from disk, from an export.

    The second and the third engine have what the first has flushed to a folder, or exported. The files are read from
    the disk, not from the operating system's memory of files, where that can be asked for.
    """
    prompt, pages = like.tokenizer.encode(source_text())[: int(tokens)], int(tokens) // PAGE_SIZE + 64
    with scratch_folder() as folder:
        engine = _engine(like, pages, disk=folder)
        session = engine.open()
        computed = session.send(token_ids=prompt, **ONE)
        flush_s, _ = _timed(engine.flush)
        export_s, data = _timed(lambda: engine.export(session))
        drop_cached_files(folder)
        open_s, restarted = _timed(lambda: _engine(like, pages, disk=folder))
        from_disk = restarted.open().send(token_ids=prompt, **ONE)
    adopt_s, adopted = _timed(lambda: _engine(like, pages).adopt(data))
    moved = adopted.send(token_ids=[5], **ONE)
    assert from_disk.token_ids == computed.token_ids, "from disk another token follows"
    assert moved.token_ids == session.send(token_ids=[5], **ONE).token_ids, "from an export another token follows"
    rows = [
        ("nothing", 0.0, 0.0, computed.stats),
        ("disk", flush_s, open_s, from_disk.stats),
        ("export", export_s, adopt_s, moved.stats),
    ]
    columns = ["from", "tokens", "prefilled", "written s", "opened s", "first token s"]
    table = pd.DataFrame(
        [(source, int(tokens), stats.prefilled, *taken, stats.ttft_s) for source, *taken, stats in rows],
        columns=columns,
    ).set_index("from")
    table["times faster"] = computed.stats.ttft_s / (table["opened s"] + table["first token s"])
    table.attrs["bytes a second"] = {name: round(rate) for name, rate in tier_bytes_per_s(like).items()}
    return table


def _timed(call) -> tuple[float, object]:
    start_s = perf_counter()
    result = call()
    return perf_counter() - start_s, result


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
