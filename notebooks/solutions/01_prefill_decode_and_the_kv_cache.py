"""Solutions to the exercises of 01 · Prefill, decode, and the KV cache. Each section runs behind the cell it names."""


# %% kv-cache-20: how much may be kept?
# Keys and values depend on all that stands before them, so they may be kept up to the first difference. And the last
# token of `new` is never kept, since its logits are wanted.
def kept(old: list[int], new: list[int]) -> int:
    count = 0
    while count < min(len(old), len(new)) and old[count] == new[count]:
        count += 1
    return min(count, len(new) - 1)


# %% kv-cache-51: where is the border?
# Each weight costs `number_bytes` bytes once, and 2 FLOPs for each token, so T tokens have 2 T / number_bytes FLOPs per
# byte. Arithmetic takes longer as soon as that is more than the ridge, flops_per_s / bytes_per_s.
def border(flops_per_s: float, bytes_per_s: float, number_bytes: int) -> float:
    ridge = flops_per_s / bytes_per_s
    return ridge * number_bytes / 2


# %% kv-cache-62: how many agents fit?
# A token leaves a key and a value in each layer and for each key head. The heads of the queries play no part: a query
# is used once, and not kept.
def agents_that_fit(memory, tokens, layers, kv_heads, head_dim, number_bytes):
    per_token = 2 * layers * kv_heads * head_dim * number_bytes
    return memory // (tokens * per_token)
