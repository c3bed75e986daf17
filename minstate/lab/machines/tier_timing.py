"""Time how fast pages of K/V come back into the pool from the tiers below it."""

import math
import os
import tempfile
from pathlib import Path
from statistics import median

from minstate.engine import Engine
from minstate.lab.paths import OUT, source_text
from minstate.sampling import Sampling

TOKENS = 1024  # that are moved at once


def tier_bytes_per_s(engine: Engine, rounds: int = 5) -> dict[str, float]:
    """Bytes a second from host memory and from a disk, by the names that `CostTable` has for them: medians.

    Each round evicts a session of `TOKENS` tokens, and then takes a turn of it, which promotes them. So the rates
    include all that a promotion does: looking pages up, checking their signatures, and copying them into the pool. The
    disk's pages are first dropped from the operating system's cache of files, where this is possible.
    """
    with scratch_folder() as folder:
        host, disk = {"host_tokens": 2 * TOKENS}, {"disk": folder}
        return {
            "host_bytes_per_s": _bytes_per_s(engine, rounds, **host),
            "disk_bytes_per_s": _bytes_per_s(engine, rounds, **disk),
        }


def _bytes_per_s(like: Engine, rounds: int, **tier) -> float:
    size = like.pool.page_size
    engine = Engine(like.model, like.tokenizer, page_size=size, num_pages=2 * TOKENS // size, **tier)
    (only,) = engine.cache.tiers.tiers
    only.bytes_per_s = math.inf  # or slow pages would be computed
    options = {"max_new_tokens": 1, "sampling": Sampling(ignore_eos=True)}
    rates = []
    with engine.open() as session:
        session.send(token_ids=engine.tokenizer.encode(source_text())[:TOKENS], **options)
        for _ in range(rounds):
            engine.cache.make_room(engine.pool.allocator.num_pages)
            drop_cached_files(tier.get("disk"))
            stats = session.send(token_ids=[5], **options).stats
            assert stats.promoted >= TOKENS - size, "pages got lost on the way"
            rates.append(stats.promoted / size * engine.pool.bytes_per_page / stats.promoted_s)
    return median(rates)


def scratch_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder on the disk: where those of the operating system are may be memory."""
    OUT.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="minstate-", dir=OUT)


def drop_cached_files(folder: str | Path | None) -> None:
    """Ask the operating system to read a folder's pages from the disk next time, and not from its memory."""
    for path in Path(folder).glob("*.page") if folder and hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet stays in memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
