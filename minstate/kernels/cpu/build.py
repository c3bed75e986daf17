"""Compile the C++ kernels for this CPU, once: `library()` is what they became.

The compiled file is kept in the user's cache folder, under a name that says what it was made from: the sources, the
compiler and the CPU. It is written under another name and then moved, so two processes may compile at the same time.

The environment variable `MINSTATE_COMPILER` names the compiler (`none`: use no kernels). Without it, the first of
`$CXX`, `c++`, `g++` and `clang++` that is found compiles.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from minstate.errors import UnsupportedModel

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*.cpp"))
# -march=native uses all that this CPU has. Of what -ffast-math stands for, we take only what changes no result: NaN and
# infinities must stay what they are, and numbers near 0 must not be flushed, in other libraries least of all.
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
NATIVE = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else ["-mcpu=native"]
SHARED = ["-shared", "-fPIC"]


def compiler() -> list[str]:
    """The command that compiles C++. Raises `UnsupportedModel` if there is none."""
    if named := os.environ.get("MINSTATE_COMPILER"):
        words = shlex.split(named)
        if named != "none" and shutil.which(words[0]):
            return words
        raise UnsupportedModel(f"MINSTATE_COMPILER names {named!r}, which is no command")
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise UnsupportedModel("no C++ compiler: install g++ or clang++, or name one in MINSTATE_COMPILER")


def cache_folder() -> Path:
    """Where compiled kernels are kept; only this user can write there, since what lies there is run."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "minstate" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UnsupportedModel(f"others can write to {folder}: chmod 700 it, or remove it")
    return folder


def compile_command(command: list[str], target: Path) -> list[str]:
    """The compiler's arguments that make one library of all kernels."""
    return [*command, *FLAGS, *NATIVE, *SHARED, "-o", str(target), *map(str, SOURCES)]


def _cpu() -> str:
    """What the CPU has, as Linux tells it; elsewhere its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {line.partition(":")[0].strip(): line for line in lines}
    return "".join(known.get(name, "") for name in ("model name", "model", "flags", "Features")) or platform.processor()


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels. Raises `UnsupportedModel`, which says why they cannot be compiled or loaded."""
    try:
        command = compiler()
        version = _run([*command, "--version"]).stdout
        made_from = [path.read_bytes() for path in sorted(HERE.glob("*.[ch]*"))]
        made_from += [repr(compile_command(command, Path())).encode(), version.encode(), _cpu().encode()]
        target = cache_folder() / f"{hashlib.sha256(b''.join(made_from)).hexdigest()[:32]}.so"
        if not target.exists():
            _compile(command, target)
        return ctypes.CDLL(str(target))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise UnsupportedModel(f"the CPU kernels cannot be compiled or loaded: {error}") from error


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def _compile(command: list[str], target: Path) -> None:
    print("minstate: compiling kernels for this CPU, once, for some seconds", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        done = _run(compile_command(command, fresh))
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} says: {done.stderr.strip()[:500]}")
        fresh.replace(target)
