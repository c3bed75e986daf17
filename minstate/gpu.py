"""A forward pass on a GPU: the layers of `Model.forward` by hand-written kernels, small batches as CUDA graphs.

A decode step of a small model is hundreds of short operations, and the host takes longer to start one than the GPU
takes to run it. A [CUDA graph](https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) starts them all with
one call. Its shapes and addresses are fixed. So a batch is padded to one of a few sizes, and copied into the graph's
inputs. The padding changes nothing:

    padding tokens     belong to no sequence, and their slot is −1, so their K/V is stored nowhere
    padding sequences  have no query token

A graph is captured when its shape first comes up. All graphs share one pool of memory; the least recently used are
dropped. The host waits for the GPU in one place only: where it reads the sampled tokens.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from minstate.kernel_layers import Inputs, Kernels, hidden_states
from minstate.kernels.append_kv import append_kv
from minstate.kernels.paged_attention import paged_attention
from minstate.kernels.rms_norm import rms_norm
from minstate.kernels.silu_mul import silu_mul
from minstate.kernels.tiles import busy_programs, split_count
from minstate.model import Model
from minstate.paged_kv import KVPool
from minstate.ragged_batch import RaggedBatch

MAX_GRAPH_TOKENS = 256  # in a batch of more tokens, arithmetic takes longer than the host takes to start it
MAX_GRAPHS = 64  # one sequence alone, with and without drafts, needs 48 up to a context of 32k tokens


class Shape(NamedTuple):
    """What a graph fixes, and what kernels are compiled for. Powers of 2: so few shapes serve all small batches."""

    tokens: int
    sequences: int
    max_queries: int  # query tokens of the sequence that has most
    splits: int  # parts into which the keys of each sequence are split

    @staticmethod
    def of(batch: RaggedBatch, model: Model, multiprocessors: int) -> "Shape":
        """The smallest shape that holds the batch; tokens and sequences of a large batch are not padded."""
        config = model.config
        tokens, sequences = len(batch.token_ids), len(batch.context_len)
        if tokens <= MAX_GRAPH_TOKENS:
            tokens, sequences = _power_of_2(tokens), _power_of_2(sequences)
        max_queries = _power_of_2(int(batch.query_start.diff().max()))
        q_shape = tokens, config.num_heads, config.head_dim
        programs = busy_programs(
            q_shape, model.dtype, config.num_kv_heads, sequences=sequences, max_queries=max_queries
        )
        splits = split_count(programs, int(batch.context_len.max()), multiprocessors)
        return Shape(tokens, sequences, max_queries, splits)


def input_sizes(shape: Shape, pages: int) -> list[int]:
    """How many numbers each part of the inputs has, if the page table has `pages` columns."""
    return [shape.tokens] * 3 + [shape.sequences + 1, shape.sequences, shape.sequences * pages]


def input_views(flat: torch.Tensor, shape: Shape, pages: int) -> Inputs:
    """The parts as views of one flat tensor. All are int32, so one copy moves them to the device together."""
    *parts, page_table = flat.split(input_sizes(shape, pages))
    return Inputs(*parts, page_table.view(shape.sequences, pages))


def pack_inputs(batch: RaggedBatch, shape: Shape, pages: int) -> torch.Tensor:
    """The batch, padded to a shape, as one flat tensor in the host's memory."""
    flat = torch.zeros(sum(input_sizes(shape, pages)), dtype=torch.int32)
    padded = input_views(flat, shape, pages)
    padded.slots.fill_(-1)
    padded.query_start.fill_(len(batch.token_ids))
    for name in ("token_ids", "positions", "slots", "query_start", "context_len"):
        values = getattr(batch, name)
        getattr(padded, name)[: len(values)] = values
    rows, columns = batch.page_table.shape
    padded.page_table[:rows, :columns] = batch.page_table
    return flat


def gpu_kernels(shape: Shape) -> Kernels:
    """The Triton kernels, with what a shape fixes of their launches."""
    attention = partial(paged_attention, max_queries=shape.max_queries, splits=shape.splits)
    return Kernels(rms_norm, append_kv, attention, silu_mul)


@dataclass
class Graph:
    """A captured forward pass, and the memory of its inputs and outputs."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor  # flat, as `pack_inputs` makes it
    logits: torch.Tensor  # [T, vocab]


class GpuRunner:
    """Forward passes of one model over one pool, both on the same GPU."""

    def __init__(self, model: Model, pool: KVPool):
        self.model, self.pool = model, pool
        self.device = pool.kv.device
        self.pages = -(-model.config.max_positions // pool.page_size)
        self.multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
        self.graphs: OrderedDict[Shape, Graph] = OrderedDict()  # most recently used last
        # cuBLAS has a workspace for each stream. When torch drops a graph, it frees the workspace of the stream where
        # the graph was captured, though other graphs still use it (pytorch/pytorch#193402). So we capture on a stream
        # where nothing else runs. Its workspace lies in the memory that our graphs share, which stays mapped as long
        # as one of them is left.
        self._memory, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)

    @torch.inference_mode()
    def logits(self, batch: RaggedBatch) -> torch.Tensor:
        """Logits `[R, vocab]` of the batch's `logit_rows`, on the device; valid until the next call."""
        shape = Shape.of(batch, self.model, self.multiprocessors)
        rows = batch.logit_rows.to(self.device, non_blocking=True)
        self.pool.make_copies()
        if shape.tokens > MAX_GRAPH_TOKENS:
            flat = pack_inputs(batch, shape, self.pages).pin_memory().to(self.device, non_blocking=True)
            x = hidden_states(self.model, self.pool, input_views(flat, shape, self.pages), gpu_kernels(shape))
            return self.model.lm_head(x[rows])
        graph = self.graphs[shape] = self.graphs.pop(shape, None) or self._capture(shape)
        if len(self.graphs) > MAX_GRAPHS:
            self.graphs.popitem(last=False)
        graph.inputs.copy_(pack_inputs(batch, shape, self.pages).pin_memory(), non_blocking=True)
        graph.graph.replay()
        return graph.logits[rows]

    def _capture(self, shape: Shape) -> Graph:
        """Capture a pass over nothing but padding.

        Two passes come before the capture: they compile the kernels, and let libraries allocate what they keep.
        """
        no_ids = torch.empty(0, dtype=torch.int64)
        empty = RaggedBatch(
            no_ids, no_ids, no_ids, torch.zeros(1, dtype=torch.int32), no_ids, torch.empty(0, 0), no_ids
        )
        inputs = pack_inputs(empty, shape, self.pages).to(self.device)
        views = input_views(inputs, shape, self.pages)

        def run() -> torch.Tensor:
            return self.model.lm_head(hidden_states(self.model, self.pool, views, gpu_kernels(shape)))

        for _ in range(2):
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            logits = run()
        return Graph(graph, inputs, logits)


def _power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()
