"""The forward pass by kernels equals `Model.forward`, padded or not; on a GPU, as a CUDA graph too."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny

from minstate.attention import TorchAttention
from minstate.gpu import GpuRunner, Shape, gpu_kernels, input_views, pack_inputs
from minstate.kernel_layers import hidden_states, missing_in_kernels
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORK = [(1, 0), (5, 0), (1, 3), (9, 2)]  # each sequence has tokens of its log, and drafted tokens after them


def models(family):
    """The reference on the CPU, and the same model on the device where the kernels run; float32."""
    hf = tiny.hf_model(family, torch.float32)
    weights = {name: tensor.detach() for name, tensor in hf.state_dict().items()}
    config = tiny.ModelConfig.from_hf(hf.config.to_dict())
    return Model(config, weights), Model(config, {name: tensor.to(DEVICE) for name, tensor in weights.items()})


def pool_of(model, num_pages=32, page_size=8):
    config = model.config
    pool = KVPool(
        num_layers=config.num_layers, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        num_pages=num_pages, page_size=page_size, dtype=model.dtype, device=model.device,
    )  # fmt: skip
    pool.kv.fill_(torch.nan)
    return pool


def batches(pool):
    """A first batch that prefills all but the end of some logs, and a second batch of all kinds of work."""
    sequences = []
    for number, (count, _) in enumerate(WORK):
        sequence = Sequence(pool)
        sequence.log += [3 + (7 * i + 31 * number) % 200 for i in range(11 * (number % 3) + count)]
        sequences.append(sequence)
    history = [(one, len(one.log) - count) for one, (count, _) in zip(sequences, WORK, strict=True)]
    yield RaggedBatch.build([one.chunk(count) for one, count in history if count])
    for one in sequences:
        one.table.commit()
    yield RaggedBatch.build(
        [one.chunk(count, range(50, 50 + drafted)) for one, (count, drafted) in zip(sequences, WORK, strict=True)]
    )


BY_KERNELS = [family for family in tiny.FAMILIES if not missing_in_kernels(tiny.model(family).config)]


def test_what_the_kernels_lack_is_named():
    missing = {family: missing_in_kernels(tiny.model(family).config) for family in tiny.FAMILIES}
    assert not any(missing[name] for name in ("llama", "qwen2", "qwen3", "mistral", "smollm3", "yarn rope"))
    assert missing["mistral, with a window"] == ["sliding windows"]
    assert missing["granite"] == [
        "another scale of scores than 1 / √D",
        "multipliers of embeddings, residuals and logits",
    ]
    assert all(missing[name] for name in ("olmo2", "olmo3", "phi3", "gemma3_text"))


@pytest.mark.parametrize("family, padded", [*((family, True) for family in BY_KERNELS), ("llama", False)])
def test_the_layers_by_kernels_equal_the_models(family, padded):
    reference, model = models(family)
    pools = pool_of(reference), pool_of(model)
    for theirs, ours in zip(batches(pools[0]), batches(pools[1]), strict=True):
        expected = reference.forward(theirs, TorchAttention(pools[0], theirs))
        shape = Shape.of(ours, model, multiprocessors=4)
        if not padded:
            exact = len(ours.token_ids), len(ours.context_len), int(ours.query_start.diff().max())
            shape = Shape(*exact, splits=1)
        flat = pack_inputs(ours, shape, pages=16).to(DEVICE)
        x = hidden_states(model, pools[1], input_views(flat, shape, 16), gpu_kernels(shape))
        logits = model.lm_head(x[ours.logit_rows.to(DEVICE)]).cpu()
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


def test_small_batches_are_padded_to_few_shapes_and_large_batches_are_not_padded():
    _, model = models("llama")
    pool = pool_of(model, num_pages=256)
    shapes = set()
    for sequences in range(1, 17):
        batch = RaggedBatch.build([_started(pool, 4).chunk(1) for _ in range(sequences)])
        shapes.add(Shape.of(batch, model, multiprocessors=132))
    assert {shape[:3] for shape in shapes} == {(n, n, 1) for n in (1, 2, 4, 8, 16)}
    large = Shape.of(RaggedBatch.build([_started(pool, 300).chunk(300)]), model, multiprocessors=132)
    assert (large.tokens, large.sequences, large.max_queries) == (300, 1, 512)


def _started(pool, tokens):
    sequence = Sequence(pool)
    sequence.log += range(3, 3 + tokens) if tokens < 200 else [5] * tokens
    return sequence


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs need a GPU")
def test_graphs_compute_the_models_logits_and_are_captured_once():
    reference, model = models("llama")
    pools = pool_of(reference), pool_of(model)
    runner = GpuRunner(model, pools[1])
    captured = []
    for _ in range(2):
        for theirs, ours in zip(batches(pools[0]), batches(pools[1]), strict=True):
            expected = reference.forward(theirs, TorchAttention(pools[0], theirs))
            torch.testing.assert_close(runner.logits(ours).cpu(), expected, atol=2e-5, rtol=2e-5)
        captured.append(list(runner.graphs))
    assert captured[0] == captured[1]


@pytest.mark.skipif(DEVICE == "cpu", reason="graphs need a GPU")
def test_a_graph_still_works_after_others_are_dropped(monkeypatch):
    """Graphs of another runner, whose memory is then freed, and the least recently used graphs of the same runner."""
    monkeypatch.setattr("minstate.gpu.MAX_GRAPHS", 2)
    reference, model = models("llama")
    pools = pool_of(reference), pool_of(model)
    theirs, ours = (RaggedBatch.build([_started(pool, 1 + i).chunk(1 + i) for i in range(4)]) for pool in pools)
    expected = reference.forward(theirs, TorchAttention(pools[0], theirs))
    other, runner = (GpuRunner(model, pools[1]) for _ in range(2))
    for each in (other, runner):
        torch.testing.assert_close(each.logits(ours).cpu(), expected, atol=2e-5, rtol=2e-5)
    del other, each
    for place in (0, 1, 3):
        torch.cuda.empty_cache()
        runner.logits(ours.alone(place))
        torch.testing.assert_close(runner.logits(ours).cpu(), expected, atol=2e-5, rtol=2e-5)
    assert len(runner.graphs) == 2
