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


# %% delta-turn-35: share the budget
# Sorting by "is it a prefill?" puts decodes in front, and keeps the order of arrival otherwise, since Python's sort is
# stable. Then each takes what it lacks, or what is left.
def share(remaining: list[int], budget: int) -> list[int]:
    given = [0] * len(remaining)
    for turn in sorted(range(len(remaining)), key=lambda turn: remaining[turn] > 1):
        given[turn] = min(remaining[turn], budget)
        budget -= given[turn]
    return given


# %% delta-turn-51: when does it pay?
# The summary pays at the first pass at which `passes * saved > spent`: equal is not yet fewer.
def passes_until_it_pays(weights: int, kv: int, n: int, kept: int, s: int) -> int:
    spent = s * (weights + kv * n)
    saved = kv * (n - kept - s)
    return spent // saved + 1
