"""The transformer that you start from. It works, and it keeps nothing: each new token forwards the whole text again.

A layer does its work in two halves, because attention stands between them, and attention is what you will rewrite:

    x ── qkv ──▶ q, k, v ── attention ──▶ attended ── finish ──▶ x
    [T, hidden]  [T, H, D], twice [T, H_kv, D]   [T, H, D]       [T, hidden]
"""

import torch
import torch.nn.functional as F


class Transformer:
    """A decoder of Llama's shape. It counts what goes through it: `tokens` that were embedded, in so many `passes`."""

    def __init__(self, config, weights):
        self.config, self.weights, self.dtype = config, weights, weights["model.norm.weight"].dtype
        self.num_layers, self.head_dim = config.num_layers, config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.tokens = self.passes = 0

    def embed(self, ids: list[int]) -> torch.Tensor:
        """A row for each token, [T, hidden]: where a forward pass begins."""
        self.tokens, self.passes = self.tokens + len(ids), self.passes + 1
        return self.weights["model.embed_tokens.weight"][ids]

    def qkv(self, layer: int, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q [T, H, D], k and v [T, H_kv, D]. q and k are rotated by the tokens' `positions` [T] in the text."""
        x = self._norm(x, f"layers.{layer}.input_layernorm")
        rows = (self._linear(layer, f"self_attn.{name}_proj", x) for name in "qkv")
        q, k, v = (row.unflatten(-1, (-1, self.head_dim)) for row in rows)
        return self._rotate(q, positions), self._rotate(k, positions), v

    def finish(self, layer: int, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output [T, hidden]: x, what attention has read [T, H, D], and what the MLP makes of both."""
        x = x + self._linear(layer, "self_attn.o_proj", attended.flatten(1))
        y = self._norm(x, f"layers.{layer}.post_attention_layernorm")
        gate, up = self._linear(layer, "mlp.gate_proj", y), self._linear(layer, "mlp.up_proj", y)
        return x + self._linear(layer, "mlp.down_proj", F.silu(gate) * up)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[R, vocab] for R rows of the last layer's output [R, hidden]: how likely each token is to come next."""
        return F.linear(self._norm(x, "norm"), self.weights["model.embed_tokens.weight"])

    def _linear(self, layer, name, x):
        return F.linear(x, self.weights[f"model.layers.{layer}.{name}.weight"])

    def _norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.weights[f"model.{name}.weight"], self.config.norm_eps)

    def _rotate(self, x, positions):
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        angles = positions[:, None].float() * (1.0 / self.config.ropes[0].theta ** exponents)
        cos, sin = angles.cos()[:, None].to(x), angles.sin()[:, None].to(x)
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[n, H, D]: each of n queries reads the keys and values of its own token and of all earlier ones."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))  # a row for each query head
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@torch.inference_mode()
def forward(model: Transformer, ids: list[int]) -> torch.Tensor:
    """The last layer's output for all tokens of a text, [n, hidden]."""
    positions = torch.arange(len(ids))
    x = model.embed(ids)
    for layer in range(model.num_layers):
        q, k, v = model.qkv(layer, x, positions)
        x = model.finish(layer, x, attention(q, k, v))
    return x


def generate(model: Transformer, ids: list[int], count: int) -> list[int]:
    """The `count` tokens that follow the text, each the most likely one."""
    ids, end = list(ids), len(ids) + count
    while len(ids) < end:
        x = forward(model, ids)
        ids.append(int(model.logits(x[-1:]).argmax()))
    return ids[-count:]
