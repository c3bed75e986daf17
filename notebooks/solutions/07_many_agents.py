"""Solutions to the exercises of 07 · Many agents. Each section runs behind the cell it names.

Where the engine itself can give a result, `cases` compares it with the solution's.
"""


# %% many-agents-18: Predict the batches
# What a turn has still to forward is its prompt at first, and a single token from then on: the one that was sampled
# last. Turns with one token to forward go first; what they leave of the budget goes to the oldest of the others.
def batches_of(prompts: list[int], answers: list[int], budget: int) -> list[int]:
    to_forward, to_generate, batches = list(prompts), list(answers), []
    while any(to_generate):
        room = budget
        running = [turn for turn, count in enumerate(to_generate) if count]
        for turn in sorted(running, key=lambda turn: to_forward[turn] > 1):
            given = min(to_forward[turn], room)
            room -= given
            to_forward[turn] -= given
            if to_forward[turn] == 0:
                to_generate[turn] -= 1
                to_forward[turn] = 1
        batches.append(budget - room)
    return batches


def from_the_engine(prompts: list[int], answers: list[int], budget: int) -> list[int]:
    """The batches of a tiny random model, whose output makes no sense, and whose counts are as any other's."""
    from random import Random

    from minstate import Sampling
    from minstate.lab.engines.small_engine import small_engine

    small, draw = small_engine(token_budget=budget), Random(0)
    for first, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 20):
        ids = [first, *draw.choices(range(20, 250), k=prompt - 1)]  # no two begin alike
        small.submit(small.open(), token_ids=ids, max_new_tokens=answer, sampling=Sampling(ignore_eos=True))
    small.run()
    tokens = [0] * small.scheduler.steps
    for event in small.scheduler.timeline:
        if event.tokens:
            tokens[event.step] += event.tokens
    return tokens


def cases(random):
    drawn = [([10, 3], [2, 4], 8), ([5], [3], 8), ([5, 5, 5], [4, 2, 1], 100), ([20, 30, 1], [3, 3, 3], 16)]
    drawn += [([1, 1, 1], [3, 3, 3], 2), ([1], [1], 1)]  # more decodes than budget; a single token
    for _ in range(6):
        turns = random.randint(2, 5)
        prompts, answers = ([random.randint(1, most) for _ in range(turns)] for most in (40, 8))
        drawn.append((prompts, answers, random.randint(3, 24)))
    for case in drawn:
        assert batches_of(*case) == from_the_engine(*case)
        yield case


# %% many-agents-32: How many agents fit?
# Whole pages of the common part are there once, for all. Behind them each agent has pages of its own, for the copied
# part of the page in which the common part ends, and for what follows.
def agents_that_fit(pages: int, page_size: int, shared: int, own: int) -> int:
    common, copied = divmod(shared, page_size)
    each = -(-(copied + own) // page_size)  # rounded up
    return (pages - common) // each


def by_trying(pages: int, page_size: int, shared: int, own: int) -> int:
    """Agents come one after the other, until the next one would take something from the others."""
    from random import Random

    from minstate import Sampling
    from minstate.lab.engines.small_engine import small_engine

    small, draw, agents = small_engine(num_pages=pages, page_size=page_size), Random(0), []
    common = draw.choices(range(20, 250), k=shared)
    while True:
        agents.append(small.open())
        ids = [*common, 20 + len(agents), *draw.choices(range(20, 250), k=own - 1)]  # no two go on alike
        try:
            agents[-1].send(token_ids=ids, max_new_tokens=1, sampling=Sampling(ignore_eos=True))
        except MemoryError:
            return len(agents) - 1
        if any(agent.resident < len(ids) for agent in agents):
            return len(agents) - 1


def cases(random):
    drawn = [(100, 16, 64, 48), (100, 16, 64, 49), (60, 4, 102, 20), (60, 4, 0, 20), (64, 8, 100, 3)]
    drawn += [(10, 4, 40, 4)]  # no page is left for anybody
    for _ in range(6):
        size = random.choice([4, 8, 16])
        drawn.append((random.randint(20, 120), size, random.randint(0, 10 * size), random.randint(1, 5 * size)))
    for case in drawn:
        assert agents_that_fit(*case) == by_trying(*case)
        yield case


# %% many-agents-49: Whose turn is it?
# `max` takes the first of equals, and the list is in order of arrival.
def pick_next(waiting: list[tuple[str, int, int]], ageing: int) -> str:
    name, _, _ = max(waiting, key=lambda turn: turn[1] + ageing * turn[2])
    return name


def cases(random):
    yield [("stranger", 0, 0), ("friend", 600, 0)], 256
    yield [("stranger", 0, 3), ("friend", 600, 0)], 256
    yield [("stranger", 0, 3), ("friend", 600, 0)], 0
    yield [("a", 512, 1), ("b", 0, 3), ("c", 768, 0)], 256  # all equal
    yield [("a", 100, 1), ("b", 300, 1), ("c", 300, 1)], 256
    yield [("only", 0, 0)], 16
    for _ in range(6):
        ageing = random.choice([0, 16, 256])
        yield [(name, random.randrange(0, 800, 50), random.randint(0, 5)) for name in "abcde"], ageing
