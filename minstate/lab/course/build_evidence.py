"""What all checkers share: numbers that say where they were written, a recount of pages, the naive model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from minstate.lab.course.build_models import given


def require(holds: bool, message: str) -> None:
    """Raises AssertionError with `message`, which names the fault, unless it `holds`."""
    if not holds:
        raise AssertionError(message)


def short(values: Iterable, most: int = 12) -> str:
    """A list in a message: the whole of it, or its beginning and its end."""
    values = list(values)
    if len(values) <= most:
        return str(values)
    return f"[{', '.join(map(str, values[: most - 3]))}, … {', '.join(map(str, values[-2:]))}]"


def shape_of(tensor) -> str:
    """The shape in a message; the type of what is no tensor."""
    return str(list(tensor.shape)) if isinstance(tensor, torch.Tensor) else type(tensor).__name__


@dataclass(frozen=True)
class Label:
    """Where a coded number was written."""

    text: int
    layer: int
    kind: int  # 0 for K, 1 for V
    token: int
    head: int

    def __str__(self) -> str:
        return f"the {'KV'[self.kind]} of token {self.token}, head {self.head}, layer {self.layer}"


NEAR_TIE = 1e-3  # a difference of logits that another order of sums may make in float32
SIZES = (8, 8, 2, 64, 8)  # of texts, layers, K and V, tokens, heads


def coded(model, text: int, layer: int, tokens: range) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v [T, H_kv, D] in which each number says where it belongs. `read_label` reads it."""
    k_and_v = []
    for kind in (0, 1):
        rows = [[_code(text, layer, kind, token, head) for head in range(model.num_kv_heads)] for token in tokens]
        k_and_v.append(torch.tensor(rows, dtype=model.dtype)[:, :, None].repeat(1, 1, model.head_dim))
    return k_and_v[0], k_and_v[1]


def _code(*place: int) -> float:
    number = 0
    for size, index in zip(SIZES, place, strict=True):
        number = number * size + index
    return float(number + 1)


def read_label(number: float) -> Label | None:
    """Where the number was written, or None for a number that `coded` has not made."""
    if not 1 <= number < 2**30 or number != int(number):
        return None
    rest, place = int(number) - 1, []
    for size in reversed(SIZES):
        rest, index = divmod(rest, size)
        place.append(index)
    return Label(*reversed(place)) if rest == 0 else None


@dataclass(frozen=True)
class Misplaced:
    """The first row that holds something else than it should: `label` of what it holds, None for no known number."""

    kind: int
    token: int
    head: int
    label: Label | None


def first_misplaced(k_and_v: Sequence[torch.Tensor], text: int, layer: int) -> Misplaced | None:
    """The first row of K and V [n, H_kv, D] that does not hold what `coded` made for it. None: all do."""
    for token in range(len(k_and_v[0])):
        for kind in (0, 1):
            for head in range(k_and_v[0].shape[1]):
                numbers = k_and_v[kind][token, head].tolist()
                wanted = _code(text, layer, kind, token, head)
                odd = next((number for number in numbers if number != wanted), None)
                if odd is not None:
                    return Misplaced(kind, token, head, read_label(odd))
    return None


def recount(pool, tables: Iterable[Sequence[int]], tree_pages: Sequence[int] = ()) -> None:
    """Compare owners with a recount over page tables and tree. AssertionError names a page that is lost, or freed."""
    held = Counter(page for table in tables for page in table)
    in_tree = Counter(tree_pages)
    for page, owners in enumerate(pool.owners):
        tables_of, nodes_of = held[page], in_tree[page]
        where = f"it is in {tables_of} page table{'' if tables_of == 1 else 's'}"
        where += f" and {'once' if nodes_of == 1 else f'{nodes_of} times'} in the tree" if tree_pages else ""
        if owners <= 0 < tables_of + nodes_of:
            raise AssertionError(
                f"a freed page is still in use: page {page} has {owners} owners, so the next text gets it too, but "
                f"{where}"
            )
        if owners > 0 == tables_of + nodes_of:
            raise AssertionError(
                f"a page leak: page {page} has {owners} owner{'s' if owners > 1 else ''}, but {where}; nobody can ever "
                "give it back"
            )
        if owners != tables_of + nodes_of:
            raise AssertionError(f"owners[{page}] is {owners}, but {where}: {tables_of + nodes_of} owners")


def tree_nodes(tree) -> list:
    """All nodes below the root, in no special order."""
    found, waiting = [], list(tree.children.values())
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting += node.children.values()
    return found


def unlike_naive(model, log: Sequence[int], start: int, end: int | None = None) -> int | None:
    """The first place from `start` to before `end` whose token is not the given transformer's choice, or None.

    One pass over the whole log: the choice at a place depends on nothing behind it. Where two tokens are equally likely
    but for rounding, either may be chosen.
    """
    end = len(log) if end is None else end
    x = given().forward(model, list(log[:end]))
    for place, logits in enumerate(model.logits(x[start - 1 : end - 1]), start):
        if float(logits.max() - logits[log[place]]) > NEAR_TIE:
            return place
    return None
