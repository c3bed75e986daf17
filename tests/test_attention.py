"""How a sequence's keys are read: in place, in halves or gathered; and which copy of the weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from minstate import attention
from minstate.attention import TorchAttention, _span
from minstate.linear import Linear
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence


@pytest.fixture
def small_limits(monkeypatch):
    for name, value in {"SHORT_RUN": 6, "LONG_RUN": 9, "FEW_QUERIES": 2}.items():
        monkeypatch.setattr(attention, name, value)


def span(runs: list[int], queries: int, page_size: int = 3):
    """The plan for a context that lies in runs of so many pages, a gap after each."""
    pages, at = [], 1
    for length in runs:
        pages += range(at, at + length)
        at += length + 1
    unread = len(pages) * page_size
    context = unread + (queries if queries > 1 else 0)
    return _span(slice(0, queries), context, torch.tensor(pages + [0] * queries), page_size)


def test_how_runs_are_read(small_limits):
    """SHORT_RUN 6 tokens (2 pages), LONG_RUN 9 (3 pages), FEW_QUERIES 2: each limit from both sides."""

    def plan(runs, queries):
        planned = span(runs, queries)
        return [(run.tokens, run.cuts) for run in planned.runs], planned.gathered_tokens

    assert plan([1], 1) == ([(3, 1)], 0), "one short run is read in place"
    assert plan([1, 2], 1) == ([(3, 1), (6, 1)], 0)
    assert plan([1, 2, 1], 1) == ([(6, 1)], 6), "two are gathered"
    assert plan([3], 1) == ([(8, 2), (1, 1)], 0), "a long one is read in two halves; what is left over is read too"
    assert plan([4], 2) == ([(12, 2)], 0)
    assert plan([4], 3) == ([(12, 1)], 0), "many queries keep all cores busy as it is"
    assert span([4], 3).causal and not span([4], 1).causal


# Of each sequence: its query tokens, and the runs of pages that its context lies in.
SEQUENCE = st.tuples(st.sampled_from([1, 1, 2, 3, 7]), st.lists(st.integers(1, 5), min_size=1, max_size=5))
LAYOUT = st.lists(SEQUENCE, min_size=1, max_size=4)


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-11), (torch.bfloat16, 0.05)])
@given(layout=LAYOUT, spread=st.sampled_from([1, 100, 10_000]), seed=st.integers(0, 2**32))
@example(layout=[(1, [3]), (1, [1, 2, 1, 1])], spread=1, seed=0)  # the second gathers more than the first
@example(layout=[(3, [1, 1, 2, 4])], spread=10_000, seed=0)
def test_attention_over_pages_is_attention(dtype, error, layout, spread, seed):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHORT_RUN": 6, "LONG_RUN": 9, "FEW_QUERIES": 2}.items():
            patch.setattr(attention, name, value)
        generator = torch.Generator().manual_seed(seed)
        page_size, kv_heads, group, dim = 3, 2, 3, 10
        tables, at = [], 0
        for _, runs in layout:
            tables.append([])
            for length in runs:
                tables[-1] += range(at, at + length)
                at += length + 1
        pool = KVPool(num_layers=1, num_kv_heads=kv_heads, head_dim=dim, num_pages=at, page_size=page_size, dtype=dtype)
        pool.kv.fill_(torch.nan)
        q, k, v, slots, starts, contexts, expected = [], [], [], [], [0], [], []
        for (queries, _), pages in zip(layout, tables, strict=True):
            context = len(pages) * page_size - int(torch.randint(0, page_size, (), generator=generator))
            queries = min(queries, context)
            place = torch.tensor([pages[i // page_size] * page_size + i % page_size for i in range(context)])
            keys, values = torch.randn(2, kv_heads, context, dim, generator=generator).to(dtype)
            query = (spread * torch.randn(queries, kv_heads * group, dim, generator=generator)).to(dtype)
            old = context - queries
            pool.kv[0, 0][:, place[:old]], pool.kv[0, 1][:, place[:old]] = keys[:, :old], values[:, :old]
            mask = torch.ones(queries, context, dtype=torch.bool).tril(old)
            expected.append(
                F.scaled_dot_product_attention(
                    query.double().transpose(0, 1), keys.double().repeat_interleave(group, 0),
                    values.double().repeat_interleave(group, 0), attn_mask=mask,
                ).transpose(0, 1)
            )  # fmt: skip
            for whole, mine in [(q, query), (k, keys[:, old:].transpose(0, 1)), (v, values[:, old:].transpose(0, 1))]:
                whole.append(mine)
            slots.append(place[old:])
            starts.append(starts[-1] + queries)
            contexts.append(context)
        widest = max(map(len, tables))
        nothing = torch.tensor([], dtype=torch.int64)
        batch = RaggedBatch(
            nothing, nothing, torch.cat(slots), torch.tensor(starts), torch.tensor(contexts),
            torch.tensor([pages + [0] * (widest - len(pages)) for pages in tables]), nothing,
        )  # fmt: skip
        out = TorchAttention(pool, batch)(0, torch.cat(q), torch.cat(k), torch.cat(v))
        assert out.dtype == dtype
        assert (out - torch.cat(expected)).abs().max() < error * (1 if dtype == torch.bfloat16 else spread)


def test_an_empty_query_is_refused():
    """The CPU's kernel would divide by zero, and take the process with it."""
    pool = KVPool(num_layers=1, num_kv_heads=1, head_dim=8, num_pages=2, page_size=3)
    sequence = Sequence(pool)
    sequence.log = [5, 6]
    RaggedBatch.build([(sequence, 2)])
    with pytest.raises(AssertionError, match="at least one query token"):
        TorchAttention(pool, RaggedBatch.build([(sequence, 0)]))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN packs nothing")
def test_which_copy_of_the_weights_is_read(monkeypatch):
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
def test_without_onednn_products_are_torchs(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    generator = torch.Generator().manual_seed(0)
    w, b, x = (torch.randn(*s, generator=generator).to(dtype) for s in ((32, 48), (32,), (5, 48)))
    linear = Linear([w[:20], w[20:]], [b[:20], b[20:]])
    assert linear.packed is None and torch.equal(linear(x), F.linear(x, w, b))
