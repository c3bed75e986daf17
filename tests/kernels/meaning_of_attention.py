"""Paged attention agrees with a float64 oracle, on a GPU or else in Triton's interpreter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pools import DEVICE, ERROR, ragged

from minstate.kernels.merge_splits import merge_splits
from minstate.kernels.paged_attention import paged_attention
from minstate.kernels.tiles import busy_programs, split_count, tile_sizes

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SEQUENCES = st.lists(
    st.tuples(st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 90]), st.sampled_from([1, 1, 2, 9, 17])),
    min_size=1,
    max_size=3,
)


def check(sequences, splits=1, spread=1.0, **shape):
    case = ragged(sequences, spread=spread, **shape)
    most = max(queries for _, queries in sequences)
    arguments = (case.q, case.kv, case.query_start, case.context_len, case.page_table)
    out = paged_attention(*arguments, page_size=case.page_size, max_queries=most, splits=splits)
    assert out.dtype == case.q.dtype and out.shape == case.q.shape
    error = ERROR[out.dtype] * spread  # rounding errors of scores are proportional to their size
    torch.testing.assert_close(out.double().cpu(), case.expected, atol=error, rtol=error)


@given(
    sequences=SEQUENCES,
    dtype=st.sampled_from(DTYPES),
    kv_dtype=st.sampled_from([None, torch.int8]),
    group=st.sampled_from([1, 2, 3, 7]),
    kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([32, 64, 80]),
    page_size=st.sampled_from([8, 16, 48, 256]),
    splits=st.sampled_from([1, 1, 2]),
    seed=st.integers(0, 2**32),
)
def test_paged_attention_is_attention(sequences, splits, **shape):
    check(sequences, splits, **shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_a_prefill_chunk_a_decode_and_a_verification(dtype):
    check([(40, 33), (99, 1), (20, 9)], splits=2, group=4, kv_heads=1, page_size=8, dtype=dtype)


def test_one_token_and_seven_empty_splits():
    check([(0, 1)], splits=8, group=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [16, 96, 128, 256])
def test_heads_of_every_size(head_dim, dtype):
    check([(40, 1), (3, 2)], group=3, kv_heads=1, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_prompts_with_tiles_before_after_and_on_the_diagonal(dtype):
    check([(150, 140), (0, 90)], group=1, kv_heads=1, head_dim=32, dtype=dtype)


def test_a_group_larger_than_a_tile():
    assert tile_sizes(64, torch.float32, rows=71).rows < 71
    check([(30, 1), (5, 2)], group=71, kv_heads=1)


def test_scores_far_apart_neither_overflow_nor_hide_the_small_ones():
    check([(100, 1), (50, 6)], splits=2, group=2, spread=100.0)


def test_a_sequence_without_queries_is_left_alone():
    """A batch of fixed size that is not full has such sequences."""
    check([(20, 1), (30, 0), (0, 3), (16, 0)], group=2, splits=2)


@given(parts=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any), min_size=1, max_size=4))
def test_merged_splits_are_attention_over_all_keys(parts):
    """Scores and values come in splits, some of them empty."""
    generator = torch.Generator().manual_seed(0)
    out, lse, expected = [], [], []
    for counts in parts:
        scores = [50 * torch.randn(count, generator=generator, dtype=torch.float64) for count in counts]
        values = [torch.randn(count, 32, generator=generator, dtype=torch.float64) for count in counts]
        expected.append(torch.cat(scores).mul(0.6931471805599453).softmax(0) @ torch.cat(values))
        out.append(
            torch.stack(
                [s.mul(0.6931471805599453).softmax(0) @ v if len(s) else torch.full((32,), torch.nan)
                 for s, v in zip(scores, values, strict=True)]
            )
        )  # fmt: skip
        lse.append(torch.stack([torch.logsumexp(s * 0.6931471805599453, 0) / 0.6931471805599453 for s in scores]))
    merged = merge_splits(
        torch.stack(out).float().to(DEVICE)[None], torch.stack(lse).float().to(DEVICE)[None], torch.float32
    )
    torch.testing.assert_close(merged[0].double().cpu(), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_the_number_of_splits():
    assert split_count(programs=8, context=100_000, multiprocessors=132) == 32
    assert split_count(programs=8, context=1_100, multiprocessors=132) == 4, "a short context is not worth more splits"
    assert split_count(programs=8, context=10, multiprocessors=132) == 1
    assert split_count(programs=1000, context=10_000, multiprocessors=132) == 1, (
        "the programs keep the device busy without splits"
    )
    assert split_count(programs=1000, context=131_072, multiprocessors=132) == 8, (
        "but the device should not wait for one long sequence"
    )
    assert split_count(programs=1, context=10**7, multiprocessors=132) == 64
    q = torch.empty(64, 32, 128, dtype=torch.bfloat16)
    assert busy_programs(tuple(q.shape), q.dtype, 8, sequences=64, max_queries=1) == 64 * 8
    assert busy_programs(tuple(q.shape), q.dtype, 8, sequences=1, max_queries=64) == 2 * 8
