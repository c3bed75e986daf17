"""Solutions to the exercises of 11 · Whose merit. Each section runs behind the cell it names."""


# %% merit-ex1: alone and last
# Two subtractions a player. If they differ, other players can do this one's work, or need it.
def alone_and_last(players: str, worth: dict[str, float]) -> list[list[float]]:
    return [[worth[one] - worth[""], worth[players] - worth[players.replace(one, "")]] for one in players]


def games(random, sizes):
    from itertools import combinations

    def sets(players):
        return ["".join(letters) for count in range(len(players) + 1) for letters in combinations(players, count)]

    yield "a", {"": 0, "a": 5}
    yield "ab", {"": 0, "a": 1, "b": 1, "ab": 1}  # either does the whole job
    yield "ab", {"": 0, "a": 0, "b": 0, "ab": 1}  # it takes both
    yield "abc", {letters: 6 if "a" in letters or letters == "bc" else 0 for letters in sets("abc")}
    for size in sizes:
        players = "abcd"[:size]
        yield players, {letters: round(random.uniform(-3, 20), 3) for letters in sets(players)}


def cases(random):
    yield from games(random, (2, 2, 3, 3, 4, 4))


# %% headline-48: all orders
# In each order a player adds what the set is worth with it, less what it was worth before it came. Two who can replace
# each other add the whole in half of the orders and nothing in the other half; and so do two who need each other.
def fair_shares(players: str, worth: dict[str, float]) -> list[float]:
    added = dict.fromkeys(players, 0.0)
    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            before, after = ("".join(sorted(order[:count])) for count in (place, place + 1))
            added[player] += worth[after] - worth[before]
    return [added[player] / len(orders) for player in players]


def cases(random):
    yield from games(random, (2, 3, 3, 3, 4, 4))


# %% merit-ex3: overlap
# The weights are those of a Shapley value among one player fewer: the pair takes one place in each order.
def overlap(players: str, worth: dict[str, float]) -> float:
    from itertools import combinations
    from math import factorial

    (one, two), others, total = players[:2], players[2:], 0.0
    for count in range(len(others) + 1):
        weight = factorial(count) * factorial(len(players) - count - 2) / factorial(len(players) - 1)
        for some in combinations(others, count):
            both, first, second, neither = (
                worth["".join(sorted([*some, *more]))] for more in ((one, two), (one,), (two,), ())
            )
            total += weight * (both - first - second + neither)
    return total


def cases(random):
    yield from ((players, worth) for players, worth in games(random, (2, 3, 3, 3, 4, 4, 4)) if len(players) > 1)
