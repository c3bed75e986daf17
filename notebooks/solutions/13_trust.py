"""Solutions to the exercises of 13 · Trust. Each section runs behind the cell it names."""


# %% trust-17: what is left behind
# A page should occur exactly once, in `free` or in one of the lists of `held`. Never is lost, more than once is twice.
def recount(num_pages: int, free: list[int], held: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    everywhere = [*free, *(page for pages in held.values() for page in pages)]
    times = [everywhere.count(page) for page in range(num_pages)]
    lost = [page for page in range(num_pages) if times[page] == 0]
    twice = [page for page in range(num_pages) if times[page] > 1]
    return lost, twice


def cases(random):
    yield 6, [4, 5], {"a": [0, 1], "b": [2, 3]}  # sound
    yield 6, [4, 5], {"a": [0, 1], "b": []}  # an exception between taking and noting
    yield 6, [4, 5, 2, 3], {"a": [0, 1], "b": [2, 3]}  # given back, and still noted
    yield 6, [4, 5], {"a": [0, 1, 2], "b": [2, 3]}  # noted for two sessions
    yield 2, [0, 0, 1], {}  # freed twice
    yield 3, [], {}
    for _ in range(8):
        pages = random.sample(range(12), k=random.randint(8, 12)) + random.sample(range(12), k=random.randint(0, 3))
        held: dict = {name: [] for name in "abc"}
        free: list = []
        for page in pages:
            random.choice([free, *held.values()]).append(page)
        yield 12, free, held


# %% trust-27: a test that catches a leak
# The second send asks whether anything is ever found, and the third whether it is found where it must not be. Without
# the second one, an engine that shares nothing would pass for one that keeps tenants apart.
def isolation(engine: Engine) -> str:
    prompt = {"token_ids": some_ids(80, "a secret"), "max_new_tokens": 1}
    engine.open(tenant="one").send(**prompt)
    within = engine.open(tenant="one").send(**prompt).stats.shared
    across = engine.open(tenant="other").send(**prompt).stats.shared
    if within == 0:
        return "proves nothing"
    return "leaks" if across else "isolated"
