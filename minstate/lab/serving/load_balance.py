"""How evenly sessions spread over machines that each keep the sessions they were given."""

from random import Random


def sessions_per_machine(sessions: int, machines: int, choices: int, *, seed: int = 0) -> list[int]:
    """Place sessions one by one, each for good. Returns how many sessions each machine has in the end.

    choices  how many machines are drawn at random for each session; it goes to the one with the fewest sessions
             (two choices suffice for an even spread: Mitzenmacher, IEEE TPDS 12(10), 2001)
    """
    random, load = Random(seed), [0] * machines
    for _ in range(sessions):
        load[min(random.sample(range(machines), choices), key=load.__getitem__)] += 1
    return load
