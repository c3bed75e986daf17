# ruff: noqa: D100, F821, PIE790


# ---- Step 1: a cache that grows
class Cache:
    """K and V of a text's first `length` tokens: kv [layers, 2, capacity, H_kv, D]. Other rows mean nothing."""

    def __init__(self, model, capacity=16):
        shape = (model.num_layers, 2, capacity, model.num_kv_heads, model.head_dim)
        self.kv, self.length = torch.empty(shape, dtype=model.dtype), 0

    def extend(self, layer, k, v):
        """Write k and v [T, H_kv, D] of T new tokens behind `length`. Returns K and V of all: [2, length + T, H_kv, D].
        Where there is no room, `kv` becomes one of twice the capacity or more. `length` stays, for the next layer."""
        ...

    def truncate(self, length):
        """Forget the tokens from position `length` on."""
        ...


def attention(q, k, v):
    """What the last T of n tokens read: q [T, H, D], k and v [n, H_kv, D] → [T, H, D].
    A token reads itself and all earlier ones. H / H_kv neighbouring query heads read the same head of K and V."""
    ...


@torch.inference_mode()
def forward(model, ids, cache):
    """The last layer's output [T, hidden] for the new tokens `ids`. The cache then has their K and V in all layers."""
    ...
