"""What a text names in code font is found where it is defined, and nothing is linked that may mean something else."""

from pathlib import Path

import pytest
from small_course import write_course

from minstate.lab.site.names import Names, Place, bound_in, is_public

SESSION = Path("minstate/session.py")
STEPS = Path("minstate/lab/bench/steps.py")


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> Names:
    return Names(write_course(tmp_path_factory.mktemp("course")))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("session.py", Place(SESSION)),
        ("minstate/session.py", Place(SESSION)),
        ("lab/bench/", Place(Path("minstate/lab/bench"))),
        ("Session", Place(SESSION, 18)),
        ("Session.send", Place(SESSION, 24)),
        ("session.send(text)", Place(SESSION, 24)),
        ("Turn.delta", Place(SESSION, 15)),
        ("make_room", Place(SESSION, 32)),
        ("make_room()", Place(SESSION, 32)),
        ("make_rooms", Place(STEPS, 4)),
        ("minstate/session.py::make_room", Place(SESSION, 32)),
        ("nowhere.py", None),
        ("session", None),
        ("Session.nothing", None),
        ("00_one.py", None),
        ("x + 1", None),
        ("print", None),
    ],
)
def test_a_name_is_found(names, text, place):
    assert names.find(text) == place


def test_a_name_that_the_page_itself_gives_a_value_means_that(names):
    assert names.find("make_room", frozenset({"make_room"})) is None
    assert names.find("Session.send", frozenset({"Session"})) == Place(SESSION, 24), "a method is nobody else's"


def test_names_that_a_cell_binds():
    assert bound_in("def f(x):\n    y = x\n") == {"f", "x", "y"}
    assert bound_in("%matplotlib inline") == set(), "what is no Python binds nothing"


def test_of_two_files_with_a_name_the_inner_one_is_meant_and_of_two_equals_none(tmp_path):
    for name in ("minstate/pool.py", "minstate/lab/pool.py", "minstate/lab/a/draw.py", "minstate/lab/b/draw.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    names = Names(tmp_path)
    assert names.find("pool.py") == Place(Path("minstate/pool.py"))
    assert names.find("lab/pool.py") == Place(Path("minstate/lab/pool.py"))
    assert names.find("draw.py") is None


@pytest.mark.parametrize("path", ["notebooks/solutions/00.py", "notebooks/solutions", "notebooks/cases/00.json"])
def test_solutions_are_not_public(path):
    assert not is_public(Path(path)) and is_public(Path("notebooks/00_one.ipynb"))
