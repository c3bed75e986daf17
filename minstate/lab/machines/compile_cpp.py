"""A few lines of C++, compiled as the package's own kernels are, and called through ctypes."""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from minstate.kernels.cpu.build import FLAGS, HERE, NATIVE, SHARED, compiler


@cache
def compiled(text: str) -> ctypes.CDLL:
    """The library that the package's compiler and flags make of `text`. Raises ValueError with what the compiler says.

    The library is loaded before its file is removed, and stays in memory until the process ends.
    """
    with tempfile.TemporaryDirectory(prefix="minstate-") as folder:
        source, library = Path(folder) / "text.cpp", Path(folder) / "text.so"
        source.write_text(text)
        command = [*compiler(), *FLAGS, *NATIVE, *SHARED, f"-I{HERE}", "-o", str(library), str(source)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip())
        return ctypes.CDLL(str(library))


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    """The address of a contiguous tensor's first number. Keep the tensor in a variable as long as it is used."""
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
