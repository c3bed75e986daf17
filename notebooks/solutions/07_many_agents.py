"""Solutions to the exercises of 07 · Many agents. Each section runs behind the cell it names."""


# %% many-agents-18: predict the batches
# What a turn has still to forward is its prompt at first, and a single token from then on: the one it said last. Those
# with one to forward go first; what they leave of the budget goes to the oldest of the others.
def batches_of(prompts: list[int], answers: list[int], budget: int) -> list[int]:
    to_forward, to_say, batches = list(prompts), list(answers), []
    while any(to_say):
        room = budget
        running = [turn for turn, count in enumerate(to_say) if count]
        for turn in sorted(running, key=lambda turn: to_forward[turn] > 1):
            given = min(to_forward[turn], room)
            room -= given
            to_forward[turn] -= given
            if to_forward[turn] == 0:
                to_say[turn] -= 1
                to_forward[turn] = 1
        batches.append(budget - room)
    return batches


# %% many-agents-32: how many fit?
# Whole pages of the common part are there once, for all. Behind them each agent has pages of its own, for the head of
# the page in which the common part ends, and for what follows.
def agents_that_fit(pages: int, page_size: int, shared: int, own: int) -> int:
    common, head = divmod(shared, page_size)
    each = -(-(head + own) // page_size)  # rounded up
    return (pages - common) // each


# %% many-agents-38: the most that company can give
# `many` tokens for one reading of the weights, not one. As `many` grows this tends to (weights + own) / own: with
# contexts so long that a sequence reads as much as the weights, company at best doubles what one would get alone.
def gain(many: int, weights: float, own: float) -> float:
    return many * (weights + own) / (weights + many * own)


# %% many-agents-49: whose turn is it?
# `max` takes the first of equals, and the list is in order of arrival.
def pick_next(waiting: list[tuple[str, int, int]], ageing: int) -> str:
    name, _, _ = max(waiting, key=lambda turn: turn[1] + ageing * turn[2])
    return name
