"""A forward pass on a GPU: the layers of `Model.forward` by hand-written kernels, and small batches as CUDA graphs.

A decode step of a small model is hundreds of short operations, and starting one takes the host longer than the GPU
needs for it. A graph starts them all with one call. It holds fixed shapes and fixed addresses, so a batch is copied
into its inputs, padded to the next of a few sizes, and what is padding computes nothing that anyone reads:

    tokens     beyond the batch's own belong to no sequence, and their slot is −1: their K/V goes nowhere
    sequences  beyond the batch's own have no query token

Graphs are captured when a shape first comes up, and share one pool of memory; those least recently used are dropped.
Nothing waits for the GPU but who reads what was sampled.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch

from minstate.kernels.append_kv import append_kv
from minstate.kernels.paged_attention import paged_attention
from minstate.kernels.rms_norm import rms_norm
from minstate.kernels.silu_mul import silu_mul
from minstate.kernels.tiles import busy_programs, split_count
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch

MOST_TOKENS = 256  # of a batch that runs as a graph: beyond, arithmetic takes longer than starting it
MOST_GRAPHS = 64  # a lone sequence, with and without drafts, needs 48 up to a context of 32k


class Shape(NamedTuple):
    """What is fixed in a graph, and what kernels are compiled for. Powers of 2: few shapes serve all small batches."""

    tokens: int
    sequences: int
    max_queries: int  # tokens of the sequence that has most
    splits: int  # parts that each sequence's keys are cut into

    @staticmethod
    def of(batch: RaggedBatch, model: Model, multiprocessors: int) -> "Shape":
        """The smallest that holds the batch; a large batch is not padded."""
        config = model.config
        tokens, sequences = len(batch.token_ids), len(batch.context_len)
        if tokens <= MOST_TOKENS:
            tokens, sequences = _power_of_2(tokens), _power_of_2(sequences)
        max_queries = _power_of_2(int(batch.query_start.diff().max()))
        q_shape = tokens, config.num_heads, config.head_dim
        programs = busy_programs(
            q_shape, model.dtype, config.num_kv_heads, sequences=sequences, max_queries=max_queries
        )
        splits = split_count(programs, int(batch.context_len.max()), multiprocessors)
        return Shape(tokens, sequences, max_queries, splits)


class Inputs(NamedTuple):
    """A `RaggedBatch` on the device, padded to a shape; all of it int32, so that it is one copy."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T], −1 for padding
    query_start: torch.Tensor  # [B + 1]
    context_len: torch.Tensor  # [B]
    page_table: torch.Tensor  # [B, P]

    @staticmethod
    def sizes(shape: Shape, pages: int) -> list[int]:
        """Numbers in each of them, where a page table has `pages` columns."""
        return [shape.tokens] * 3 + [shape.sequences + 1, shape.sequences, shape.sequences * pages]

    @staticmethod
    def views(flat: torch.Tensor, shape: Shape, pages: int) -> "Inputs":
        """The parts of one flat tensor."""
        *parts, page_table = flat.split(Inputs.sizes(shape, pages))
        return Inputs(*parts, page_table.view(shape.sequences, pages))

    @staticmethod
    def pack(batch: RaggedBatch, shape: Shape, pages: int) -> torch.Tensor:
        """The batch as one flat tensor in the host's memory, padded."""
        flat = torch.zeros(sum(Inputs.sizes(shape, pages)), dtype=torch.int32)
        padded = Inputs.views(flat, shape, pages)
        padded.slots.fill_(-1)
        padded.query_start.fill_(len(batch.token_ids))
        for name in ("token_ids", "positions", "slots", "query_start", "context_len"):
            values = getattr(batch, name)
            getattr(padded, name)[: len(values)] = values
        rows, columns = batch.page_table.shape
        padded.page_table[:rows, :columns] = batch.page_table
        return flat


