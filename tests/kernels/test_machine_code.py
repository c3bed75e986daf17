"""The machine code of the kernels for an A100 (sm_80) and an H100 (sm_90); compiling needs no GPU.

Other tests check the kernels' results in the interpreter, which accepts what the compiler rejects, and shows no speed.
"""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from minstate.kernels.append_kv import append_kv  # noqa: E402
from minstate.kernels.copy_pages import copy_pages  # noqa: E402
from minstate.kernels.merge_splits import merge_splits  # noqa: E402
from minstate.kernels.rms_norm import rms_norm  # noqa: E402
from minstate.kernels.silu_mul import silu_mul  # noqa: E402
from minstate.kernels.tiles import MAX_SPLITS, tile_sizes, width_of  # noqa: E402
from minstate.lab.machines.machine_code import HEADS, KV_HEADS, CompiledKernel, compile_launches, launch_attention  # noqa: E402

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # the most that one program may use
BOTH = pytest.mark.parametrize("capability", [80, 90])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def require_fits(kernel: CompiledKernel, capability: int):
    used = kernel.resources
    assert used["STACK"] == 0 and used["LOCAL"] == 0, "registers spill into memory"
    assert kernel.count("STL.*") == kernel.count("LDL.*") == 0
    assert kernel.shared_bytes <= SHARED_BYTES[capability]


# Cases of (head size, dtype, query tokens of a sequence, splits).
DECODE, VERIFICATION, PREFILL = (1, 16), (8, 1), (512, 1)
ATTENTION = [
    *((head_dim, torch.bfloat16, *kind) for head_dim in (64, 128, 256) for kind in (DECODE, PREFILL)),
    *((128, torch.float32, *kind) for kind in (DECODE, PREFILL)),
    (128, torch.bfloat16, *VERIFICATION),
    (128, torch.float16, *PREFILL),
    (80, torch.bfloat16, *PREFILL),
    (96, torch.bfloat16, *DECODE),
]


@BOTH
@pytest.mark.parametrize("head_dim, dtype, queries, splits", ATTENTION)
def test_attention(head_dim, dtype, queries, splits, capability, folder):
    kernel, *merge = compile_launches(lambda: launch_attention(queries, dtype, splits, head_dim), capability, folder)
    require_fits(kernel, capability)
    rows, keys, warps, _ = tile_sizes(head_dim, dtype, queries * HEADS // KV_HEADS)
    if dtype == torch.float32:
        assert kernel.count(r"H\w*MMA.*") == 0 and kernel.count("FFMA") > 0, "IEEE products, not those of TF32"
    elif capability == 90 and rows >= 64:
        assert kernel.count("HGMMA.*") > 0, "the products of whole warp groups (WGMMA) are used"
    else:
        assert kernel.count("HMMA.*") > 0
    tile_bytes = keys * width_of(head_dim) * dtype.itemsize
    assert kernel.shared_bytes >= 4 * tile_bytes, "two tiles of K and V fit, so one loads while the other is used"
    copies = kernel.count(r"LDGSTS\S*\.128\S*")
    assert copies > 0 and copies % (2 * tile_bytes // (warps * 32 * 16)) == 0, "K and V are loaded 16 bytes at a time"
    assert len(merge) == (splits > 1)
    for kernel in merge:
        require_fits(kernel, capability)


def small_kernels(dtype: torch.dtype):
    """Launch every kernel except attention and its merge."""
    tokens, head_dim, ids = 5, 128, torch.zeros(8, 3, dtype=torch.int32)
    qkv = torch.empty(tokens, HEADS + 2 * KV_HEADS, head_dim, dtype=dtype)
    kv = torch.empty(2, 2, KV_HEADS, 64, head_dim, dtype=dtype)
    hidden, table = torch.empty(tokens, 2048, dtype=dtype), torch.empty(100, head_dim, dtype=dtype)
    append_kv(qkv, table, table, ids[0].long(), ids[0].long(), kv[0])
    copy_pages(kv, ids, 16)
    rms_norm(hidden, hidden[0], 1e-5)
    rms_norm(hidden, hidden[0], 1e-5, residual=hidden)
    rms_norm(qkv[:, : HEADS + KV_HEADS], qkv[0, : HEADS + KV_HEADS], 1e-5)
    silu_mul(hidden)


@BOTH
@DTYPES
def test_the_small_kernels_move_16_bytes_at_a_time(dtype, capability, folder):
    kernels = compile_launches(lambda: small_kernels(dtype), capability, folder)
    assert len(kernels) == 6
    for kernel in kernels:
        require_fits(kernel, capability)
        assert kernel.count(r"LDG\.E\.128\S*") > 0, kernel.name
        assert kernel.count(r"STG\.E\.128\S*") > 0, kernel.name


@BOTH
def test_the_merge_of_the_most_splits(capability, folder):
    parts, lse = torch.empty(5, HEADS, MAX_SPLITS, 256), torch.empty(5, HEADS, MAX_SPLITS)
    (kernel,) = compile_launches(lambda: merge_splits(parts, lse, torch.bfloat16), capability, folder)
    require_fits(kernel, capability)
    assert kernel.count(r"LDG\.E\.128\S*") > 0
