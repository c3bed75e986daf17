"""Figures of the prefix tree: its nodes at one moment, the places that sequences remember, locked and dead nodes."""

import pytest
from matplotlib.figure import Figure

from minstate.lab.figures.radix_tree import TreeState, tree_figure, tree_strip
from minstate.lab.notebook.widgets import stepper
from minstate.paged_kv import PageAllocator
from minstate.radix_tree import RadixTree

SIZE = 2


def letters(tokens) -> str:
    return "".join(map(chr, tokens))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def publish(tree: RadixTree, text: str, tenant: str = "us"):
    """`text` into the tree; returns its place, locked."""
    log = list(map(ord, text))
    found = tree.match(tree.root(tenant), log, len(log))
    node = tree.lock(found.node, found.at)
    return tree.insert(node, log, tree.allocator.allocate((len(log) - found.at) // SIZE))[:2]


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree(PageAllocator(16), SIZE)


@pytest.fixture
def places(tree) -> dict:
    """A has published abcdef and rests; B is at abcdxy, in a turn."""
    a = publish(tree, "abcdef")
    tree.unlock(a[0])
    return {"A": a, "B": publish(tree, "abcdxy")}


def test_a_state_is_a_copy_and_taking_it_counts_as_no_work(tree, places):
    before = tree.nodes_visited, tree.tokens_compared
    state = TreeState.of(tree, places)
    tree_figure(state, letters)
    assert (tree.nodes_visited, tree.tokens_compared) == before
    nodes = state.nodes
    publish(tree, "zz")
    assert state.nodes == nodes and len(nodes) == 4


def test_a_state_knows_each_nodes_tokens_pages_and_locks(tree, places):
    root, above, lower, other = TreeState.of(tree, places).nodes
    assert (root.parent, root.tenant, root.start, root.end) == (None, "us", 0, 0)
    assert (above.parent, above.start, above.end, letters(above.tokens), above.locks) == (0, 0, 4, "abcd", 1)
    assert (lower.parent, letters(lower.tokens), lower.locks) == (1, "ef", 0)
    assert (other.parent, letters(other.tokens), other.locks) == (1, "xy", 1)
    assert len({*above.pages, *lower.pages, *other.pages}) == tree.num_pages == 4
    assert TreeState.of(tree, places).places == {"A": (2, 6), "B": (3, 6)}


def test_two_halves_of_a_split_lie_on_one_line_and_other_paths_on_lines_of_their_own(tree, places):
    assert TreeState.of(tree, places).rows() == [0, 0, 0, 1]
    publish(tree, "zz", tenant="them")
    assert TreeState.of(tree, places).rows() == [0, 0, 1, 1, 1, 2], "the later tenant first"


def test_a_dead_node_is_shown_as_far_as_it_is_remembered_below_the_lowest_live_one(tree, places):
    tree.unlock(places["B"][0])
    tree.trim(tree.next_victim(), 1)  # "ef"
    tree.trim(tree.next_victim(), 1)  # "xy"
    tree.trim(tree.next_victim(), 2)  # "abcd", the parent of both
    state = TreeState.of(tree, places)
    dead = state.nodes[state.places["A"][0]]
    assert (dead.dead, dead.parent, dead.start, dead.end, dead.pages) == (True, 0, 4, 6, ())
    shown = texts(tree_figure(state, letters))
    assert shown.count("dead") == 2 and "A▲" in shown and "B▲" in shown
    assert [node.dead for node in TreeState.of(tree).nodes] == [False], "no sequence remembers them"


def test_a_leaf_that_shrank_is_drawn_as_long_as_it_is_and_the_rest_as_evicted(tree):
    place = publish(tree, "abcdef")
    tree.unlock(place[0])
    tree.trim(tree.next_victim(), 1)
    figure = tree_figure(TreeState.of(tree, {"A": place}), letters)
    boxes = [(box.get_x(), box.get_width(), box.get_facecolor()) for box in figure.axes[0].patches]
    (left, width, color), (left_of_rest, width_of_rest, color_of_rest) = boxes
    assert (left, width, left_of_rest, width_of_rest) == (0, 4, 4, 2) and color != color_of_rest
    assert {"ab", "cd", "A▲"} <= set(texts(figure)) and "ef" not in texts(figure)
    assert legend(figure) == ["leaf without a lock: may be evicted", "evicted, and still remembered"]


def test_a_figure_shows_pages_with_their_text_and_the_places_of_sequences(tree, places):
    figure = tree_figure(TreeState.of(tree, places | {"C": places["B"]}, "B sends"), letters)
    shown = texts(figure)
    assert {"ab", "cd", "ef", "xy", "us", "A▲", "B C▲"} <= set(shown)
    assert sorted(map(int, filter(str.isdigit, shown))) == sorted(page for node in tree.nodes() for page in node.pages)
    assert figure.axes[0].get_title(loc="left") == "B sends" and "tokens" in figure.axes[0].get_xlabel()
    assert legend(figure) == ["locked by a running turn", "leaf without a lock: may be evicted"]


def test_without_a_text_a_node_is_labelled_by_its_range_and_number_of_pages(tree, places):
    assert {"0:4, 2 p.", "4:6, 1 p."} <= set(texts(tree_figure(TreeState.of(tree, places))))


def test_a_node_whose_children_are_all_dead_may_be_evicted(tree, places):
    tree.unlock(places["B"][0])
    full = TreeState.of(tree, places)
    assert "not locked, but with live children" in legend(tree_figure(full))
    tree.trim(tree.next_victim(), 1)
    tree.trim(tree.next_victim(), 1)
    assert legend(tree_figure(TreeState.of(tree, places))) == [
        "leaf without a lock: may be evicted",
        "evicted, and still remembered",
    ]


def test_figures_that_belong_together_have_the_same_axes(tree):
    states = [TreeState.of(tree, title="empty")]
    publish(tree, "abcd")
    states.append(TreeState.of(tree, title="one"))
    publish(tree, "abxyzz")
    states.append(TreeState.of(tree, title="two"))
    limits = {
        (axes.get_xlim(), axes.get_ylim()) for each in states for axes in tree_figure(each, letters, among=states).axes
    }
    assert len(limits) == 1
    assert [axes.get_title(loc="left") for axes in tree_strip(states, letters).axes] == ["empty", "one", "two"]
    assert not tree_figure(states[0]).legends, "an empty tree has nothing to explain"


def test_in_a_strip_all_nodes_are_equally_high_and_their_looks_are_explained(tree, places):
    states = [TreeState.of(RadixTree(PageAllocator(1), SIZE)), TreeState.of(tree, places), TreeState.of(tree, places)]
    figure = tree_strip([states[0], states[0], *states[1:]], letters)
    figure.canvas.draw()
    heights = {round(axes.bbox.height / (axes.get_ylim()[0] - axes.get_ylim()[1]), 3) for axes in figure.axes}
    assert len(heights) == 1
    assert legend(figure) == legend(tree_figure(states[1]))


def test_a_slider_over_trees_draws_another_figure_when_moved(tree, places):
    states = [TreeState.of(RadixTree(PageAllocator(1), SIZE)), TreeState.of(tree, places)]
    box = stepper(lambda step: tree_figure(states[step], letters, among=states), len(states))
    (_, slider), picture = box.children[0].children, box.children[1]
    before = picture.value
    slider.value = 1
    assert picture.value != before
