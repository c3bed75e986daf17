"""The plain line chart: a line for each name, with labels, told apart without colours too."""

from minstate.lab.figures.lines import lines_figure


def test_lines_are_drawn_by_name_with_labels():
    (axes,) = lines_figure({"ours": ([1, 2], [3, 4]), "theirs": ([1, 2], [5, 9])}, xlabel="pages", ylabel="tokens").axes
    assert [line.get_label() for line in axes.lines] == ["ours", "theirs"]
    assert list(axes.lines[1].get_ydata()) == [5, 9] and axes.get_ylabel() == "tokens"
    looks = {(line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 2, "a grey printer tells them apart"


def test_lines_have_the_colours_that_they_are_given():
    (axes,) = lines_figure({"one": ([1], [2]), "other": ([1], [3])}, colors=("black", "red")).axes
    assert [line.get_color() for line in axes.lines] == ["black", "red"]
