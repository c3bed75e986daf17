"""A sequence's keys are read in place, in halves or gathered; a product reads the right copy of its weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from minstate import attention
from minstate.attention import TorchAttention, _plan_keys
from minstate.linear import Linear
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence


@pytest.fixture
def small_limits(monkeypatch):
    for name, value in {"SHORT_RUN": 6, "LONG_RUN": 9, "FEW_QUERIES": 2}.items():
        monkeypatch.setattr(attention, name, value)


def plan_for(runs: list[int], queries: int, page_size: int = 3):
    """The plan for a context whose pages lie in runs of these lengths, with a gap after each run."""
    pages, next_page = [], 1
    for length in runs:
        pages += range(next_page, next_page + length)
        next_page += length + 1
    in_pool = len(pages) * page_size
    context = in_pool + (queries if queries > 1 else 0)
    return _plan_keys(slice(0, queries), context, torch.tensor(pages + [0] * queries), page_size)


def test_a_run_is_read_in_place_in_halves_or_gathered(small_limits):
    """SHORT_RUN 6 tokens (2 pages), LONG_RUN 9 (3 pages), FEW_QUERIES 2: each limit from both sides."""

    def read(runs, queries):
        plan = plan_for(runs, queries)
        return [(run.tokens, run.cuts) for run in plan.runs], plan.gathered_tokens

    assert read([1], 1) == ([(3, 1)], 0), "a single short run is read in place"
    assert read([1, 2], 1) == ([(3, 1), (6, 1)], 0)
    assert read([1, 2, 1], 1) == ([(6, 1)], 6), "two short runs are gathered"
    assert read([3], 1) == ([(8, 2), (1, 1)], 0), "a long run is read in two halves, and its odd token by itself"
    assert read([4], 2) == ([(12, 2)], 0)
    assert read([4], 3) == ([(12, 1)], 0), "many queries give every core work without halves"
    assert plan_for([4], 3).causal and not plan_for([4], 1).causal


# Each sequence has a number of query tokens, and the lengths in pages of the runs that hold its context.
SEQUENCE = st.tuples(st.sampled_from([1, 1, 2, 3, 7]), st.lists(st.integers(1, 5), min_size=1, max_size=5))
LAYOUT = st.lists(SEQUENCE, min_size=1, max_size=4)


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-11), (torch.bfloat16, 0.05)])
@given(layout=LAYOUT, spread=st.sampled_from([1, 100, 10_000]), seed=st.integers(0, 2**32))
@example(layout=[(1, [3]), (1, [1, 2, 1, 1])], spread=1, seed=0)  # the second sequence gathers more than the first
@example(layout=[(3, [1, 1, 2, 4])], spread=10_000, seed=0)
def test_attention_over_pages_is_attention(dtype, error, layout, spread, seed):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHORT_RUN": 6, "LONG_RUN": 9, "FEW_QUERIES": 2}.items():
            patch.setattr(attention, name, value)
        generator = torch.Generator().manual_seed(seed)
        page_size, kv_heads, group, dim = 3, 2, 3, 10
        tables, next_page = [], 0
        for _, runs in layout:
            tables.append([])
            for length in runs:
                tables[-1] += range(next_page, next_page + length)
                next_page += length + 1
        pool = KVPool(
            num_layers=1, num_kv_heads=kv_heads, head_dim=dim, num_pages=next_page, page_size=page_size, dtype=dtype
        )
        pool.kv.fill_(torch.nan)
        q, k, v, slots, starts, contexts, expected = [], [], [], [], [0], [], []
        for (most_queries, _), pages in zip(layout, tables, strict=True):
            context = len(pages) * page_size - int(torch.randint(0, page_size, (), generator=generator))
            queries = min(most_queries, context)
            where = torch.tensor([pages[i // page_size] * page_size + i % page_size for i in range(context)])
            keys, values = torch.randn(2, kv_heads, context, dim, generator=generator).to(dtype)
            query = (spread * torch.randn(queries, kv_heads * group, dim, generator=generator)).to(dtype)
            old = context - queries
            pool.kv[0, 0][:, where[:old]], pool.kv[0, 1][:, where[:old]] = keys[:, :old], values[:, :old]
            mask = torch.ones(queries, context, dtype=torch.bool).tril(old)
            expected.append(
                F.scaled_dot_product_attention(
                    query.double().transpose(0, 1), keys.double().repeat_interleave(group, 0),
                    values.double().repeat_interleave(group, 0), attn_mask=mask,
                ).transpose(0, 1)
            )  # fmt: skip
            for whole, mine in [(q, query), (k, keys[:, old:].transpose(0, 1)), (v, values[:, old:].transpose(0, 1))]:
                whole.append(mine)
            slots.append(where[old:])
            starts.append(starts[-1] + queries)
            contexts.append(context)
        widest = max(map(len, tables))
        unused = torch.tensor([], dtype=torch.int64)
        batch = RaggedBatch(
            unused, unused, torch.cat(slots), torch.tensor(starts), torch.tensor(contexts),
            torch.tensor([pages + [0] * (widest - len(pages)) for pages in tables]), unused,
        )  # fmt: skip
        out = TorchAttention(pool, batch)(0, torch.cat(q), torch.cat(k), torch.cat(v))
        assert out.dtype == dtype
        assert (out - torch.cat(expected)).abs().max() < error * (1 if dtype == torch.bfloat16 else spread)


def test_an_empty_query_is_refused():
    """torch's kernel for a CPU would divide by zero, and end the process."""
    pool = KVPool(num_layers=1, num_kv_heads=1, head_dim=8, num_pages=2, page_size=3)
    sequence = Sequence(pool)
    sequence.log = [5, 6]
    RaggedBatch.build([sequence.chunk(2)])
    with pytest.raises(AssertionError, match="at least one query token"):
        TorchAttention(pool, RaggedBatch.build([sequence.chunk(0)]))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN no weights are packed")
def test_one_row_reads_the_smaller_copy_of_the_weights_and_several_rows_the_faster_one(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(64, 48, generator=generator), torch.randn(9, 48, generator=generator)
    assert Linear([w]).packed is not None and Linear([w]).weight is None  # float32: only the packed copy is kept
    assert Linear([w.double()]).packed is None
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        w16, x16 = w.bfloat16(), x.bfloat16()
        linear = Linear([w16])
        assert linear.packed_dtype == torch.float32
        reads = []
        monkeypatch.setattr(F, "linear", lambda x, w, b: reads.append(len(x)) or x @ w.T)
        linear(x16[:1])
        linear(x16)
        assert reads == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn_torch_computes_the_products(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    generator = torch.Generator().manual_seed(0)
    w, b, x = (torch.randn(*s, generator=generator).to(dtype) for s in ((32, 48), (32,), (5, 48)))
    linear = Linear([w[:20], w[20:]], [b[:20], b[20:]])
    assert linear.packed is None and torch.equal(linear(x), F.linear(x, w, b))
