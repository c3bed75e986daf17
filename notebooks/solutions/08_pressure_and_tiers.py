"""Solutions to the exercises of 08 · Pressure and tiers. Each section runs behind the cell it names."""


# %% pressure-17: admission
# Two sums of the same form. What a turn could ever need must fit into the whole pool; what it is promised must fit into
# what is available. The last new token is never forwarded, so it needs no slot in either.
def admission(prompt: int, max_new_tokens: int, page_size: int, num_pages: int, available: int) -> str:
    def pages(tokens):
        return -(-tokens // page_size)  # rounded up

    if pages(prompt + max_new_tokens - 1) > num_pages:
        return "refused"
    return "runs" if pages(prompt + min(64, max_new_tokens - 1)) <= available else "waits"


def cases(random):
    yield from [(35, 7, 4, 10, 10), (35, 6, 4, 10, 10), (35, 6, 4, 10, 9), (16, 1, 16, 1, 1)]
    yield from [(1000, 1000, 16, 126, 67), (1000, 1000, 16, 126, 66), (1000, 1000, 16, 124, 124), (1, 65, 1, 65, 64)]
    for _ in range(12):
        page_size, num_pages = random.choice([1, 4, 16]), random.randint(1, 40)
        prompt, new = random.randint(1, page_size * num_pages), random.randint(1, 100)
        yield prompt, new, page_size, num_pages, random.randint(0, num_pages)


# %% pressure-38: the victim
# A session that is late is treated as if it had given no hint. As long as there is any session without a valid hint,
# the one used longest ago goes. Otherwise the one that will be back last goes, since its pages would be idle longest.
def victim(idle: list, now: float) -> str:
    unexpected = [(last_used, name) for name, last_used, back in idle if back is None or back <= now]
    if unexpected:
        return min(unexpected)[1]
    return max(idle, key=lambda each: each[2])[0]


def cases(random):
    yield [["a", 3, None], ["b", 1, None], ["c", 2, None]], 5
    yield [["a", 3, None], ["b", 1, 9], ["c", 2, 7]], 5
    for now in (5, 8, 12):
        yield [["a", 3, 6], ["b", 1, 9], ["c", 2, 7]], now
    yield [["a", 3, None], ["b", 1, 9], ["c", 2, 7]], 8
    for _ in range(10):
        names = list("abcdefg")[: random.randint(1, 7)]
        used, back = random.sample(range(20), len(names)), random.sample(range(10, 40), len(names))
        yield [[name, u, random.choice([None, b])] for name, u, b in zip(names, used, back, strict=True)], 20


# %% pressure-47: how much to move
# Reading a page costs the same wherever it lies in its run, and so does computing it: whole runs are moved, or not.
def moved(runs: list, page_ms: float) -> int:
    pages = 0
    for count, read_ms in runs:
        if read_ms >= page_ms:
            break
        pages += count
    return pages


def cases(random):
    yield [[4, 0.2], [3, 1.5]], 40.0
    yield [[4, 0.2], [3, 1.5]], 1.0
    yield [[4, 2.0], [3, 0.1]], 1.0
    yield [], 1.0
    yield [[4, 1.0]], 1.0
    for _ in range(8):
        yield [[random.randint(1, 9), random.choice([0.1, 0.5, 1.5, 3.0])] for _ in range(random.randint(1, 6))], 2.0


# %% pressure-8bits-09: eight bits by hand
# The largest number becomes 127, so the scale is its 127th part.
def in_eight_bits(x: list[float]) -> tuple[list[int], float]:
    scale = max(map(abs, x)) / 127
    return [round(each / scale) if scale else 0 for each in x], scale


def cases(random):
    for x in ([127.0, -1.0, 0.4], [0.0, 254.0, -3.2], [0.0, 0.0], [-5.0], [1e-3, -2e-3, 5e-4]):
        yield (x,)
    for _ in range(8):
        yield ([random.uniform(-10, 10) for _ in range(random.randint(1, 12))],)
