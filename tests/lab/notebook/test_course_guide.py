"""The guide, the lecturers' pages and the glossary are right: every notebook is there, every file and name exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
GUIDE, GLOSSARY, LECTURERS = (
    (NOTEBOOKS / f"{name}.md").read_text() for name in ("README", "glossary", "for_lecturers")
)
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
def test_every_notebook_is_in_the_table_and_a_chapter_has_two_questions(name):
    title = table_of_notebooks()[name]
    if "_build_" in name:
        assert title.startswith(f"Build {name[:2]} ")
        return
    assert title.startswith(f"{name[:2]} ")
    questions = LECTURERS.split(f"**{title}**\n", 1)[1].split("\n**")[0]
    assert len(re.findall(r"^- ", questions, flags=re.MULTILINE)) == 2


def test_a_notebook_and_the_guide_name_the_same_minutes():
    for name, minutes in re.findall(r"\]\((\d\d_\w+\.ipynb)\) \| (\d+) \|", GUIDE):
        if "_build_" not in name:
            (told,) = re.findall(r"(\w+) minutes to read", (NOTEBOOKS / name).read_text())
            assert told.replace("Ten", "10") == minutes, name


def test_the_table_is_in_order():
    assert list(table_of_notebooks()) == sorted(table_of_notebooks())


@pytest.mark.parametrize("target", sorted(set(LINK.findall(GUIDE) + LINK.findall(GLOSSARY) + LINK.findall(LECTURERS))))
def test_every_file_named_exists(target):
    assert (NOTEBOOKS / target).exists()


def test_each_week_has_a_build_step_or_a_lab_and_the_long_plan_has_all_of_them():
    weeks = [re.findall(r"^\| \d+ \| .*$", part, flags=re.MULTILINE) for part in LECTURERS.split("\n## ")]
    long, short = (found for found in weeks if found)
    assert (len(long), len(short)) == (12, 4)
    to_write = [week.split("|")[3] for week in (*long, *short)]
    assert all(re.search(r"Build 0\d|Lab \d|capstone", cell, flags=re.IGNORECASE) for cell in to_write)
    for wanted in (*(f"Build 0{step}" for step in (1, 2, 3, 4, 6, 7)), *(f"Lab {lab}" for lab in (1, 2, 3, 4))):
        assert any(wanted in week for week in long), wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_term_is_explained_in_a_sentence_or_two_and_its_names_are_in_its_file(row):
    term, meaning, file, _ = row
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
