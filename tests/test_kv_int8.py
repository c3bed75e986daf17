"""Keys and values in 8 bits: their error, whole turns on them, and what they take."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minstate import BadValue, Engine, Sampling
from minstate.errors import UnreadableSession
from minstate.kv_int8 import dequantise, quantise
from minstate.lab.engines.baselines import NaiveEngine, PrefixReuseEngine
from minstate.lab.engines.small_engine import poison, small_engine
from minstate.rotary import Rope, rotary_table, rotate

GREEDY = Sampling(ignore_eos=True)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]), st.sampled_from([1, 64]))
def test_an_error_is_at_most_half_a_scale(seed, dtype, dim):
    draw = torch.Generator().manual_seed(seed)
    x = (torch.randn(3, 2, dim, generator=draw) * 10 ** (6 * torch.rand(3, 2, 1, generator=draw) - 3)).to(dtype)
    x[0] = 0
    again, scale = dequantise(quantise(x), torch.float64), x.double().abs().amax(-1, keepdim=True) / 127
    assert ((again - x.double()).abs() <= 0.5001 * scale).all()


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_finite_is_seen_and_its_neighbours_are_intact(odd):
    x = torch.ones(3, 8)
    x[1, 2] = odd
    again = dequantise(quantise(x), torch.float32)
    assert again[1].isnan().all() and (again[[0, 2]] == 1).all()


def test_the_kernel_stores_the_rows_that_torch_would():
    functions = pytest.importorskip("minstate.kernels.cpu.functions", exc_type=Exception)
    draw = torch.Generator().manual_seed(0)
    cos, sin = rotary_table(Rope(64), 300)
    positions, slots = torch.randint(0, 300, (12,), generator=draw), torch.randperm(40, generator=draw)[:12]
    slots[-1] = -1  # padding
    for dtype in (torch.float32, torch.bfloat16):
        qkv, tables = torch.randn(12, 9 + 6, 64, generator=draw).to(dtype), (cos.to(dtype), sin.to(dtype))
        qkv[3, 9:], qkv[4, 9, 0] = 0, torch.nan
        kv = torch.full((2, 3, 40, 68), -1, dtype=torch.int8)
        functions.append_kv(qkv, *tables, positions.int(), slots.int(), kv)
        k = rotate(qkv[:, 9:12].float(), *(table[positions, None].float() for table in tables))
        for stored, x in zip(kv, (k, qkv[:, 12:].float()), strict=True):
            scale = x.abs().amax(-1, keepdim=True) / 127
            off = (dequantise(stored[:, slots[:-1]], torch.float32).transpose(0, 1) - x[:-1]).abs()
            assert (off <= 0.51 * scale[:-1]).logical_or(x[:-1].isnan().any(-1, keepdim=True)).all()
        unused = torch.ones(40, dtype=torch.bool)
        unused[slots[:-1]] = False
        assert (kv[:, :, unused] == -1).all()


@pytest.mark.parametrize("kind", [NaiveEngine, PrefixReuseEngine])
def test_turns_are_those_of_an_engine_that_computes_everything_again(kind):
    """So an output depends neither on chunks, nor on what was kept: a token's own pass reads what is stored, too."""
    outputs = []
    for kind_, more in [(Engine, {"num_pages": 40, "speculation": True}), (kind, {"token_budget": 7})]:
        e, said = small_engine(kind_, kv_dtype="int8", **more), []
        poison(e)
        sessions = [e.open() for _ in range(3)]
        for turn in range(3):
            handles = [
                e.submit(session, token_ids=[*range(4, 20), 30 + i + turn], max_new_tokens=12, sampling=GREEDY)
                for i, session in enumerate(sessions)
            ]
            while not all(handle.done for handle in handles):
                e.step()
                e.check()
            said.append([handle.turn.token_ids for handle in handles])
        outputs.append(said)
    assert outputs[0] == outputs[1]


def test_a_pool_in_8_bits_takes_a_quarter_of_float32_and_counts_what_it_reads():
    model = Engine.from_pretrained(num_pages=8)
    in_8_bits = Engine.from_pretrained(num_pages=8, kv_dtype="int8")
    assert in_8_bits.pool.bytes_per_page / model.pool.bytes_per_page == 68 / 256
    turns = [
        engine.open().send(token_ids=range(5, 50), max_new_tokens=2, sampling=GREEDY) for engine in (model, in_8_bits)
    ]
    assert turns[1].stats.kv_bytes_read / turns[0].stats.kv_bytes_read == 68 / 256
    with pytest.raises(BadValue, match="int4"):
        Engine.from_pretrained(kv_dtype="int4")


def test_a_session_file_is_read_by_a_pool_of_the_same_format_only(tmp_path):
    e = small_engine(kv_dtype="int8")
    session = e.open()
    session.send(token_ids=range(5, 30), max_new_tokens=3, sampling=GREEDY)
    session.save(tmp_path / "session")
    again = small_engine(kv_dtype="int8").load(tmp_path / "session")
    turns = [each.send(token_ids=[9], max_new_tokens=5, sampling=GREEDY) for each in (session, again)]
    assert turns[0].token_ids == turns[1].token_ids and turns[1].stats.prefilled == turns[1].stats.delta
    with pytest.raises(UnreadableSession, match="K/V"):
        small_engine().load(tmp_path / "session")
