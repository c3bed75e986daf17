"""Solutions to the exercises of 08 · Pressure and tiers. Each section runs behind the cell it names."""


# %% pressure-17: admission
# Two sums of the same form. What a turn could ever need must fit into the whole pool; what it is promised now must fit
# into what is available. The last new token is never forwarded, so it needs no slot in either.
def admission(prompt: int, max_new_tokens: int, page_size: int, num_pages: int, available: int) -> str:
    def pages(tokens):
        return -(-tokens // page_size)  # rounded up

    if pages(prompt + max_new_tokens - 1) > num_pages:
        return "refused"
    return "runs" if pages(prompt + min(64, max_new_tokens - 1)) <= available else "waits"


# %% pressure-38: the victim
# Whoever is late is treated as if nobody expected him. As long as there is anybody of that kind, the one used longest
# ago goes; otherwise the one who will be back last, since his pages would be idle for longest.
def victim(idle: list[tuple[str, float, float | None]], now: float) -> str:
    unexpected = [(last_used, name) for name, last_used, back in idle if back is None or back <= now]
    if unexpected:
        return min(unexpected)[1]
    return max(idle, key=lambda each: each[2])[0]


# %% pressure-47: how much to move
# Reading a page costs the same wherever it lies in its run, and so does computing it: whole runs are moved, or not.
def moved(runs: list[tuple[int, float]], page_ms: float) -> int:
    pages = 0
    for count, read_ms in runs:
        if read_ms >= page_ms:
            break
        pages += count
    return pages


# %% pressure-8bits-09: eight bits by hand
# The largest number becomes 127, so the scale is its 127th part.
def in_eight_bits(x: list[float]) -> tuple[list[int], float]:
    scale = max(map(abs, x)) / 127
    return [round(each / scale) if scale else 0 for each in x], scale
