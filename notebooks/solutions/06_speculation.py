"""Solutions to the exercises of 06 · Speculation. Each section runs behind the cell it names."""


# %% speculation-09: the verdict
# The model's own answers are said one after the other. Each but the first was computed on the assumption that the guess
# before it is right, so we stop behind the first answer that contradicts the guess in its place.
def verdict(draft: list[int], answers: list[int]) -> list[int]:
    said = []
    for number, answer in enumerate(answers):
        said.append(answer)
        if number == len(draft) or answer != draft[number]:
            break
    return said


# %% speculation-23: find
# Compared as pairs, a longer match beats a shorter one, and of equally long ones the later one wins.
def find(tokens: list[int], fewest: int) -> tuple[int, int]:
    best = (0, 0)
    for position in range(1, len(tokens)):
        length = 0
        while length < position and tokens[position - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= fewest:
            best = max(best, (length, position))
    return best


# %% speculation-45: expected tokens
# One token is said in any case. Each guess adds the chance that it is said: that it, and all before it, are right.
def expected_tokens(chances: list[float]) -> float:
    total, all_right = 1.0, 1.0
    for chance in chances:
        all_right *= chance
        total += all_right
    return total


# %% speculation-47: break-even
# As many tokens per millisecond as without a draft: (1 + p) / two = 1 / one. Solve for p.
def least_chance(one: float, two: float) -> float:
    return two / one - 1


# %% speculation-79: a draft rule
# `max` takes the first of equally good numbers, which is the smallest. Note that one may not stop at the first guess
# that does not pay: in the fourth case it takes all three to make up for the step in the costs.
def best_draft(chances: list[float], costs: list[float]) -> int:
    def tokens_per_millisecond(count):
        return expected_tokens(chances[:count]) / costs[count]

    return max(range(len(chances) + 1), key=tokens_per_millisecond)
