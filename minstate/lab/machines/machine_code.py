"""What kernels are compiled to, for GPUs that need not be present: registers, spills, and instructions.

    python -m minstate.lab.machines.machine_code [90]

prints a row for each kind of attention launch, as JSON, compiled for sm_90 (an H100; 80: an A100). It needs triton's
compiler and the tools that come with it, and a process in which `TRITON_INTERPRET` is not set.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from minstate.kernels.paged_attention import paged_attention
from minstate.kernels.tiles import tile_sizes

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
HEADS, KV_HEADS, HEAD_DIM = 16, 4, 128


@dataclass
class CompiledKernel:
    """One kernel, compiled for one kind of GPU."""

    name: str
    ptx: str
    cubin: Path
    shared_bytes: int

    @cached_property
    def sass(self) -> str:
        """The machine code as text."""
        return self._dump("-sass")

    @cached_property
    def resources(self) -> dict[str, int]:
        """What each thread takes: REG, STACK, LOCAL and others."""
        (line,) = [line for line in self._dump("--dump-resource-usage").splitlines() if "REG:" in line]
        return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}

    def count(self, instruction: str) -> int:
        """How many instructions of the machine code match this regular expression."""
        return len(re.findall(rf"\b{instruction}\b", self.sass))

    def _dump(self, what: str) -> str:
        return subprocess.run([CUOBJDUMP, what, self.cubin], capture_output=True, text=True, check=True).stdout


def compile_launches(call: Callable[[], object], capability: int, folder: Path) -> list[CompiledKernel]:
    """Compile every kernel that `call()` would launch, for `capability` (80 for sm_80), without running any."""
    launches = []

    def record(kernel, *arguments, grid, warmup, **options):  # noqa: ARG001  the launch that it replaces has them
        launches.append((kernel, arguments, options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return [_compile(*launch, capability, folder) for launch in launches]


def _compile(kernel: JITFunction, arguments: tuple, options: dict, capability: int, folder: Path) -> CompiledKernel:
    """Compile as triton does at a launch: it is told which pointers and sizes are divisible by 16."""
    signature, constants, attributes = {}, {}, {}
    for parameter, value in zip(kernel.params, arguments, strict=True):
        place = (parameter.num,)
        is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or is_one:
            signature[parameter.name], constants[place] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        divides = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if signature[parameter.name] != "constexpr" and divides and not parameter.do_not_specialize:
            attributes[place] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder / "cache")
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = folder / f"{compiled.hash}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    return CompiledKernel(kernel.__name__, compiled.asm["ptx"], cubin, compiled.metadata.shared)


def launch_attention(queries: int, dtype: torch.dtype, splits: int, head_dim: int = HEAD_DIM) -> None:
    """Launch attention of 3 sequences with `queries` query tokens each, over pages of 16 tokens."""
    q = torch.empty(3 * queries, HEADS, head_dim, dtype=dtype)
    kv = torch.empty(2, KV_HEADS, 64, head_dim, dtype=dtype)
    ids = torch.zeros(4, 32, dtype=torch.int32)
    paged_attention(q, kv, ids[0], ids[0, :3], ids, page_size=16, max_queries=queries, splits=splits)


def attention_report(capability: int, folder: Path) -> list[dict[str, int | str]]:
    """A row for each kind of launch: sizes of the tile, resources of a thread and a program, counts of instructions."""
    kinds = [("decode", 1, torch.bfloat16, 16), ("verification", 8, torch.bfloat16, 1)]
    kinds += [("prefill", 512, torch.bfloat16, 1), ("decode", 1, torch.float32, 16)]
    report = []
    for name, queries, dtype, splits in kinds:
        kernel, *_ = compile_launches(lambda kind=(queries, dtype, splits): launch_attention(*kind), capability, folder)
        tiles, used = tile_sizes(HEAD_DIM, dtype, queries * HEADS // KV_HEADS), kernel.resources
        report.append(
            {
                "launch": f"{name}, {str(dtype).removeprefix('torch.')}",
                "rows": tiles.rows, "keys": tiles.keys, "warps": tiles.warps,
                "registers": used["REG"], "spilled bytes": used["STACK"] + used["LOCAL"],
                "shared KiB": kernel.shared_bytes // 1024,
                "HGMMA": kernel.count(r"HGMMA\S*"), "HMMA": kernel.count(r"HMMA\S*"), "FFMA": kernel.count("FFMA"),
                "LDGSTS.128": kernel.count(r"LDGSTS\S*\.128\S*"),
            }
        )  # fmt: skip
    return report


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("the interpreter compiles nothing: run this without TRITON_INTERPRET")
    with TemporaryDirectory() as folder:
        capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90
        print(json.dumps(attention_report(capability, Path(folder)), indent=1))
