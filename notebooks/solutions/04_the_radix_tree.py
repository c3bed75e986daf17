"""Solutions to the exercises of 04 · The radix tree. Each section runs behind the cell it names."""

# %% radix-tree-28: Look at two neighbours
# Among sorted strings, those that begin like `wanted` stand next to its place, so one of the two neighbours is among
# the best. At either end of the list there is only one neighbour.
from bisect import bisect_left

from minstate.chat.content import common_prefix


def longest_head(siblings: list[str], wanted: str) -> int:
    place = bisect_left(siblings, wanted)
    neighbours = siblings[max(0, place - 1) : place + 1]
    return max(common_prefix(each, wanted) for each in neighbours)


def cases(random):
    yield ["ant ", "cat ", "dog "], "cow "
    yield ["ant ", "cat ", "dog "], "dot "
    yield ["ant "], "zebu"  # behind the last
    yield ["zebu"], "ant "  # before the first
    yield ["cat "], "cap "
    yield ["cat ", "cow "], "cow "  # there in full
    for _ in range(6):
        words = {"".join(random.choices("abc", k=5)) for _ in range(random.randint(2, 12))}
        yield sorted(words), "".join(random.choices("abc", k=5))


# %% radix-tree-36: The common prefix, in blocks
# The last token is set aside first, and the rest is rounded down afterwards. In the other order, a prompt of two full
# blocks of 16 would keep 31 tokens, which is no whole number of blocks. A block that is full only in `new` can't be
# reused: the common prefix never reaches beyond `old`.
def reused(old: list[int], new: list[int], block: int) -> int:
    common = 0
    while common < min(len(old), len(new)) and old[common] == new[common]:
        common += 1
    return min(common, len(new) - 1) // block * block


def cases(random):
    yield list(range(40)), [*range(35), 99], 16
    yield list(range(40)), [*range(35), 99], 1
    yield list(range(40)), list(range(32)), 16  # the prompt is known in full
    yield list(range(20)), list(range(40)), 16  # the second block of `old` is not full
    yield list(range(40)), list(range(40)), 1
    yield [], [5, 6], 4
    yield [1, 2, 3], [7, 2, 3], 1
    yield [5], [5], 1
    for _ in range(6):
        block, common = random.choice([1, 2, 4, 8]), random.randint(0, 20)
        old, new = ([0] * common + [tail] * random.randint(1, 9) for tail in (1, 2))
        yield old, new, block


# %% radix-tree-59: Who goes first?
# Again and again: of the nodes without a child, the one that was used first. Its parent inherits its time of use,
# because a turn that uses the child uses the path to it as well.
def order_of_eviction(parent: dict[str, str | None], used: dict[str, int]) -> list[str]:
    used, order = dict(used), []
    left = [node for node, above in parent.items() if above is not None]
    while left:
        leaves = [node for node in left if node not in {parent[other] for other in left}]
        first = min(leaves, key=used.get)
        above = parent[first]
        if above in used:
            used[above] = max(used[above], used[first])
        left.remove(first)
        order.append(first)
    return order


def cases(random):
    yield {"root": None, "A": "root", "B": "root"}, {"A": 2, "B": 1}
    yield {"root": None, "the": "root", "cat": "the", "dog": "the"}, {"the": 0, "cat": 3, "dog": 2}
    yield {"root": None, "the": "root", "cat": "the", "an": "root"}, {"the": 1, "cat": 5, "an": 3}  # a child's use
    yield {"root": None, "a": "root", "b": "a", "c": "b"}, {"a": 1, "b": 2, "c": 3}  # one path
    yield {"root": None}, {}
    for size in (4, 6, 8, 10, 12):
        names = ["root", *"abcdefghijkl"[:size]]
        parent = {name: random.choice(names[:place]) if place else None for place, name in enumerate(names)}
        yield parent, dict(zip(names[1:], random.sample(range(100), size), strict=True))
