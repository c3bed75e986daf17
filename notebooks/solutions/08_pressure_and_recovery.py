"""Solutions to the exercises of 08 · Pressure and recovery. Each section runs behind the cell it names."""


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


# %% pressure-54: what is left behind
# A page should occur exactly once, in `free` or in one of the lists of `held`. Never is lost, more than once is twice.
def recount(num_pages: int, free: list[int], held: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    everywhere = [*free, *(page for pages in held.values() for page in pages)]
    times = [everywhere.count(page) for page in range(num_pages)]
    lost = [page for page in range(num_pages) if times[page] == 0]
    twice = [page for page in range(num_pages) if times[page] > 1]
    return lost, twice


# %% pressure-64: a test that catches a leak
# The second send asks whether anything is ever found, and the third whether it is found where it must not be. Without
# the second one, an engine that shares nothing would pass for one that keeps tenants apart.
def isolation(name: str) -> str:
    engine = make(name)
    prompt = {"token_ids": some_ids(80, "a secret"), "max_new_tokens": 1}
    engine.open(tenant="one").send(**prompt)
    within = engine.open(tenant="one").send(**prompt).stats.shared
    across = engine.open(tenant="other").send(**prompt).stats.shared
    if within == 0:
        return "proves nothing"
    return "leaks" if across else "isolated"
