"""The small kernels agree with float64 arithmetic, on a GPU or else in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import DEVICE, ERROR

from minstate.kernels.append_kv import append_kv
from minstate.kernels.copy_pages import copy_pages
from minstate.kernels.rms_norm import rms_norm
from minstate.kernels.silu_mul import silu_mul
from minstate.kv_int8 import dequantise
from minstate.paged_kv import KVPool, PageTable
from minstate.rotary import Rope, rotary_table, rotate

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def close(got, expected):
    error = ERROR[got.dtype]
    torch.testing.assert_close(got.double(), expected, atol=error, rtol=error)


@DTYPES
@settings(max_examples=12)
@given(
    tokens=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (9, 3), (4, 2), (16, 1)]),
    head_dim=st.sampled_from([8, 64, 80, 256]),
    seed=st.integers(0, 2**32),
)
def test_append_kv_rotates_q_and_k_and_stores_k_and_v(dtype, tokens, heads, head_dim, seed):
    heads, kv_heads = heads
    cos, sin = (table.to(dtype).to(DEVICE) for table in rotary_table(Rope(head_dim), 300))
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 300, (tokens,), generator=generator).to(DEVICE)
    slots = torch.randperm(40, generator=generator)[:tokens].to(DEVICE)
    slots[-1] = -1  # padding
    qkv = random(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype, seed=seed)
    kv = random(2, kv_heads, 40, head_dim, dtype=dtype, seed=1)
    after = kv.double()
    turned = rotate(qkv.double(), cos[positions, None].double(), sin[positions, None].double())
    q, k = turned[:, :heads], turned[:, heads : heads + kv_heads]
    after[0][:, slots[:-1]] = k[:-1].transpose(0, 1)
    after[1][:, slots[:-1]] = qkv[:-1, heads + kv_heads :].double().transpose(0, 1)
    close(append_kv(qkv, cos, sin, positions, slots, kv), q)
    close(kv, after)


@DTYPES
@pytest.mark.parametrize("head_dim", [8, 64, 80])
def test_append_kv_stores_8_bits_and_their_scale(dtype, head_dim):
    cos, sin = (table.to(dtype).to(DEVICE) for table in rotary_table(Rope(head_dim), 300))
    positions, slots = torch.arange(4).to(DEVICE), torch.tensor([3, 0, 7, -1]).to(DEVICE)  # the last one is padding
    qkv = random(4, 4 + 2 * 2, head_dim, dtype=dtype)
    qkv[1, 4:] = 0
    qkv[2, 4, 0] = torch.nan
    kv = torch.full((2, 2, 9, head_dim + 4), -1, dtype=torch.int8, device=DEVICE)
    append_kv(qkv, cos, sin, positions, slots, kv)
    k = rotate(qkv.float(), cos[positions, None].float(), sin[positions, None].float())[:, 4:6]
    for stored, x in zip(kv, (k, qkv[:, 6:].float()), strict=True):
        step, finite = x[:3].abs().amax(-1, keepdim=True) / 127, x[:3].isfinite().all(-1)
        read = dequantise(stored[:, slots[:3]], torch.float32).transpose(0, 1)
        assert ((read - x[:3]).abs() <= 0.51 * step)[finite].all() and read[~finite].isnan().all()
    assert (kv[:, :, [1, 2, 4, 5, 6, 8]] == -1).all()


@DTYPES
@settings(max_examples=12)
@given(
    page_size=st.sampled_from([8, 16, 96]),
    head_dim=st.sampled_from([8, 64, 80]),
    counts=st.lists(st.integers(0, 96), min_size=0, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_the_first_tokens_of_pages_are_copied_and_nothing_else_changes(dtype, page_size, head_dim, counts, seed):
    pages = torch.randperm(2 * len(counts) + 1, generator=torch.Generator().manual_seed(seed))
    copies = [
        (source, target, min(count, page_size))
        for source, target, count in zip(pages[: len(counts)], pages[len(counts) :], counts, strict=False)
    ]
    kv = random(3, 2, 2, len(pages) * page_size, head_dim, dtype=dtype)
    expected = kv.clone().unflatten(3, (-1, page_size))
    for source, target, count in copies:
        expected[:, :, :, target, :count] = expected[:, :, :, source, :count]
    copy_pages(kv, torch.tensor(copies, dtype=torch.int32, device=DEVICE).view(-1, 3), page_size)
    assert torch.equal(kv, expected.flatten(3, 4))


def collecting(**size):
    """A pool that collects copies, as a pool on a GPU does."""
    pool = KVPool(**size, num_kv_heads=1, head_dim=8, device=DEVICE)
    pool._collect = True
    return pool


PAGE = st.integers(0, 4)


@settings(max_examples=40)
@given(copies=st.lists(st.tuples(PAGE, PAGE, st.sampled_from([None, 1]), st.booleans()), max_size=8))
def test_collected_copies_have_the_same_result_as_immediate_ones(copies):
    def in_any_order(kv, rows, page_size):
        sources, targets, _ = rows.T.tolist()
        assert len(set(targets)) == len(targets) and not set(sources) & set(targets)
        copy_pages(kv, rows, page_size)

    pools = [collecting(num_layers=1, num_pages=5, page_size=2) for _ in range(2)]
    pools[0]._collect = False
    for pool in pools:
        pool.kv.copy_(torch.arange(80.0, device=DEVICE).view(1, 1, 1, 10, 8).expand(1, 2, 1, 10, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minstate.kernels.copy_pages.copy_pages", in_any_order)
        for source, target, tokens, read in copies:
            if source != target:
                for pool in pools:
                    pool.copy_page(source, target, tokens)
            if read:
                assert torch.equal(pools[0].kv, pools[1].kv)
        assert torch.equal(pools[0].kv, pools[1].kv)


def test_a_failed_copy_is_repeated_when_the_pages_are_next_needed(monkeypatch):
    def fail(*_):
        raise MemoryError

    pool = collecting(num_layers=1, num_pages=2, page_size=2)
    pool.kv.copy_(torch.arange(4.0, device=DEVICE)[:, None].expand(1, 2, 1, 4, 8))
    pool.copy_page(0, 1)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("minstate.kernels.copy_pages.copy_pages", fail)
        pool.make_copies()
    assert pool.kv[0, 0, 0, :, 0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_copies_for_many_forks_take_one_launch(monkeypatch):
    launches = []
    monkeypatch.setattr(
        "minstate.kernels.copy_pages.copy_pages", lambda *args: (launches.append(len(args[1])), copy_pages(*args))
    )
    pool = collecting(num_layers=2, num_pages=16, page_size=4)
    parent = PageTable(pool)
    pool.kv[:, :, :, parent.append(6)] = 1.0
    parent.commit()
    forks = [parent.fork() for _ in range(5)]
    slots = [fork.append(1) for fork in forks]
    assert launches == []
    pool.kv[:, :, :, [slot for new in slots for slot in new]] = 2.0
    assert launches == [5]
    for fork in forks:
        fork.commit()
        assert pool.kv[0, 0, 0, fork.slots, 0].tolist() == [1.0] * 6 + [2.0]


@DTYPES
@settings(max_examples=12)
@given(tokens=st.integers(1, 5), size=st.sampled_from([8, 48, 576, 2048]), seed=st.integers(0, 2**32))
def test_the_norm_with_and_without_a_residual(dtype, tokens, size, seed):
    x, weight = random(tokens, size, dtype=dtype, seed=seed), random(size, dtype=dtype)
    close(rms_norm(x, weight, 1e-5), F.rms_norm(x.double(), (size,), weight.double(), 1e-5))
    residual = random(tokens, size, dtype=dtype, seed=1)
    total = residual + x
    close(rms_norm(x, weight, 1e-5, residual), F.rms_norm(total.double(), (size,), weight.double(), 1e-5))
    close(residual, total.double())


@DTYPES
def test_the_norm_of_heads_that_have_their_own_weights(dtype):
    x, weight = random(7, 5, 64, dtype=dtype), random(3, 64, dtype=dtype)
    x = x[:, :3]  # the heads of q and k; those of v follow in the same rows
    close(rms_norm(x, weight, 1e-5), F.rms_norm(x.double(), (64,), None, 1e-5) * weight.double())


@DTYPES
@settings(max_examples=12)
@given(tokens=st.integers(1, 4), size=st.sampled_from([8, 48, 1536]), spread=st.sampled_from([1, 20]))
def test_the_gate_of_the_mlp(dtype, tokens, size, spread):
    gate_up = random(tokens, 2 * size, dtype=dtype)
    gate_up[:, :size] *= spread
    gate, up = gate_up.double().chunk(2, dim=-1)
    close(silu_mul(gate_up), F.silu(gate) * up)
