"""Solutions to the exercises of 13 · Your own log. Each section runs behind the cell it names."""


# %% log-parts: be the doctor
# The first pair that differs is the place. If all pairs are equal, the request must be at least as long as what the
# session has had: a shorter one has left something out at its end.
def parts_at(before: list[str], now: list[str]) -> int | None:
    for number, message in enumerate(before):
        if number >= len(now) or now[number] != message:
            return number
    return None


# %% log-trim: how much to trim
# With `keep` equal to `room`, every request behind the first full one computes the whole window. With half of it, the
# conversation grows for a long time before it is cut again.
def computed(count: int, step: int, room: int, keep: int) -> int:
    total = length = 0
    for _ in range(count):
        length += step
        if length > room:
            length = keep
            total += keep
        else:
            total += step
    return total


# %% log-block: what a block costs
# Whole blocks among the old tokens are found; the rest is computed. At least the last token is.
def prefilled_with(tokens: int, old: int, block: int) -> int:
    return max(1, tokens - old // block * block)
