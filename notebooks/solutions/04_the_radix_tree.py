"""Solutions to the exercises of 04 · The radix tree. Each section runs behind the cell it names."""


# %% radix-tree-28: look at two
# Among sorted strings, those that begin like `wanted` stand next to its place, so one of the two neighbours is among
# the best. At either end of the list there is only one neighbour.
def longest_head(siblings: list[str], wanted: str) -> int:
    place = bisect_left(siblings, wanted)
    neighbours = siblings[max(0, place - 1) : place + 1]
    return max(common(each, wanted) for each in neighbours)


# %% radix-tree-36: what blocks lose
# First the last token is set aside, then what is left is rounded down. (In the other order, a prompt of two full blocks
# would keep 31 tokens of 32, which is no whole number of blocks.)
def reused(old: list[int], new: list[int], block: int) -> int:
    usable = min(common(old, new), len(new) - 1)
    return usable // block * block


# %% radix-tree-59: who goes first?
# Again and again: of the nodes on which nothing stands, the one that was used first. Its parent inherits its time of
# use, for whoever used the child has used the way down to it as well.
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
