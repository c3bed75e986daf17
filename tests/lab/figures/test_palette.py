"""One palette: no file of the lab but `palette.py`, and no cell of a notebook, names a colour of its own."""

import ast
import re

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from matplotlib.colors import is_color_like, to_rgb

from minstate.lab import paths
from minstate.lab.figures import palette

LAB = paths.PACKAGE / "lab"
EXCEPTIONS = {
    "figures/palette.py": "the palette itself",
    "doctor/page.py": "the style sheet of a web page, by day and by night",
}
HEX = re.compile(r"#(?:[0-9a-fA-F]{8}|[0-9a-fA-F]{6}|[0-9a-fA-F]{3,4})\b")
FILES = [path for path in sorted(LAB.rglob("*.py")) if str(path.relative_to(LAB)) not in EXCEPTIONS]
COURSE = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) + sorted((paths.NOTEBOOKS / "solutions").glob("*.py"))


def raw_colors(code: str) -> list[str]:
    """The colours that a program names: hex codes, names, colour maps, levels of grey, letters, tuples of numbers."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_color(node.value):
            found.append(node.value)
        pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
        passed = [(key.value, value) for key, value in pairs if isinstance(key, ast.Constant)]
        passed += [(each.arg, each.value) for each in getattr(node, "keywords", ())]
        for name, value in passed:
            if isinstance(name, str) and name.endswith(("color", "colors")):
                found += _literal_colors(value)
    return found


def _is_color(text: str) -> bool:
    name = text.isalpha() and len(text) > 1 and text != "none" and is_color_like(text)
    return name or text in mpl.colormaps or bool(HEX.search(text))


def _literal_colors(value: ast.expr) -> list[str]:
    """A letter, a level of grey, or a tuple of numbers, where a colour is expected."""
    texts = isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value != "none"
    numbers = isinstance(value, ast.Tuple) and all(isinstance(each, ast.Constant) for each in value.elts)
    return [ast.unparse(value)] if (texts or numbers) and is_color_like(ast.literal_eval(value)) else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LAB)))
def test_a_file_of_the_lab_takes_its_colours_from_the_palette(path):
    found = raw_colors(path.read_text())
    assert not found, f"{path.relative_to(LAB)} names {found}: give the colour a name in figures/palette.py"


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.name)
def test_a_notebook_takes_its_colours_from_the_palette(path):
    texts = [path.read_text()]
    if path.suffix == ".ipynb":
        texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    found = [color for text in texts for color in raw_colors(text)]
    assert not found, f"{path.name} names {found}: import the colour from minstate.lab.figures.palette"


@pytest.mark.parametrize(
    "code",
    ["plot(color='white')", "look = {'edgecolor': '#8C8C8C'}", "bar(facecolor=(0.1, 0.2, 0.3))", "text(color='k')",
     "axhline(0, color='0.5')", "imshow(x, cmap='YlOrBr')", "css = 'a { color: #222; }'"],
)  # fmt: skip
def test_the_scan_finds_each_kind_of_colour(code):
    assert raw_colors(code)


def test_the_scan_leaves_other_texts_alone():
    assert (
        raw_colors("plot(x, 's--', color=BLUE, facecolor='none', label='a white box'); pick('k', (0.1, 0.2, 0.3))")
        == []
    )


def test_colours_differ_for_those_who_see_no_red_or_green_and_on_a_grey_printer():
    colors = np.array([to_rgb(color) for color in palette.COLORS])
    grey = colors @ (0.299, 0.587, 0.114)
    for place, look in enumerate(map(palette.fill_of, range(len(colors)))):
        for other in range(place):
            lighter = abs(grey[place] - grey[other]) > 0.1
            assert lighter or look["hatch"] != palette.fill_of(other)["hatch"]
    assert len({style for _, style in map(palette.line_of, range(len(colors)))}) == len(colors)


def test_a_tint_lies_between_the_paper_and_the_colour():
    assert palette.tint(palette.BLUE, 0) == to_rgb(palette.PAPER)
    assert palette.tint(palette.BLUE, 1) == pytest.approx(to_rgb(palette.BLUE))
