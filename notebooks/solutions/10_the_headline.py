"""Solutions to the exercises of 10 · The headline. Each section runs behind the cell it names."""


# %% headline-27: Amdahl
# Each part of the old time is divided by its own factor. The part that gets no faster sets the limit: with `others`
# alone left, no session and no cache gets beyond (first + others) / others.
def times_faster(first: float, others: float, n: int, delta: int, a_pass: float) -> float:
    return (first + others) / (first * delta / n + others / a_pass)


# %% headline-48: all orders
# In each order a player adds what the set is worth with him, less what it was worth before he came. Two who can replace
# each other add the whole in half of the orders and nothing in the other half; and so do two who need each other.
def fair_shares(players: list[str], worth: dict) -> list[float]:
    added = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            added[player] += worth[frozenset(order[: place + 1])] - worth[frozenset(order[:place])]
    return [added[player] / len(orders) for player in players]


# %% headline-74: how long to keep it
# Kept for t seconds, the K/V cost their share of the memory times t, in seconds of the GPU. That equals what computing
# them again costs where t = again_s / share. The longer the session, the larger its share; but again_s grows faster.
def worth_keeping_s(n: int, kv_bytes: int, room: float, again_s: float) -> float:
    return again_s * room / (n * kv_bytes)


# %% headline-83: a router
# At home only delta tokens are to be computed. Elsewhere the old ones must be fetched or computed too, so another
# machine has to be emptier by at least that much. Of equally good ways, to stay is the first.
def route(n, delta, waits, home, token_s, kv_bytes, bytes_per_s) -> tuple[int, str]:
    ways = [(waits[home] + delta * token_s, home, "stay")]
    for machine, wait in enumerate(waits):
        if machine != home:
            ways.append((wait + n * kv_bytes / bytes_per_s + delta * token_s, machine, "move"))
            ways.append((wait + n * token_s, machine, "compute again"))
    _, machine, what = min(ways, key=lambda way: way[0])
    return machine, what
