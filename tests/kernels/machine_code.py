"""Compiles what a call would launch, for GPUs that need not be there, and reads the machine code."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


@dataclass
class Compiled:
    """One kernel, as it is for one GPU."""

    name: str
    ptx: str
    cubin: Path
    shared_bytes: int

    @cached_property
    def sass(self) -> str:
        return self._dump("-sass")

    @cached_property
    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL and others, of each thread."""
        (line,) = [line for line in self._dump("--dump-resource-usage").splitlines() if "REG:" in line]
        return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}

    def count(self, instruction: str) -> int:
        """How often machine code that matches occurs."""
        return len(re.findall(rf"\b{instruction}\b", self.sass))

    def _dump(self, what: str) -> str:
        return subprocess.run([CUOBJDUMP, what, self.cubin], capture_output=True, text=True, check=True).stdout


def launches(call: Callable[[], object], capability: int, folder: Path) -> list[Compiled]:
    """Every kernel that `call()` would launch, compiled for `capability` (80 for sm_80), without running any."""
    recorded = []

    def record(kernel, *arguments, grid, warmup, **options):
        recorded.append((kernel, arguments, options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return [_compile(*launch, capability, folder) for launch in recorded]


def _compile(kernel: JITFunction, arguments: tuple, options: dict, capability: int, folder: Path) -> Compiled:
    """As triton itself would at a launch: pointers and sizes that 16 divides are known to be."""
    signature, constants, attributes = {}, {}, {}
    for parameter, value in zip(kernel.params, arguments, strict=True):
        place = (parameter.num,)
        if parameter.is_constexpr or (value == 1 if isinstance(value, int) and not parameter.do_not_specialize else 0):
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
    return Compiled(kernel.__name__, compiled.asm["ptx"], cubin, compiled.metadata.shared)
