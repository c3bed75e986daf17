"""Solutions to the exercises of 11 · Trust. Each section runs behind the cell it names."""


# %% trust-17: what is left behind
# A page should occur exactly once, in `free` or in one of the lists of `held`. Never is lost, more than once is twice.
def recount(num_pages: int, free: list[int], held: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    everywhere = [*free, *(page for pages in held.values() for page in pages)]
    times = [everywhere.count(page) for page in range(num_pages)]
    lost = [page for page in range(num_pages) if times[page] == 0]
    twice = [page for page in range(num_pages) if times[page] > 1]
    return lost, twice


# %% trust-27: a test that catches a leak
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
