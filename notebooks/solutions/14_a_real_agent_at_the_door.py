"""Solutions to the exercises of 14 · A real agent at the door. Each section runs behind the cell it names."""


# %% door-11: find the session
# Key number i stands for the first i messages. The last key would leave nothing to answer: the walk begins before it.
def find(keys: list[str], filed: dict[str, str]) -> tuple[str | None, int]:
    messages = len(keys) - 1
    for at in range(messages - 1, 0, -1):
        if keys[at] in filed:
            return filed[keys[at]], messages - at
    return None, messages


def cases(random):
    yield ["k0", "k1", "k2", "k3"], {"k2": "a"}
    yield ["k0", "k1", "k2", "k3"], {"k1": "a", "k2": "b"}
    yield ["k0", "k1", "k2", "k3"], {"k3": "a", "k1": "b"}  # after all of "a" nothing is left to answer
    yield ["k0", "k1"], {"x": "a"}
    yield ["k0", "k1"], {"k1": "a"}
    yield ["k0", "k1", "k2"], {"k0": "a"}  # no message: no session is filed under it
    for _ in range(8):
        keys = [f"k{number}" for number in range(random.randint(2, 9))]
        filed = random.sample([*keys[1:], "x", "y"], k=random.randint(0, min(4, len(keys))))
        yield keys, {key: f"session {key}" for key in filed}


# %% door-24: the price of a rewrite
# The first request computes the opening and what is new. A later one finds all that has not changed since the request
# before it. If replies stay the same, only the newest reply is unknown in this form. If none does, everything from the
# first reply on is computed again.
def price(opening: int, turns: list[list[int]], stable: bool) -> int:
    total, behind_opening = opening, 0
    for number, (new, _) in enumerate(turns):
        if number == 0:
            total += new
        elif stable:
            total += turns[number - 1][1] + new
        else:
            behind_opening += turns[number - 1][1] + new
            total += behind_opening
    return total


def cases(random):
    yield 300, [[20, 60], [15, 60], [10, 60]], True
    yield 300, [[20, 60], [15, 60], [10, 60]], False
    for stable in (True, False):
        yield 300, [], stable
        yield 300, [[20, 60]], stable
        yield 10, [[5, 1], [5, 2], [5, 3], [5, 4]], stable
    for _ in range(6):
        turns = [[random.randint(1, 50), random.randint(1, 90)] for _ in range(random.randint(2, 9))]
        yield random.randint(1, 500), turns, random.random() < 0.5
