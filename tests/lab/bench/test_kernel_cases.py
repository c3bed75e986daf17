"""The GPU benchmark's predictions, and its error where there is no GPU."""

import pytest
import torch

from minstate import BadValue
from minstate.lab.bench.kernels import MAX_BYTES, AttentionCase, cases, kernels
from minstate.lab.machines.roofline import Roofline

H100 = Roofline(flops_per_s=700e12, bytes_per_s=3e12)


def floor_ms(case: AttentionCase) -> float:
    return 1000 * H100.floor_s(case.flops(), case.bytes_moved(torch.bfloat16))


def test_bytes_and_operations_are_those_of_the_definition():
    case = AttentionCase(batch=3, queries=2, context=5, heads=4, kv_heads=2, head_dim=8)
    reads = 4 + 5  # the first query reads one key fewer
    assert case.flops() == 3 * 4 * reads * 2 * 8 * 2, "two products of vectors of 8, a multiply and an add each"
    kv, q_and_o = 2 * 2 * 5 * 8, 2 * 2 * 4 * 8
    assert case.bytes_moved(torch.bfloat16) == 3 * (kv + q_and_o) * 2


def test_verifying_eight_tokens_moves_as_many_bytes_as_decoding_one_and_a_chunk_is_bound_by_arithmetic():
    one, eight = AttentionCase(16, 1, 16_384), AttentionCase(16, 8, 16_384)
    assert floor_ms(eight) < 1.01 * floor_ms(one)
    chunk = AttentionCase(1, 2048, 16_384)
    assert floor_ms(chunk) == pytest.approx(1000 * chunk.flops() / H100.flops_per_s)


def test_every_case_fits_a_gpu():
    assert {case.queries for case in cases()} == {1, 8, 512, 2048}
    assert all(case.bytes_moved(torch.bfloat16) < MAX_BYTES for case in cases())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_that_it_needs_one():
    with pytest.raises(BadValue, match="needs an NVIDIA GPU"):
        kernels()
