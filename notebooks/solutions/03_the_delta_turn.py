"""Solutions to the exercises of 03 · The delta turn. Each section runs behind the cell it names."""


# %% delta-turn-22: keep the books
# Before the first turn the log is empty, and the opening is part of what comes in. Later, what comes in begins with
# the closing of the last answer: the line break behind its <|im_end|>, or both, if the answer was cut off.
def books(opening: int, turns: list[tuple[int, int, bool]]) -> list[tuple[int, int]]:
    log, closing, rows = 0, opening, []
    for new, generated, stopped in turns:
        context, prompt = max(0, log - 1), log + closing + new  # the last token of the log was never forwarded
        rows.append((context, prompt - context))
        log, closing = prompt + generated, 1 if stopped else 2
    return rows


def cases(random):
    yield 11, [(16, 8, True), (13, 5, False), (13, 8, True)]
    yield 11, [(16, 8, True)]
    yield 500, [(90, 20, True), (300, 20, True), (400, 20, True)]
    yield 0, []
    yield 0, [(10, 1, False), (10, 1, True), (10, 1, False)]
    for _ in range(5):
        turns = [(random.randint(5, 400), random.randint(1, 90), random.random() < 0.7) for _ in range(6)]
        yield random.randint(0, 600), turns


# %% delta-turn-35: share the budget
# Sorting by "is it a prefill?" puts decodes in front, and keeps the order of arrival otherwise, since Python's sort is
# stable. Then each takes what it lacks, or what is left.
def share(remaining: list[int], budget: int) -> list[int]:
    given = [0] * len(remaining)
    for turn in sorted(range(len(remaining)), key=lambda turn: remaining[turn] > 1):
        given[turn] = min(remaining[turn], budget)
        budget -= given[turn]
    return given


def cases(random):
    yield [1, 300], 32
    yield [300, 1, 1, 40], 32
    yield [10, 10, 10], 32
    yield [20, 1, 20, 20], 32
    yield [1, 1, 1], 2
    yield [], 32
    yield [5, 1], 1
    for _ in range(5):
        remaining = [random.choice([1, 1, random.randint(2, 90)]) for _ in range(random.randint(1, 9))]
        yield remaining, random.choice([4, 16, 32, 64])


# %% delta-turn-51: when does it pay?
# The summary pays at the first pass at which `passes * saved > spent`: equal is not yet fewer. Where the summary is no
# shorter than what it replaces, nothing is saved, and it never pays.
def passes_until_it_pays(weights: int, kv: int, n: int, kept: int, s: int) -> int | None:
    spent = s * (weights + kv * n)
    saved = kv * (n - kept - s)
    return spent // saved + 1 if saved > 0 else None


def cases(random):
    yield 538_000_000, 46_080, 4_000, 700, 100
    yield 16_000_000_000, 131_072, 100_000, 3_000, 500  # the shape of a Llama 3 8B in bfloat16
    yield 1_000, 10, 100, 40, 10
    yield 1_000, 10, 100, 40, 60
    yield 1_000, 10, 100, 40, 80
    yield 1_000, 10, 100, 40, 0
    for _ in range(5):
        n = random.randint(500, 100_000)
        kept, s = random.randint(0, n // 2), random.randint(20, n // 3)
        yield random.randint(1, 16) * 10**9, random.choice([46_080, 131_072]), n, kept, s
