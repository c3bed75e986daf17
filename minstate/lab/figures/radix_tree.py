"""Figures of the prefix tree: its nodes along the tokens that they hold, and the places that sequences remember."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MultipleLocator

from minstate.lab.figures.palette import BLUE, DIM, INK, ORANGE, PAPER, SKY, STYLE, new_figure, paper_box, tint
from minstate.radix_node import TOKEN_BYTES, Node
from minstate.radix_tree import RadixTree

LOCKED = {"facecolor": tint(BLUE, 0.45), "edgecolor": INK, "linewidth": 2}
INNER = {"facecolor": tint(SKY, 0.17), "edgecolor": INK, "linewidth": 0.8}
LEAF = {"facecolor": tint(ORANGE, 0.2), "edgecolor": ORANGE, "linewidth": 1.4}
DEAD = {"facecolor": PAPER, "edgecolor": DIM, "linewidth": 1.2, "linestyle": "--", "hatch": "//"}
LEGEND = {
    "locked by a running turn": LOCKED,
    "not locked, but with live children": INNER,
    "leaf without a lock: may be evicted": LEAF,
    "evicted, and still remembered": DEAD,
}
HEIGHT = 0.6  # of a node's box; rows are 1 apart
XLABEL = "tokens from the beginning of the conversation"
ROOM = (-0.15, 0.05)  # above the first row, below the last


@dataclass(frozen=True)
class NodeState:
    """One node at one moment. Eviction takes `tokens` and `pages`; `end` then is the end that sequences remember."""

    parent: int | None  # its number among the state's nodes; None: a root
    start: int
    end: int
    tokens: tuple[int, ...]
    pages: tuple[int, ...]
    locks: int
    dead: bool
    tenant: str  # that a root belongs to


@dataclass(frozen=True)
class TreeState:
    """A tree at one moment: a copy, which later changes do not reach."""

    page_size: int
    nodes: tuple[NodeState, ...]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)  # by sequence: its node's number, tokens above
    title: str = ""

    @staticmethod
    def of(tree: RadixTree, places: Mapping[str, tuple] | None = None, title: str = "") -> "TreeState":
        """The state of `tree`, and the `places` (node, at, ...) in it that sequences remember, by their names."""
        places = places or {}
        dead = [node for node, *_ in places.values() if node.dead]
        number = {node: i for i, node in enumerate(dict.fromkeys([*tree.nodes(), *dead]))}
        tenants = {root: str(tenant) for tenant, root in tree.tenants.items()}
        nodes = [
            NodeState(
                parent=number.get(_lowest_live(node.parent)),
                start=node.start,
                end=max([node.end, *(at for remembered, at, *_ in places.values() if remembered is node)]),
                tokens=_decode(node),
                pages=tuple(node.pages),
                locks=node.locks,
                dead=node.dead,
                tenant=tenants.get(node, ""),
            )
            for node in number
        ]
        remembered = {name: (number[node], at) for name, (node, at, *_) in places.items()}
        return TreeState(tree.page_size, tuple(nodes), remembered, title)

    def children(self, number: int | None) -> list[int]:
        """The numbers of a node's children, in order; of `None`, the roots'."""
        return [i for i, node in enumerate(self.nodes) if node.parent == number]

    def rows(self) -> list[int]:
        """Each node's line: that of its first live child, so the halves of a split meet. Dead nodes stand apart."""
        rows, free = [0] * len(self.nodes), count()

        def place(i: int) -> int:
            below = sorted(self.children(i), key=lambda child: self.nodes[child].dead)
            has_live_child = below and not self.nodes[below[0]].dead
            own = [] if has_live_child else [next(free)]
            rows[i] = (own + [place(child) for child in below])[0]
            return rows[i]

        for root in self.children(None):
            place(root)
        return rows


def tree_figure(
    state: TreeState, text: Callable[[tuple[int, ...]], str] | None = None, *, among: Sequence[TreeState] = ()
) -> Figure:
    """The tree from left to right, along the tokens that its nodes hold.

    text    turns a page's tokens into a label, for a drawing with every page and its number; by default, of nodes only
    among   states whose figures are to have the same axes
    """
    end, lines = _extent([state, *among])
    figure, (axes,) = new_figure(width=9.6, height=1.15 + 0.5 * lines)
    _draw(axes, state, text, end, lines)
    axes.set_xlabel(XLABEL, fontsize=8)
    _legend(figure, [state, *among])
    return figure


def tree_strip(states: Sequence[TreeState], text: Callable[[tuple[int, ...]], str] | None = None) -> Figure:
    """Several moments in one static figure, two in a row, in lines as a text has them."""
    end, _ = _extent(states)
    pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
    heights = [_extent(pair)[1] + ROOM[1] - ROOM[0] for pair in pairs]  # in rows: a node is equally high in all panels
    figure, _ = new_figure(width=9.6, height=0.7 + 0.45 * len(pairs) + 0.36 * sum(heights))
    figure.clear()
    grid = figure.add_gridspec(len(pairs), 2, height_ratios=heights)
    for row, pair in enumerate(pairs):
        for column, state in enumerate(pair):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, state, text, end, _extent(pair)[1], small=True)
            axes.set_xlabel(XLABEL if row == len(pairs) - 1 else "", fontsize=8)
    _legend(figure, states)
    return figure


