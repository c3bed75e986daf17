"""The site: a page for each notebook and each file it links to; all links lead somewhere; nothing of this machine."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minstate.lab.notebook.site import build

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


class Page(HTMLParser):
    """The links of a page, the files that it loads, its anchors, its alternative texts."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.places, self.alternatives = [], [], set(), []
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs.get("id"), attrs.get("name")}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif "href" in attrs or "src" in attrs:
            self.loaded.append(attrs.get("href") or attrs["src"])
        if tag == "img":
            self.alternatives.append(attrs.get("alt"))


def write_course(root: Path) -> tuple[list[Path], Path]:
    notebooks, package = root / "notebooks", root / "minstate"
    notebooks.mkdir()
    package.mkdir()
    (package / "session.py").write_text('"""A session."""\n')
    (notebooks / "glossary.md").write_text("# Glossary\n\n**Page**: see [the course](README.md).\n")
    guide = notebooks / "README.md"
    guide.write_text(
        "# The course\n\n[One](00_one.ipynb), [two](01_two.ipynb#Second), [words](glossary.md), "
        "[code](../minstate/session.py), [all of it](../minstate), [paper](https://arxiv.org/abs/2605.26289)\n"
    )
    moving = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox()"}
    figure = new_output(
        "execute_result", {"image/png": DOT, "text/plain": "<Figure>"}, metadata={"image/png": {"alt": "A dot."}}
    )
    one = [
        new_markdown_cell("# 00 · One\n\nSee `minstate/session.py`, `minstate/nowhere.py`.\n\n## First\n\n## Second"),
        new_markdown_cell("## Third\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"),
        new_code_cell("draw()", outputs=[figure]),
        new_code_cell("slide()", outputs=[new_output("display_data", moving)]),
    ]
    two = [new_markdown_cell("# 01 · Two <tags> & more\n\n## Second\n\nBack to [one](00_one.ipynb).")]
    paths = [notebooks / "00_one.ipynb", notebooks / "01_two.ipynb"]
    for path, cells in zip(paths, (one, two), strict=True):
        nbformat.write(new_notebook(cells=cells), path)
    return paths, guide


@pytest.fixture
def pages(tmp_path) -> dict[str, Page]:
    written = build(*write_course(tmp_path), tmp_path / "out" / "site")
    return {path.name: Page(path) for path in written}


def test_every_notebook_and_every_file_linked_has_a_page(pages):
    assert list(pages)[:3] == ["index.html", "00_one.html", "01_two.html"]
    assert set(list(pages)[3:]) == {"notebooks-glossary.html", "minstate-session.py.html", "minstate.html"}
    assert "A session." in pages["minstate-session.py.html"].text and "A session." in pages["minstate.html"].text


def test_all_internal_links_resolve(pages, tmp_path):
    for page in pages.values():
        assert "index.html" in page.links
        for link in page.links + page.loaded:
            if not link.startswith(("https://arxiv.org", "data:")):
                name, _, place = link.partition("#")
                assert not name or (tmp_path / "out" / "site" / name).is_file(), link
                assert not place or place in pages[name].places if name else place in page.places, link


def test_pages_load_nothing_but_their_style(pages):
    for page in pages.values():
        assert [each for each in page.loaded if not each.startswith("data:")] == ["style.css"]
        assert "<script" not in page.text


def test_a_notebook_leads_to_its_neighbours_its_sections_and_its_files(pages):
    assert "01_two.html" in pages["00_one.html"].links and "00_one.html" in pages["01_two.html"].links
    assert {"#First", "#Second", "#Third", "minstate-session.py.html"} <= set(pages["00_one.html"].links)
    assert "<code>minstate/nowhere.py</code>" in pages["00_one.html"].text
    assert "<title>01 · Two &lt;tags&gt; &amp; more</title>" in pages["01_two.html"].text


def test_figures_have_their_text_and_widgets_a_note(pages):
    assert pages["00_one.html"].alternatives == ["A dot."]
    assert "a widget stands here" in pages["00_one.html"].text
    assert "VBox" not in pages["00_one.html"].text


def test_no_path_of_this_machine_is_in_it(pages, tmp_path):
    for page in pages.values():
        assert str(tmp_path) not in page.text and str(Path(__file__).parents[3]) not in page.text


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    notebooks, guide = write_course(tmp_path)
    guide.write_text("[gone](../minstate/gone.py)")
    with pytest.raises(ValueError, match=re.escape("minstate/gone.py, which has no page")):
        build(notebooks, guide, tmp_path / "out")