@torch.inference_mode()
def hidden_states(model: Model, pool: KVPool, inputs: Inputs, shape: Shape) -> torch.Tensor:
    """What `Model.forward` projects onto the vocabulary: `[T, hidden]`, normalised.

    Five or six launches a layer besides its four products. A sum and the norm behind it are one launch, so the
    residual is read and written twice a layer.
    """
    config = model.config
    heads, kv_heads, eps = config.num_heads, config.num_kv_heads, config.norm_eps
    residual = model.embedding[inputs.token_ids]
    x = rms_norm(residual, model.layers[0].attention_norm, eps)
    following = [layer.attention_norm for layer in model.layers[1:]] + [model.norm]
    for i, (layer, next_norm) in enumerate(zip(model.layers, following, strict=True)):
        qkv = layer.qkv(x).unflatten(-1, (-1, config.head_dim))
        if layer.head_norm is not None:
            qkv[:, : heads + kv_heads] = rms_norm(qkv[:, : heads + kv_heads], layer.head_norm, eps)
        q = append_kv(qkv, model.cos, model.sin, inputs.positions, inputs.slots, pool.kv[i])
        out = paged_attention(
            q,
            pool.kv[i],
            inputs.query_start,
            inputs.context_len,
            inputs.page_table,
            page_size=pool.page_size,
            max_queries=shape.max_queries,
            splits=shape.splits,
        )
        x = rms_norm(layer.out(out.flatten(1)), layer.mlp_norm, eps, residual)
        x = rms_norm(layer.down(silu_mul(layer.gate_up(x))), next_norm, eps, residual)
    return x


@dataclass
class Graph:
    """A captured pass, and where its inputs and outputs lie."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor  # flat
    logits: torch.Tensor  # [T, vocab]


class GpuRunner:
    """Forward passes of one model over one pool, both on the same GPU."""

    def __init__(self, model: Model, pool: KVPool):
        self.model, self.pool = model, pool
        self.device = pool.kv.device
        self.pages = -(-model.config.max_positions // pool.page_size)
        self.multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
        self.graphs: OrderedDict[Shape, Graph] = OrderedDict()  # the last used last
        # cuBLAS has a workspace for each stream. torch frees it when a graph that was captured there is dropped, though
        # other graphs go on using it (pytorch#193402). On a stream where our graphs are captured, and nothing else ever
        # runs, it lies in the memory that they share, which is not unmapped while one of them is left.
        self._memory, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)

    @torch.inference_mode()
    def logits(self, batch: RaggedBatch) -> torch.Tensor:
        """Logits `[R, vocab]` of the batch's `logit_rows`, on the device; valid until the next call."""
        shape = Shape.of(batch, self.model, self.multiprocessors)
        rows = batch.logit_rows.to(self.device, non_blocking=True)
        self.pool.make_copies()
        if shape.tokens > MOST_TOKENS:
            flat = Inputs.pack(batch, shape, self.pages).pin_memory().to(self.device, non_blocking=True)
            x = hidden_states(self.model, self.pool, Inputs.views(flat, shape, self.pages), shape)
            return self.model.lm_head(x[rows])
        graph = self.graphs[shape] = self.graphs.pop(shape, None) or self._capture(shape)
        if len(self.graphs) > MOST_GRAPHS:
            self.graphs.popitem(last=False)
        graph.inputs.copy_(Inputs.pack(batch, shape, self.pages).pin_memory(), non_blocking=True)
        graph.graph.replay()
        return graph.logits[rows]

    def _capture(self, shape: Shape) -> Graph:
        """Two passes beforehand compile the kernels, and let libraries allocate what they keep; all is padding."""
        nothing = torch.empty(0, dtype=torch.int64)
        empty = RaggedBatch(
            nothing, nothing, nothing, torch.zeros(1, dtype=torch.int32), nothing, torch.empty(0, 0), nothing
        )
        inputs = Inputs.pack(empty, shape, self.pages).to(self.device)
        views = Inputs.views(inputs, shape, self.pages)

        def run() -> torch.Tensor:
            return self.model.lm_head(hidden_states(self.model, self.pool, views, shape))

        for _ in range(2):
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            logits = run()
        return Graph(graph, inputs, logits)


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()
