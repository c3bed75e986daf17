"""Solutions to the exercises of 00 · Start here. Each section runs behind the cell it names."""


# %% cell-35: what the stateful engine forwards
# The first turn forwards its whole prompt, and every generated token but the last. A later turn has one token more to
# read than came in, the last one of the turn before, and one fewer than it generates: these two cancel out.
def forwarded_stateful(first, new, out, turns):
    return (first + out - 1) + (turns - 1) * (new + out)


def cases(random):
    yield 100, 10, 5, 1
    yield 100, 10, 5, 2
    yield 1, 0, 1, 7
    for _ in range(7):
        yield random.randint(1, 5000), random.randint(0, 400), random.randint(1, 90), random.randint(1, 40)


# %% cell-36: what the naive engine forwards
# Its prompt is everything so far: the first one, and `new + out` more for each turn that went before.
def forwarded_naive(first, new, out, turns):
    return sum(first + earlier * (new + out) + out - 1 for earlier in range(turns))


def cases(random):
    yield 100, 10, 5, 1
    yield 100, 10, 5, 2
    yield 1, 0, 1, 7
    for _ in range(7):
        yield random.randint(1, 5000), random.randint(0, 400), random.randint(1, 90), random.randint(1, 40)


# %% cell-38: when does it show?
# In the first turn both forward the same. Later, the stateful engine forwards `new + out` tokens in every turn (the two
# ones of exercise 1 cancel out), and the naive one a prompt that grows by as much. `stateful * factor < naive` compares
# whole numbers, without rounding.
def first_turn_below(first, new, out, factor):
    for turn in range(1, 1001):
        naive = first + (turn - 1) * (new + out) + out - 1
        stateful = naive if turn == 1 else new + out
        if stateful * factor < naive:
            return turn
    return None


def cases(random):
    yield 1000, 100, 24, 10
    yield 1000, 100, 24, 2
    yield 1, 100, 1, 100
    yield 10, 500, 500, 1001
    yield 5000, 10, 5, 20
    for _ in range(5):
        yield random.randint(1, 5000), random.randint(1, 400), random.randint(1, 90), random.randint(2, 40)
