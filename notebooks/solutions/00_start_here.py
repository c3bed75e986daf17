"""Solutions to the exercises of 00 · Start here. Each section runs behind the cell it names."""


# %% cell-35: what the stateful engine forwards
# The first turn forwards its whole prompt, and every generated token but the last. A later turn has one token more to
# read than came in, the last one of the turn before, and one fewer than it generates: these two cancel out.
def forwarded_stateful(first, new, out, turns):
    return (first + out - 1) + (turns - 1) * (new + out)


# %% cell-36: what the naive engine forwards
# Its prompt is everything so far: the first one, and `new + out` more for each turn that went before.
def forwarded_naive(first, new, out, turns):
    return sum(first + earlier * (new + out) + out - 1 for earlier in range(turns))


# %% cell-38: less than a tenth
# What one turn forwards is a total minus the total before it. Then we look at one turn after the other.
def first_turn_below_a_tenth():
    def one_turn(forwarded, turn):
        return forwarded(1000, 100, 24, turn) - (forwarded(1000, 100, 24, turn - 1) if turn > 1 else 0)

    turn = 1
    while one_turn(forwarded_stateful, turn) >= one_turn(forwarded_naive, turn) / 10:
        turn += 1
    return turn
