"""The C++ kernels are compiled once; where they cannot be, torch computes, and one line says why."""

import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from minstate import UnsupportedModel
from minstate.kernels.cpu import build

CHOOSE = """
import torch, warnings
from minstate.kernel_layers import choose_kernels
from minstate.lab.machines.data_sheets import LLAMA_8B
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(choose_kernels("auto", LLAMA_8B, torch.bfloat16, "cpu"), *(warning.message for warning in caught))
"""


def choose(tmp_path, **environment):
    """What a fresh process with an empty cache chooses, and what it says on standard error."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | environment
    return subprocess.Popen(
        [sys.executable, "-c", CHOOSE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "compiler, reason", [("none", "none"), ("no-such-compiler", "no command"), ("false", "false says")]
)
def test_without_a_compiler_that_works_torch_computes_and_one_line_says_so(tmp_path, compiler, reason):
    out, _ = choose(tmp_path, MINSTATE_COMPILER=compiler).communicate()
    assert out.startswith("torch ") and reason in out and out.count("\n") == 1
    assert "half the speed" in out and "compil" in out.lower()


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a compiler")
def test_processes_that_compile_at_the_same_time_leave_one_whole_library(tmp_path):
    racing = [choose(tmp_path) for _ in range(2)]
    for out, errors in [process.communicate() for process in racing]:
        assert out == "cpu\n", errors
        assert "compiling kernels" in errors
    folder = tmp_path / "cache" / "minstate" / "kernels"
    assert [path.suffix for path in folder.iterdir()] == [".so"]
    assert folder.stat().st_mode & 0o077 == 0
    out, errors = choose(tmp_path).communicate()
    assert out == "cpu\n" and "compiling" not in errors, "the second time it is there"


def test_a_cache_into_which_others_can_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.cache_folder().chmod(0o777)
    with pytest.raises(UnsupportedModel, match="others can write"):
        build.cache_folder()


def test_the_environment_names_the_compiler(monkeypatch):
    monkeypatch.setenv("MINSTATE_COMPILER", f"{sys.executable} -m ziglang c++")
    assert build.compiler() == [sys.executable, "-m", "ziglang", "c++"]


CROSS = [["aarch64-linux-gnu-g++"]] if shutil.which("aarch64-linux-gnu-g++") else []
if find_spec("ziglang"):
    CROSS.append([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"])


@pytest.mark.skipif(not CROSS, reason="needs a compiler for aarch64: pip install ziglang")
def test_the_kernels_compile_for_aarch64(tmp_path):
    for source in build.SOURCES:
        command = [*CROSS[0], "-std=c++17", "-O2", "-ffp-contract=fast", "-c", str(source), "-o", str(tmp_path / "x.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


@pytest.mark.skipif("avx512f" not in CPU, reason="this CPU has no AVX-512 to leave out")
@pytest.mark.parametrize("without", ["avx512f", "avx512bf16"])
def test_the_kernels_are_right_without_what_this_cpu_has(without):
    """Code for older CPUs: half as wide, or without the instruction for pairs of bfloat16."""
    compiler = f"{shlex.join(build.compiler())} -mno-{without}"
    kernels = Path(__file__).with_name("test_cpu_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", kernels, "-k", "attention or product"]
    done = subprocess.run(command, env=os.environ | {"MINSTATE_COMPILER": compiler}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
