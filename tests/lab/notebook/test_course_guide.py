"""The course guide and the glossary are right: every notebook is in the table, every file and every name exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
GUIDE, GLOSSARY = (NOTEBOOKS / "README.md").read_text(), (NOTEBOOKS / "glossary.md").read_text()
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in GLOSSARY.splitlines() if line.startswith("|")]
ROWS = [row for row in ROWS if row[0] != "term" and not set(row[0]) <= set("- ")]


@cache
def names_in(path: Path) -> set[str]:
    """All that a file defines or calls by name: functions, classes, variables, parameters, attributes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        found |= {getattr(node, field, None) for field in ("name", "id", "arg", "attr")}
    return found


def table_of_notebooks() -> dict[str, str]:
    rows = re.findall(r"^\| \[(.*?)\]\((\d\d_\w+\.ipynb)\).*$", GUIDE, flags=re.MULTILINE)
    return {target: title for title, target in rows}


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")))
def test_every_notebook_is_in_the_table_and_has_its_questions(name):
    title = table_of_notebooks()[name]
    assert title.startswith(name[:2])
    questions = GUIDE.split(f"**{title}**\n", 1)[1].split("\n**")[0]
    assert 2 <= len(re.findall(r"^- ", questions, flags=re.MULTILINE)) <= 3


def test_the_table_is_in_order():
    assert list(table_of_notebooks()) == sorted(table_of_notebooks())


@pytest.mark.parametrize("target", sorted(set(LINK.findall(GUIDE) + LINK.findall(GLOSSARY))))
def test_every_file_named_exists(target):
    assert (NOTEBOOKS / target).exists()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_term_is_explained_in_a_sentence_or_two_and_its_names_are_in_its_file(row):
    term, meaning, file = row
    (target,) = LINK.findall(file)
    path = (NOTEBOOKS / target).resolve()
    assert target == f"../minstate/{re.search('`(.*)`', file)[1]}"
    assert meaning.endswith(".") and 1 <= len(re.findall(r"\.(?: |$)", meaning)) <= 3
    for name in re.findall(r"`(\w+)`", term):
        assert name in names_in(path), "a term set as code is a name of its file"
    package = set().union(*(names_in(each) for each in path.parents[0].rglob("*.py")))
    for code in re.findall(r"`([^`]+)`", meaning):
        for name in re.findall(r"[A-Za-z_]{2,}", code):
            assert name in package or name in names_in(path), f"{code} is code of the package"


def test_no_term_is_there_twice_and_the_usual_ones_are():
    terms = [re.sub("`", "", row[0]) for row in ROWS]
    assert len(terms) == len(set(terms))
    words = {word for term in terms for word in re.split(r", ", term)}
    assert words >= {
        "page", "slot", "page table", "prefill", "decode", "Δ", "n", "draft", "accept", "forced", "publish", "borrow",
        "tenant", "radix tree", "ragged batch", "ttft", "preemption",
    }  # fmt: skip
