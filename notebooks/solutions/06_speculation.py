"""Solutions to the exercises of 06 · Speculation. Each section runs behind the cell it names."""


# %% speculation-45: Expected tokens
# One token is generated in any case. Each guess adds the chance that it and all before it are right.
def expected_tokens(chances: list[float]) -> float:
    total, all_right = 1.0, 1.0
    for chance in chances:
        all_right *= chance
        total += all_right
    return total


def cases(random):
    yield ([],)
    yield ([0.5],)
    yield ([0.8, 0.9, 1.0],)
    yield ([0.0, 1.0, 1.0],)  # nothing behind a wrong guess counts
    yield ([1.0, 1.0, 1.0],)
    for length in (2, 5, 9, 16):
        yield ([round(random.random(), 3) for _ in range(length)],)


# %% speculation-79: How much to draft
# `max` takes the first of equally good numbers, which is the smallest. One may not stop at the first guess that does
# not pay: in the fourth case it takes all three to make up for the step in the costs.
def best_draft(chances: list[float], costs: list[float]) -> int:
    def tokens_per_millisecond(count):
        expected, all_right = 1.0, 1.0
        for chance in chances[:count]:
            all_right *= chance
            expected += all_right
        return expected / costs[count]

    return max(range(len(chances) + 1), key=tokens_per_millisecond)


def cases(random):
    yield [0.9, 0.9, 0.9], [50, 52, 54, 56]
    yield [0.9, 0.3, 0.9], [50, 52, 70, 90]
    yield [0.2, 0.9, 0.9], [50, 75, 90, 95]
    yield [0.6, 0.9, 0.9], [40, 70, 71, 72]
    yield [1.0, 1.0], [50, 100, 150]  # all equally good
    yield [], [50]
    for _ in range(6):
        length = random.randint(3, 8)
        costs = [40]
        for _ in range(length):
            costs.append(costs[-1] + random.randint(1, 30))
        yield [round(random.uniform(0.3, 1), 2) for _ in range(length)], costs


# %% speculation-residual: A draft with a distribution
# A guess x is drawn with q(x) and stays with min(1, p(x) / q(x)), together min(p(x), q(x)). What is missing to p is
# max(0, p(x) - q(x)), and it adds up to the probability of a rejection.
def speculative_sampling(p: list[float], q: list[float]) -> tuple[float, list[float]]:
    accepted = sum(min(a, b) for a, b in zip(p, q, strict=True))
    missing = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    total = sum(missing)
    return accepted, [each / total if total else 0.0 for each in missing]


def cases(random):
    yield [0.5, 0.5], [1.0, 0.0]
    yield [0.5, 0.5], [0.5, 0.5]
    yield [0.25, 0.75], [0.75, 0.25]
    yield [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]  # every guess is rejected
    yield [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]  # our own drafts: a single token
    yield [0.125, 0.125, 0.25, 0.5], [0.5, 0.25, 0.125, 0.125]
    for size in (3, 5, 8):
        p, q = ([random.randint(0, 8) for _ in range(size)] for _ in range(2))
        yield [each / (sum(p) or 1) for each in p], [each / (sum(q) or 1) for each in q]
