"""Solutions to the exercises of 12 · Machines and money. Each section runs behind the cell it names."""


# %% headline-74: how long to keep it
# Kept for t seconds, the K/V cost their share of the memory times t, in seconds of the GPU. That equals what computing
# them again costs where t = again_s / share. The longer the session, the larger its share; but again_s grows faster.
def worth_keeping_s(n: int, kv_bytes: int, room: float, again_s: float) -> float:
    return again_s * room / (n * kv_bytes)


def cases(random):
    yield 1_000, 1_000, 1e6, 2.5  # the session fills all the room
    yield 1_000, 1_000, 10e6, 0.0  # computing costs nothing
    for _ in range(8):
        n, kv_bytes = random.randrange(500, 150_000), random.choice([23_040, 131_072, 327_680])
        yield n, kv_bytes, random.uniform(2e10, 2e11), random.uniform(0.01, 12)


# %% headline-83: a router
# At home only delta tokens are to be computed. Elsewhere the old ones must be fetched or computed too, so another
# machine has to be emptier by at least that much.
def route(n, delta, waits, home, token_s, kv_bytes, bytes_per_s) -> list:
    ways = [(waits[home] + delta * token_s, home, "stay")]
    for machine, wait in enumerate(waits):
        if machine != home:
            ways.append((wait + (n - delta) * kv_bytes / bytes_per_s + delta * token_s, machine, "move"))
            ways.append((wait + n * token_s, machine, "compute again"))
    _, machine, how = min(ways, key=lambda way: way[0])
    return [machine, how]


def cases(random):
    yield 8_000, 200, [0.0, 0.0], 0, 25e-6, 131_072, 10e9
    yield 8_000, 200, [1.0, 0.0], 0, 25e-6, 131_072, 2.5e9  # a slow link
    yield 8_000, 200, [0.05, 0.0], 0, 25e-6, 131_072, 10e9  # a short wait
    yield 8_000, 200, [0.0, 5.0, 0.3], 1, 25e-6, 131_072, 10e9
    yield 8_000, 8_000, [0.4, 0.3, 0.1], 0, 25e-6, 131_072, 1e9  # nothing to fetch: wherever it is emptiest
    yield 8_000, 200, [3.0], 0, 25e-6, 131_072, 10e9  # nowhere else to go
    for _ in range(8):
        n, machines = random.randrange(1_000, 60_000), random.randrange(2, 6)
        waits = [round(random.uniform(0, 2), 3) for _ in range(machines)]
        delta, home, rate = random.randrange(1, n), random.randrange(machines), random.choice([1e9, 3e9, 10e9, 40e9])
        yield n, delta, waits, home, 25e-6, 131_072, rate
