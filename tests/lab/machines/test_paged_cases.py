"""Cases for attention kernels: NaN wherever no token lies, and an expected output that torch confirms."""

import pytest
import torch
import torch.nn.functional as F

from minstate.lab.machines.compile_cpp import address, compiled
from minstate.lab.machines.paged_cases import WILD, assert_is, attention, in_other_pages, paged, ragged


def read(kv: torch.Tensor, pages: torch.Tensor, count: int, page_size: int) -> torch.Tensor:
    token = torch.arange(count)
    return kv[:, :, pages[token // page_size] * page_size + token % page_size]


def test_each_token_is_where_the_page_table_says_and_all_else_is_nan():
    contexts = [5, 12, 1]
    kv, page_table, keys_values = paged(contexts, page_size=4, kv_heads=2, head_dim=3)
    for pages, context, expected in zip(page_table, contexts, keys_values, strict=True):
        assert torch.equal(read(kv, pages, context, 4), expected)
        assert (pages[-(-context // 4) :] == WILD).all(), "behind its pages a row is wild"
    assert int((~kv.isnan()).sum()) == 2 * 2 * 3 * sum(contexts)


def test_the_expected_output_is_that_of_torch():
    draw = torch.Generator().manual_seed(0)
    q, (k, v) = torch.randn(7, 4, 8, generator=draw), torch.randn(2, 2, 7, 8, generator=draw)
    theirs = F.scaled_dot_product_attention(q.transpose(0, 1), k, v, is_causal=True, enable_gqa=True).transpose(0, 1)
    assert_is(theirs, attention(q, k, v, history=0))


def test_ragged_cases_are_their_sequences_one_after_the_other():
    (q, _, starts, contexts, _), expected = ragged([(6, 1), (0, 3)])
    assert starts.tolist() == [0, 1, 4] and contexts.tolist() == [7, 3]
    assert len(q) == len(expected) == 4 and not expected.isnan().any()
    with pytest.raises(AssertionError):
        assert_is(torch.full_like(expected, torch.nan), expected)


def test_in_other_pages_the_same_tokens_are_found():
    kv, page_table, (expected,) = paged([9], page_size=4)
    moved, table = in_other_pages(kv, page_table, page_size=4)
    assert not torch.equal(table, page_table) and torch.equal(read(moved, table[0], 9, 4), expected)


def test_lines_of_cpp_are_compiled_and_called_and_errors_say_where():
    twice = compiled('extern "C" void twice(float* x, int n) { for (int i = 0; i < n; i++) x[i] *= 2; }')
    x = torch.arange(5.0)
    twice.twice(address(x), 5)
    assert x.tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match=r"text\.cpp"):
        compiled("int f( {")
