"""Solutions to the exercises of 01 · Prefill, decode, and the KV cache. Each section runs behind the cell it names."""


# %% kv-cache-20: how many cells change?
# In layer 0 only the changed tokens themselves change. In every other layer all tokens from the first change on do.
def changed_cells(layers: int, tokens: int, places: list[int]) -> int:
    if not places:
        return 0
    return len(set(places)) + (layers - 1) * (tokens - min(places))


def cases(random):
    yield 30, 14, [8]
    yield 30, 14, [13]
    yield 30, 14, [0]
    yield 30, 14, []
    yield 1, 14, [3, 9]
    yield 12, 1, [0]
    yield 30, 14, [9, 2, 5]
    for _ in range(4):
        tokens = random.randint(2, 40)
        yield random.randint(1, 40), tokens, random.sample(range(tokens), random.randint(1, min(4, tokens)))


# %% rotate-by-hand: rotate by hand
# One angle for each pair, and the formula twice: once for the entry in the first half, once for its partner.
def rotated(x: list[float], position: int, theta: float) -> list[float]:
    import math

    half = len(x) // 2
    y = [0.0] * len(x)
    for d in range(half):
        angle = position * theta ** (-2 * d / len(x))
        y[d] = x[d] * math.cos(angle) - x[d + half] * math.sin(angle)
        y[d + half] = x[d + half] * math.cos(angle) + x[d] * math.sin(angle)
    return y


def cases(random):
    yield [1.0, 0.0, 0.0, 0.0], 1, 10_000.0
    yield [1.0, 2.0], 3, 10_000.0
    yield [1.0, -2.0, 0.5, 3.0], 0, 10_000.0
    yield [], 5, 10_000.0
    for pairs in (2, 3, 4, 8):
        x = [round(random.uniform(-2, 2), 3) for _ in range(2 * pairs)]
        yield x, random.randint(1, 60), random.choice([100.0, 10_000.0, 100_000.0])


# %% kv-cache-51: where is the border?
# Each weight costs `number_bytes` bytes once, and 2 FLOPs for each token, so T tokens have 2 T / number_bytes FLOPs per
# byte. Arithmetic takes longer as soon as that is more than the ridge, flops_per_s / bytes_per_s. For an H100 in
# bfloat16 the border is at 295 tokens: a pass of fewer does not use its arithmetic up.
def border(flops_per_s: float, bytes_per_s: float, number_bytes: float) -> float:
    ridge = flops_per_s / bytes_per_s
    return ridge * number_bytes / 2


def cases(random):
    yield 80e9, 16e9, 4
    yield 80e9, 16e9, 2
    yield 989e12, 3.35e12, 2
    yield 989e12, 3.35e12, 0.5
    for _ in range(5):
        yield random.randint(10, 900) * 1e9, random.randint(5, 300) * 1e9, random.choice([0.5, 1, 2, 4])


# %% kv-cache-62: how many agents fit?
# A token leaves a key and a value in each layer and for each key head. The heads of the queries play no part: a query
# is used once, and not kept. Only whole conversations count.
def agents_that_fit(memory, tokens, layers, kv_heads, head_dim, number_bytes):
    per_token = 2 * layers * kv_heads * head_dim * number_bytes
    return memory // (tokens * per_token)


def cases(random):
    yield 1_000_000_000, 4_000, 30, 3, 64, 4
    yield 60_000_000_000, 8_192, 32, 8, 128, 2  # the shape of a Llama 3 8B in bfloat16
    yield 60_000_000_000, 131_072, 32, 8, 128, 2
    yield 1_000, 10, 2, 1, 4, 2
    yield 320, 10, 2, 1, 4, 2
    for _ in range(5):
        shape = random.randint(2, 80), random.choice([1, 2, 8]), random.choice([64, 128]), random.choice([1, 2, 4])
        yield random.randint(1, 80) * 10**9, random.randint(500, 200_000), *shape
