"""The pre-pass, without Sphinx: which pages there are, what they say of code and results, and what they leave out."""

import nbformat
import pytest
from small_course import write_course

from minstate.lab.site import check, notebooks, results
from minstate.lab.site.book import write_book

SOURCE = 'class="source" href="../source/minstate/session.py.html'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = write_course(tmp_path_factory.mktemp("course"))
    return write_book(root, root / "out" / "site-source")


@pytest.fixture(scope="module")
def text(site):
    return lambda page: (site.out / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cells(site):
    return nbformat.read(site.out / "course" / "00_one.ipynb", as_version=4).cells


def test_every_chapter_has_its_place_in_the_contents(text):
    front = text("index.md")
    order = ["course/index", "course/00_one", "course/01_two", "course/quizzes/part_1", "course/labs/README"]
    order += ["course/labs/first", "reference/index", "reference/engine_and_session", "reference/glossary"]
    places = [front.index(f"\n{page}\n") for page in [*order, "results/index", "lecturers/index"]]
    assert places == sorted(places)


def test_files_and_functions_that_exist_are_links_and_others_are_not(cells, text):
    assert f'<a {SOURCE}">`session.py`</a>, `nowhere.py`' in cells[0].source
    assert f'<a {SOURCE}#L32">`make_room`</a>' in cells[0].source
    assert "[two](01_two.ipynb#second) and `seed`" in cells[1].source, "the notebook gives `seed` a value"
    assert f'room: <a {SOURCE}#L32">`make_room`</a>' in text("reference/glossary.md")
    assert 'id="L32"' in text("source/minstate/session.py.md")
    assert "`session.py`" in text("source/minstate/index.md")


def test_solutions_are_on_no_page(site, text):
    assert "[One](00_one.ipynb), solved, [terms]" in text("course/index.md")
    assert not [path for path in site.out.rglob("*") if "solutions" in path.name]
    assert not any("answer = 42" in path.read_text() for path in site.out.rglob("*.md"))


def test_folds_widgets_and_pictures(cells):
    assert cells[2].metadata.tags == ["hide-input"]
    assert cells[2].metadata.mystnb.image == {"alt": "A dot."}
    assert cells[3].outputs[0].data == {"text/html": notebooks.NOTE, "text/plain": "A widget."}
    assert "remove-input" in cells[4].metadata.tags, "the call of `predict` holds the answer"
    assert list(cells[4].outputs[0].data) == ["text/html"]
    assert cells[4].outputs[1].data["text/markdown"] == "Open yours."
    assert f'<a {SOURCE}#L24"><code>Session.send</code></a>' in cells[4].outputs[0].data["text/html"]


def test_results_say_where_when_and_how_and_numbers_are_readable(text):
    page = text("results/more.md")
    for said in ("Machine: 2 threads", "Date: 2026-01-02", "Command: `python -m minstate.lab.bench steps size=2`"):
        assert f"- {said}" in page
    assert "What a step costs." in page, "the first paragraph of the benchmark's own docstring"
    assert "| a\\|b | 1.235 | 1,000 | – |" in page and "| 125.2 |" in page
    assert "![Figure: steps](../steps.png)" in page


def test_the_reference_has_signatures_docstrings_and_fields(text):
    page = text("reference/engine_and_session.md")
    assert (
        "{py:class} Session(engine, *, tenant: str='default')" in page and "{py:method} send(text: str) -> Turn" in page
    )
    assert "{py:property} closed\n:type: bool" in page
    assert "{py:class} Turn(seed: int=0, delta: int=1)" in page.replace(" = ", "=")
    assert "\n`seed`\n: of the noise, in any batch" in page and "{py:attribute} seed" not in page
    assert "{py:attribute} delta" in page and f"as <a {SOURCE}#L24" in page


def test_a_link_to_no_file_is_named(tmp_path):
    root = write_course(tmp_path)
    (root / "notebooks" / "glossary.md").write_text("# Terms\n\n[gone](../minstate/gone.py)\n")
    assert write_book(root, tmp_path / "out").dead == ["reference/glossary.md: ../minstate/gone.py"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234567, "1,234,567"), (0.00012346, "0.0001235"), (12345.6, "12,346"), (2.0, "2"), (True, "yes"), (None, "–")],
)
def test_a_number_has_four_digits(value, shown):
    assert results.cell(value) == shown


def test_links_of_a_built_site_are_checked(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="b.html#there">b</a><a href="b.html#gone">c</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="nowhere.html">n</a><img src="https://a.org/x.png"></p>')
    pages = check.read(tmp_path)
    assert check.broken(pages) == ["a.html: b.html#gone", "b.html loads https://a.org/x.png", "b.html: nowhere.html"]
