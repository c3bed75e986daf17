"""Which numbers a Triton kernel reads and writes, program by program, seen through Triton's interpreter.

Every load and every store of an interpreted kernel ends in one of two methods. `Watch` stands in between. It needs
`TRITON_INTERPRET=1`, set before triton is imported.
"""

from contextlib import ExitStack
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from minstate.kernels.tiles import tile_sizes
from minstate.lab.figures.kernels import ProgramWork
from minstate.lab.machines.paged_cases import WILD


class Access(NamedTuple):
    """What one program reads or writes of one tensor in one operation."""

    what: str  # "read" or "written"
    tensor: str
    program: tuple[int, int, int]
    elements: np.ndarray  # places in the flat tensor, each once
    bytes: int


class Watch:
    """In a `with` block: what kernels touch of these contiguous tensors.

    Reads and writes that belong to none of them are noted in `strays` and not let through; with `strict=False`, for
    kernels that use other tensors as well, they pass.
    """

    def __init__(self, strict: bool = True, **tensors: torch.Tensor):
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        self.strict, self.tensors = strict, tensors
        self.accesses: list[Access] = []
        self.strays: list[tuple[str, tuple[int, int, int], int]] = []  # read or written, program, numbers

    def __enter__(self) -> "Watch":
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def watched_load(builder, at, mask, *rest):
            return load(builder, at, self._note("read", builder, at, mask), *rest)

        def watched_store(builder, at, value, mask, *rest):
            return store(builder, at, value, self._note("written", builder, at, mask), *rest)

        self._patches = ExitStack()
        for name, method in [("create_masked_load", watched_load), ("create_masked_store", watched_store)]:
            self._patches.enter_context(patch.object(InterpreterBuilder, name, method))
        return self

    def __exit__(self, *error) -> None:
        self._patches.close()

    def _note(self, what: str, builder, at: TensorHandle, mask: TensorHandle) -> TensorHandle:
        """Note an access, and return the mask that lets through what belongs to a known tensor."""
        wanted = np.broadcast_to(mask.data, at.data.shape)
        unknown, size = wanted.copy(), at.get_element_ty().primitive_bitwidth // 8
        for name, tensor in self.tensors.items():
            offset = at.data.astype(np.int64) - tensor.data_ptr()
            here = unknown & (offset >= 0) & (offset < tensor.nbytes)
            if here.any():
                elements = np.unique(offset[here] // size)
                self.accesses.append(Access(what, name, builder.grid_idx, elements, int(here.sum()) * size))
            unknown = unknown & ~here
        if self.strict and unknown.any():
            self.strays.append((what, builder.grid_idx, int(unknown.sum())))
            return TensorHandle(wanted & ~unknown, mask.dtype)
        return mask

    def bytes_read(self, tensor: str) -> int:
        """The bytes that all programs together read of this tensor."""
        return sum(access.bytes for access in self.accesses if (access.what, access.tensor) == ("read", tensor))


def programs_of(watch: Watch, arguments: tuple[torch.Tensor, ...], page_size: int = 16) -> list[ProgramWork]:
    """What each program of KV head 0 works on, by the queries and the keys that it loads.

    watch      over a call of `paged_attention`, with its q and kv under these names
    arguments  of that call, as `paged_cases.ragged` makes them
    """
    q, kv, query_start, _, page_table = arguments
    heads, kv_heads, head_dim = q.shape[1], kv.shape[1], q.shape[2]
    group = heads // kv_heads
    most = int(query_start.diff().max()) * group
    tiles = len(q) * group // tile_sizes(head_dim, q.dtype, most).rows + len(query_start) - 1
    found: dict = {}
    for access in watch.accesses:
        if access.tensor in ("q", "kv") and access.program[1] == 0:
            found.setdefault(access.program, {"q": set(), "kv": set()})[access.tensor].update(
                access.elements // head_dim
            )
    work = []
    for (number, _, split), loaded in sorted(found.items()):
        queries = np.array(sorted(loaded["q"]))
        sequence = int(np.searchsorted(query_start, queries[0] // heads, side="right")) - 1
        row = (queries // heads - int(query_start[sequence])) * group + queries % heads
        pages = {int(page): place for place, page in enumerate(page_table[sequence]) if page != WILD}
        slots = [slot for slot in loaded["kv"] if slot < kv.shape[2]]  # K of head 0 comes first
        key = sorted(pages[slot // page_size] * page_size + slot % page_size for slot in slots)
        rows, keys = range(int(row[0]), int(row[-1]) + 1), range(int(key[0]), int(key[-1]) + 1)
        assert len(row) == len(rows) and len(key) == len(keys), "both are stretches without gaps"
        work.append(ProgramWork((tiles - 1 - number, split), sequence, rows, keys))  # the kernel counts from the end
    return work