def _legend(figure: Figure, states: Sequence[TreeState]) -> None:
    """Explain the looks that occur in the states."""
    shown = {kind for state in states for i in range(len(state.nodes)) for kind, *_ in _parts(state, i)}
    swatches = [Patch(**look, label=label) for label, look in LEGEND.items() if label in shown]
    if swatches:
        figure.legend(handles=swatches, loc="outside lower left", ncols=2, fontsize=8, frameon=False)


def _extent(states: Sequence[TreeState]) -> tuple[int, int]:
    """The tokens and the lines that the largest of the states takes."""
    tokens = max((node.end for each in states for node in each.nodes), default=0)
    return max(tokens, 1), 1 + max(max(each.rows(), default=0) for each in states)


def _parts(state: TreeState, i: int) -> list[tuple[str, int, int]]:
    """The boxes of the state's node `i`: each one's label in the legend, start and end. A root has none."""
    locked, inner, leaf, evicted = LEGEND
    node, has_live_child = state.nodes[i], any(not state.nodes[child].dead for child in state.children(i))
    if node.parent is None:
        return []
    held = node.start if node.dead else min(node.end, node.start + len(node.pages) * state.page_size)
    parts = [(locked if node.locks else inner if has_live_child else leaf, node.start, held), (evicted, held, node.end)]
    return [part for part in parts if part[1] < part[2]]


def _draw(axes: Axes, state: TreeState, text, end: int, lines: int, *, small: bool = False) -> None:
    rows, size = state.rows(), state.page_size
    for i, (node, row) in enumerate(zip(state.nodes, rows, strict=True)):
        middle = row + HEIGHT / 2
        if node.parent is None:
            axes.plot(0, middle, "o", color=INK, markersize=4 if small else 6)
            axes.text(-0.02 * end, middle, node.tenant, ha="right", va="center", fontsize=8)
            continue
        if row != rows[node.parent]:
            bend = min(node.start, state.nodes[node.parent].end) - 0.006 * end  # a dead node may begin further right
            axes.plot([bend, bend, node.start], [rows[node.parent] + HEIGHT, middle, middle], color=INK, linewidth=1)
        for kind, first, last in _parts(state, i):
            axes.add_patch(Rectangle((first, row), last - first, HEIGHT, **LEGEND[kind]))
        if node.dead or not text:
            label = "dead" if node.dead else f"{node.start}:{node.end}" + ("" if small else f", {len(node.pages)} p.")
            box = paper_box() if node.dead else None
            axes.text((node.start + node.end) / 2, middle, label, ha="center", va="center", fontsize=8, bbox=box)
            continue
        for k, page in enumerate(node.pages):
            left = node.start + k * size
            if k:
                axes.plot([left, left], [row + 0.08, row + HEIGHT - 0.08], color=INK, linewidth=0.5)
            label = text(node.tokens[k * size : (k + 1) * size])
            height, fontsize = (middle, 8) if small else (middle + 0.06, 9)
            look = {"ha": "center", "va": "center", "family": "monospace", "fontsize": fontsize}
            axes.text(left + size / 2, height, label, **look)
            if not small:
                axes.text(left + size * 0.05, row + 0.04, str(page), fontsize=8, va="top")
    for (i, at), names in _gather(state.places).items():
        look = {"fontsize": 8 if small else 9, "fontweight": "bold", "color": INK}
        axes.text(at + 0.006 * end, rows[i] + HEIGHT + 0.03, " ".join(names) + "▲", ha="right", va="top", **look)
    axes.set(xlim=(-0.02 * end, end * 1.02), ylim=(lines + ROOM[1], ROOM[0]), yticks=[])
    axes.xaxis.set_major_locator(MultipleLocator(size * max(1, -(-end // size // 12))))
    with mpl.rc_context(STYLE):
        axes.set_title(state.title, fontsize=9 if small else 11)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.tick_params(length=2, labelsize=8)


def _gather(places: Mapping[str, tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """By place, the names of the sequences that remember it."""
    together: dict[tuple[int, int], list[str]] = {}
    for name, place in places.items():
        together.setdefault(place, []).append(name)
    return together


def _lowest_live(node: Node | None) -> Node | None:
    while node and node.dead:
        node = node.parent
    return node


def _decode(node: Node) -> tuple[int, ...]:
    return tuple(int.from_bytes(node.key[i : i + TOKEN_BYTES], "big") for i in range(0, len(node.key), TOKEN_BYTES))
