"""How much memory this process may still take, and what a KV pool takes of it by default."""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from minstate.errors import OutOfPages
from minstate.model_config import ModelConfig

POOL_TOKENS, POOL_SHARE, USEFUL_TOKENS = 65_536, 0.25, 2_048
# Where a container finds its own limit, what is used, and how much of that is only a cache of files: control groups of
# Linux, version 2 and version 1.
GROUPS = (
    ("", "max", "current", "inactive_file"),
    ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
)


def free_bytes(device: torch.device | str = "cpu", root: Path = Path("/")) -> float:
    """What a GPU has free, or what Linux and this container leave to a process; infinite if nothing says so.

    root  where `proc` and `sys` are
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_limits(root), default=math.inf)


def _limits(root: Path) -> Iterator[int]:
    with suppress(OSError):
        yield 1024 * _number(root / "proc/meminfo", "MemAvailable:")
    for folder, limit, used, cached in GROUPS:
        with suppress(OSError, ValueError):  # not there, or the limit is "max"
            at = root / "sys/fs/cgroup" / folder
            taken = int((at / f"memory.{used}").read_text()) - _number(at / "memory.stat", cached)
            yield int((at / f"memory.{limit}").read_text()) - taken


def _number(file: Path, name: str) -> int:
    return next((int(row.split()[1]) for row in file.read_text().splitlines() if row.startswith(f"{name} ")), 0)


def default_pages(config: ModelConfig, dtype: torch.dtype, device: torch.device, page_size: int) -> int:
    """Pages for 65,536 tokens, or for as many as a quarter of the free memory holds.

    Raises `OutOfPages` if that is less than 2,048 tokens, or than the model's positions if it has fewer.
    """
    free, each = free_bytes(device), config.kv_bytes_per_token(dtype)
    tokens = int(min(POOL_TOKENS, POOL_SHARE * free / each))
    if tokens < min(USEFUL_TOKENS, config.max_positions):
        held = (
            f"a quarter of the {free / 1e9:.2f} GB of free memory holds {tokens:,} tokens, whose K/V has {each:,} bytes"
        )
        raise OutOfPages(f"{held} each: free some, or pass num_pages to take more")
    return max(1, tokens // page_size)


def require_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> None:
    """Raises `OutOfPages` if the weights and the table of rotations cannot fit; nothing is allocated yet."""
    weights = sum(map(math.prod, config.tensor_shapes().values())) * dtype.itemsize / 1e9
    table, free = 16 * config.max_positions * config.head_dim / 1e9, free_bytes(device) / 1e9
    if weights + table > free:
        needs = f"{weights:.2f} GB for weights and {table:.2f} GB for the rotations of max_position_embeddings"
        raise OutOfPages(f"the model needs {needs}; {free:.2f} GB are free")
