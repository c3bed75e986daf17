"""Solutions to the exercises of 10 · The claims. Each section runs behind the cell it names."""


# %% headline-27: Amdahl
# Each part of the old time is divided by its own factor. The part that gets no faster sets the limit: with `others`
# alone left, no session and no cache gets beyond (first + others) / others.
def times_as_fast(first: float, others: float, n: int, delta: int, a_pass: float) -> float:
    return (first + others) / (first * delta / n + others / a_pass)


def cases(random):
    yield 6.0, 4.0, 3000, 300, 1.0
    yield 6.0, 4.0, 3000, 3000, 1.0  # nothing is old
    yield 9.0, 0.0, 8000, 80, 1.0  # no answer: the ratio of tokens
    yield 0.0, 5.0, 8000, 80, 3.0  # no prompt: the drafts alone
    for _ in range(6):
        n = random.randrange(100, 10_000)
        yield random.uniform(1, 50), random.uniform(1, 10), n, random.randrange(1, n), random.choice([1.0, 1.5, 2.9])


# %% headline-ex2: one race, three headlines
# The wall time weighs each second, the median of quotients each turn. The last factor compares two turns that may have
# nothing to do with each other. All three are "times faster", so a headline has to say which one it is.
def headlines(theirs: list[float], ours: list[float]) -> list[float]:
    def median(numbers: list[float]) -> float:
        ordered, half = sorted(numbers), len(numbers) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2

    quotients = [a / b for a, b in zip(theirs, ours, strict=True)]
    return [sum(theirs) / sum(ours), median(quotients), median(theirs) / median(ours)]


def cases(random):
    yield [3.0], [2.0]
    yield [2.0, 8.0], [1.0, 2.0]  # an even number of turns
    yield [1.0, 1.0, 30.0], [2.0, 2.0, 3.0]  # slower in the median turn, and faster in all
    for count in (3, 4, 5, 6, 7, 12):
        yield [random.uniform(1, 40) for _ in range(count)], [random.uniform(0.5, 9) for _ in range(count)]


# %% headline-ex3: from which length on?
# The gain rises with n as long as prompts are what grows; but t_next grows with n as well, in both turns alike, so look
# at every n rather than trust that it only rises.
def from_which_length(c: list[float], delta: int, tokens: int, times: float) -> int | None:
    def turn_s(n: int, p: int) -> float:
        first = c[0] + c[1] * p + c[2] * (p * (n - p) + p * (p + 1) / 2)
        return first + (tokens - 1) * (c[3] + c[4] * n)

    for n in range(delta, 200_001):
        if turn_s(n, n) >= times * turn_s(n, delta):
            return n
    return None


def cases(random):
    yield [0.0, 1.0, 0.0, 0.0, 0.0], 70, 1, 3.0  # tokens alone: the ratio itself
    yield [0.1, 2.0**-9, 0.0, 0.05, 0.0], 100, 50, 1.0  # as fast is enough: at once
    yield [0.1, 0.0, 0.0, 0.05, 0.0], 100, 50, 1.5  # prompts cost nothing: never
    yield [0.0, 0.001, 0.0, 0.0, 0.001], 100, 2, 2.5  # each answer reads all keys: never
    for times in (1.3, 2.0, 4.0, 8.0):
        c2, c4 = random.choice([0.0, 3.1e-7]), random.choice([0.0, 1.1e-5])
        c = [random.uniform(0.05, 0.3), random.uniform(0.001, 0.004), c2, random.uniform(0.02, 0.09), c4]
        yield c, random.randrange(50, 400), random.randrange(1, 120), times
