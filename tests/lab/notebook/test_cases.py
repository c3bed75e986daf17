"""Hidden cases are those of the solutions as they are; no exercise is there twice; what is wrong with one is named."""

import json
import subprocess
import sys
from collections import Counter

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from minstate.lab.notebook import cases
from minstate.lab.notebook.cases import cases_of
from minstate.lab.notebook.hidden import CASES, is_right
from minstate.lab.notebook.solutions import read_solutions, without_cases
from minstate.lab.paths import NOTEBOOKS

COURSE = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
STUB = "def half(x):\n    return ...\n\n\ncheck(half, 'half', hint='Divide.')"
SECTION = """# %% half: halves
# Half of a number is a number that gives it when it is doubled, and `floor` is a name of the first cell.
def half(x):
    return floor(x / 2)


def cases(random):
    yield (0,)
    for _ in range(10):
        yield (random.randrange(1000),)
"""


def notebook(*cells: tuple[str, str], first: str = "from math import floor") -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell(source, id=name) for name, source in (("first", first), *cells)])


def solved(section: str, tmp_path, *cells: tuple[str, str]) -> dict[str, list[list[str]]]:
    (tmp_path / "00.py").write_text(section)
    return cases_of(notebook(*(cells or [("half", STUB)])), read_solutions(tmp_path / "00.py"))


def test_the_hidden_cases_are_those_of_the_solutions():
    command = [sys.executable, "-m", "minstate.lab.notebook.cases", "--check"]  # notebooks may set the process up
    done = subprocess.run(command, cwd=NOTEBOOKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"run it without --check:\n{done.stdout}{done.stderr}"


def test_no_exercise_is_there_twice_and_every_file_has_its_notebook():
    files = sorted(CASES.glob("*.json"))
    assert {path.stem for path in files} <= {path.stem for path in COURSE}
    names = Counter(name for path in files for name in json.loads(path.read_text(encoding="utf-8")))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_solution_gives_the_results_in_the_namespace_of_the_first_cell(tmp_path):
    pairs = solved(SECTION, tmp_path)["half"]
    assert len(pairs) >= cases.FEWEST and pairs[0][0] == "(0,)"
    assert all(is_right("half", text, eval(text)[0] // 2, digest) for text, digest in pairs)
    assert not any(is_right("half", text, eval(text)[0] / 2 + 1, digest) for text, digest in pairs)
    assert solved(SECTION, tmp_path)["half"] == pairs, "the cases are the same in every run"


def test_arguments_keep_tuples_and_an_exercise_uses_the_one_before_it(tmp_path):
    quarter = SECTION.replace("half", "quarter").replace("floor(x / 2)", "half(half(x[0]))")
    quarter = quarter.replace("(random.randrange(1000),)", "((random.randrange(99), None),)")
    quarter = quarter.replace("yield (0,)", "yield ((0, 1),)")
    stub = STUB.replace("half", "quarter")
    pairs = solved(SECTION + "\n\n" + quarter, tmp_path, ("half", STUB), ("quarter", stub))["quarter"]
    assert pairs[0][0] == "((0, 1),)" and all(text.endswith("None),)") for text, _ in pairs[1:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def cases(random)", "def some(random)", "half: its section has no function cases"),
        ("range(10)", "range(3)", "4 different cases, and at least 8"),
        ("yield (0,)", "yield 0", r"half: cases\(random\) yields 0, which is no tuple of plain"),
        ("yield (0,)", "yield (floor,)", r"yields \(<built-in"),
        ("yield (0,)", "yield (float('nan'),)", r"yields \(nan,\)"),
        ("return floor(x / 2)", "return ...", "half: the solution returns ..."),
        ("return floor(x / 2)", "return 0.1234565", "the result 0.1234565 lies where rounding decides"),
        (
            "floor(x / 2)\n",
            "x / 2\n\n\nhalf(later)",
            "half: the section of its solution does not run by itself: NameError",
        ),
    ],
)
def test_what_is_wrong_with_an_exercise_is_named(old, new, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        solved(SECTION.replace(old, new), tmp_path)


def test_a_call_that_names_another_exercise_is_refused(tmp_path):
    with pytest.raises(ValueError, match="other: its call of check names the exercise 'half'"):
        solved(SECTION, tmp_path, ("other", STUB))


def test_cases_that_stand_in_the_call_are_left_alone(tmp_path):
    live = ("live", "def f(x):\n    return ...\n\n\ncheck(f, ((engine,), 3))")
    assert solved(SECTION, tmp_path, live) == {}


def test_a_solved_copy_does_not_define_cases(tmp_path):
    (tmp_path / "00.py").write_text(SECTION)
    body = without_cases(read_solutions(tmp_path / "00.py")["half"])
    assert body.startswith("# Half") and body.endswith("return floor(x / 2)")
