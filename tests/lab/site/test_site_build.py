"""The site as Sphinx builds it: no warning, no broken link, nothing from elsewhere; and how a browser shows it."""

import shutil
import subprocess
import sys

import pytest
from small_course import write_course

from minstate.lab.notebook import browse
from minstate.lab.site import check, look
from minstate.lab.site.book import write_book

pytest.importorskip("myst_nb", reason="needs the extra `site`: `make test-site`")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = write_course(tmp_path_factory.mktemp("course"))
    write_book(root, root / "source")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--quiet",
        "-b",
        "html",
        root / "source",
        root / "site",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root / "site"


def test_all_links_resolve_and_nothing_comes_from_elsewhere(built):
    pages = check.read(built)
    assert {path.name for path in pages} >= {"index.html", "00_one.html", "session.py.html", "search.html"}
    assert not check.broken(pages)
    assert "A dot." in pages[built / "course" / "00_one.html"].alternatives


def test_formulas_folds_and_search(built):
    page = (built / "course" / "00_one.html").read_text()
    assert "<math" in page and "cdn" not in page
    assert "hide_input" in page or "hide-input" in page
    assert "predict(&#39;the answer" not in page and "<details>" in page
    assert "begin" in (built / "searchindex.js").read_text()  # the stem of "begins"


def test_a_browser_finds_no_fault_in_it_and_each_fault_of_a_bad_page(built, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browse`")
    if not any(map(shutil.which, browse.PROGRAMS)):
        pytest.skip("needs a Chromium on the path")
    (tmp_path / "bad.html").write_text(
        "<div style='width: 3000px'>wide</div><img src='no.png'><p>under</p><p style='margin-top: -2.2em'>over</p>"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browse.chromium(playwright.chromium.executable_path))
        good = look.look(browser, built, ["index.html", "course/00_one.html"], tmp_path)
        (wrong, *_) = look.look(browser, tmp_path, ["bad.html"], tmp_path).values()
    assert len(good) == 12 and not any(good.values()), good
    for fault in ("wider than the window", "no picture", "a picture without a text", "text on text"):
        assert any(fault in each for each in wrong), (fault, wrong)
    assert len(list(tmp_path.glob("*.png"))) == 18
