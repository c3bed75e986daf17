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
from typing import NamedTuple

import torch

from minstate.kernels.append_kv import append_kv
from minstate.kernels.paged_attention import paged_attention
from minstate.kernels.rms_norm import rms_norm
from minstate.kernels.silu_mul import silu_mul
from minstate.kernels.tiles import busy_programs, split_count
from minstate.model import Model
from minstate.model_config import ModelConfig
from minstate.model_families import Family
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


class Inputs(NamedTuple):
    """A `RaggedBatch` on the device, padded to a shape. All parts are int32, so one copy moves them together."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T], −1 for padding
    query_start: torch.Tensor  # [B + 1]
    context_len: torch.Tensor  # [B]
    page_table: torch.Tensor  # [B, P]

    @staticmethod
    def sizes(shape: Shape, pages: int) -> list[int]:
        """How many numbers each part has, if the page table has `pages` columns."""
        return [shape.tokens] * 3 + [shape.sequences + 1, shape.sequences, shape.sequences * pages]

    @staticmethod
    def views(flat: torch.Tensor, shape: Shape, pages: int) -> "Inputs":
        """Parts as views of one flat tensor."""
        *parts, page_table = flat.split(Inputs.sizes(shape, pages))
        return Inputs(*parts, page_table.view(shape.sequences, pages))

    @staticmethod
    def pack(batch: RaggedBatch, shape: Shape, pages: int) -> torch.Tensor:
        """The padded batch as one flat tensor in the host's memory."""
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


def missing_in_kernels(config: ModelConfig) -> list[str]:
    """What a model has that `hidden_states` does not compute: `Model.forward` then computes it, on the GPU too."""
    family, scales = config.family, (config.embedding_scale, config.residual_scale, config.logits_scale)
    return [
        feature
        for is_missing, feature in [
            (any(config.windows), "sliding windows"),
            (any(rope.dims < config.head_dim for rope in config.ropes), "heads that are rotated in part"),
            (family.norms != Family().norms or family.norm_offset, "norms elsewhere than before attention and MLP"),
            (family.qk_norm == "row", "norms over whole rows of heads"),
            (config.activation != "silu", config.activation),
            (config.attention_scale not in (None, config.head_dim**-0.5), "another scale of scores than 1 / √D"),
            (scales != (1, 1, 1), "multipliers of embeddings, residuals and logits"),
        ]
        if is_missing
    ]


@torch.inference_mode()
def hidden_states(model: Model, pool: KVPool, inputs: Inputs, shape: Shape) -> torch.Tensor:
    """The normalised hidden states `[T, hidden]` that `Model.forward` projects onto the vocabulary.

    Besides its four matrix products, a layer is five or six launches. Adding to the residual and taking the norm of the
    sum are one launch, so the residual is read and written only twice a layer.
    """
    config = model.config
    heads, kv_heads, eps = config.num_heads, config.num_kv_heads, config.norm_eps
    residual = model.embedding[inputs.token_ids]
    norms = [norm for layer in model.layers for norm in (layer.attention_norm, layer.mlp_norm) if norm is not None]
    x = rms_norm(residual, norms[0], eps)
    for i, (layer, mlp_norm, next_norm) in enumerate(
        zip(model.layers, norms[1::2], [*norms[2::2], model.norm], strict=True)
    ):
        qkv = layer.qkv(x).unflatten(-1, (-1, config.head_dim))
        if layer.head_norm is not None:
            qkv[:, : heads + kv_heads] = rms_norm(qkv[:, : heads + kv_heads], layer.head_norm, eps)
        q = append_kv(qkv, *model.rotary[layer.rotary], inputs.positions, inputs.slots, pool.kv[i])
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
        x = rms_norm(layer.out(out.flatten(1)), mlp_norm, eps, residual)
        x = rms_norm(layer.down(silu_mul(layer.gate_up(x))), next_norm, eps, residual)
    return x


@dataclass
class Graph:
    """A captured forward pass, and the memory of its inputs and outputs."""

    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor  # flat, as `Inputs.pack` makes it
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
            flat = Inputs.pack(batch, shape, self.pages).pin_memory().to(self.device, non_blocking=True)
            x = hidden_states(self.model, self.pool, Inputs.views(flat, shape, self.pages), shape)
            return self.model.lm_head(x[rows])
        graph = self.graphs[shape] = self.graphs.pop(shape, None) or self._capture(shape)
        if len(self.graphs) > MAX_GRAPHS:
            self.graphs.popitem(last=False)
        graph.inputs.copy_(Inputs.pack(batch, shape, self.pages).pin_memory(), non_blocking=True)
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
