"""The student's file: stubs are put into it and nothing is taken out, snapshots are kept, and the solution is short."""

import json
import re

import nbformat
import pytest

from minstate.lab.course import build
from minstate.lab.course.build import begin, check, engine_of, folder, measured, show_diff, snapshot, use_solution
from minstate.lab.course.build_demos import EXPERIMENTS, counted, pages_in_turns, prompts_of_agents, tokens_per_pass
from minstate.lab.course.build_evidence import coded, read_label
from minstate.lab.course.build_final import random_turns
from minstate.lab.course.build_models import FOLDER, load_file, small_model
from minstate.lab.course.build_steps import (
    FILE,
    GIVEN,
    HEADER,
    SOLUTION,
    STEPS,
    definitions,
    is_stub,
    make_stub,
    open_tasks,
    solution_up_to,
    stub_path,
    tasks,
    with_stubs,
)
from minstate.lab.course.build_table import BUYS, lines_of, what_the_lines_buy
from minstate.lab.notebook.solutions import read_solutions
from minstate.lab.paths import NOTEBOOKS, PACKAGE

BUILD = sorted(NOTEBOOKS.glob("[0-9][0-9]_build_*.ipynb"))


class Passes:
    """Checks that pass, or the one that fails, in place of a step's own."""

    def __init__(self, failing: str = ""):
        def first(engine) -> None:
            """the file can be imported"""
            assert not failing, failing

        self.CHECKS = (first,)


@pytest.fixture
def student(tmp_path, monkeypatch):
    """A student's folder, in which steps pass without being looked at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "_instead", [])
    monkeypatch.setattr(build, "CHECKS", {step: Passes() for step in STEPS})
    return tmp_path


def test_the_whole_solution_is_short_and_complete():
    assert len(SOLUTION.read_text().splitlines()) < 250
    assert [int(header[1]) for header in HEADER.finditer(SOLUTION.read_text())] == list(STEPS)
    assert solution_up_to(6) == SOLUTION.read_text()
    assert not any(is_stub(function) for function in definitions(SOLUTION.read_text()).values())
    assert len((FOLDER / "given.py").read_text().splitlines()) < 90


@pytest.mark.parametrize("step", STEPS)
def test_a_stub_is_the_solution_without_its_bodies(step):
    assert stub_path(step).read_text() == make_stub(step), "run: python -m minstate.lab.course.build_steps"
    written = {*tasks(step)}
    assert written and not written & GIVEN
    assert open_tasks(solution_up_to(step), step) == ([], [])
    assert open_tasks(with_stubs("", step), step) == (tasks(step), [])
    if step < 6:
        assert open_tasks(solution_up_to(step), step + 1) == ([], tasks(step + 1))


def test_begin_adds_stubs_and_takes_nothing_out(student):
    path = student / FILE
    assert f"[{FILE}]({FILE})" in begin(1).data
    assert path.read_text() == with_stubs("", 1)
    mine = path.read_text().replace("...", "pass  # mine", 1).replace("# ---- Step 1: a cache that grows\n", "")
    path.write_text(mine)
    begin(1)
    assert path.read_text() == mine, "the header is gone, but its classes are there"
    begin(3)
    assert path.read_text().startswith(mine.rstrip())
    assert [int(header[1]) for header in HEADER.finditer(path.read_text())] == [2, 3]
    before = path.read_text()
    begin(2)
    assert path.read_text() == before


def test_what_is_left_to_do_is_named(student, capsys):
    check(1)
    begin(1)
    check(1)
    attempts = capsys.readouterr().out.splitlines()
    assert len(attempts) == 2 and all(each.startswith("not attempted yet: write Cache.extend,") for each in attempts)
    path = student / FILE
    path.write_text(path.read_text().replace("...", "pass", 1).replace("def forward(", "def foward("))
    with pytest.raises(AssertionError, match=r"has no forward and still has \.\.\. in Cache.truncate, attention"):
        check(1)
    path.write_text("def broken(:")
    with pytest.raises(SyntaxError):
        check(1)


def test_what_passes_is_kept_and_compared(student, capsys):
    show_diff(1)
    assert "nothing to compare yet" in capsys.readouterr().out and engine_of(1) is None
    for step in (1, 2):
        (student / FILE).write_text(solution_up_to(step))
        check(step)
        assert capsys.readouterr().out == "correct, in 1 of 1 checks\n  ✓ the file can be imported\n"
        assert snapshot(step).read_text() == solution_up_to(step)
    check(1)
    assert snapshot(1).read_text() == solution_up_to(1), "a later step is not a part of step 1"
    assert engine_of(2).Pool and not hasattr(engine_of(1), "Pool")
    assert measured(2, lambda engine: {"pages": engine.Pool(small_model(), 3).owners}) == {"pages": [0, 0, 0]}
    show_diff(2)


def test_a_difference_is_a_block_that_notebooks_colour(student, monkeypatch):
    shown = []
    monkeypatch.setattr(build, "display", lambda text: shown.append(text.data))
    for step in (1, 2):
        (student / FILE).write_text(solution_up_to(step))
        check(step)
        show_diff(step)
    first, second = shown
    assert first.startswith("```diff\n--- given.py\n+++ step 1") and "-def forward(model: Transformer" in first
    assert "+class Pool:" in second and "\n-" not in second.removeprefix("```diff\n---")


def test_a_failing_check_keeps_no_snapshot(student, monkeypatch):
    monkeypatch.setitem(build.CHECKS, 1, Passes("page 3 is lost"))
    (student / FILE).write_text(solution_up_to(1))
    with pytest.raises(AssertionError, match="step 1 · page 3 is lost"):
        check(1)
    assert engine_of(1) is None


def test_an_error_in_the_students_code_says_in_which_check(student):
    engine = load_file(SOLUTION, "broken", solution_up_to(1).replace("self.length + len(k)", "self.lenght + len(k)"))
    build.CHECKS[1] = __import__("minstate.lab.course.build_check_cache", fromlist=["CHECKS"])
    with pytest.raises(AttributeError) as caught:
        build.run_checks(engine, 1, real=False)
    assert "a cache that grows keeps each row" in caught.value.__notes__[0]


def test_the_solution_stands_in_for_a_student(student, monkeypatch):
    monkeypatch.setattr(build, "OUT", student / "out")
    use_solution(3)
    assert folder() == student / "out" / "my_engine" / "solved_3"
    assert engine_of(2) and engine_of(3) is None
    check(3)
    assert engine_of(3).Session
    monkeypatch.undo()


def test_the_repository_stays_as_it_is_when_its_notebooks_run(monkeypatch):
    monkeypatch.setattr(build, "_instead", [])
    monkeypatch.chdir(NOTEBOOKS)
    assert folder() == build.OUT / "my_engine"


def test_a_coded_number_says_where_it_was_written():
    model = small_model()
    k, v = coded(model, 3, 1, range(5, 9))
    label = read_label(float(v[2, 1, 0]))
    assert (label.text, label.layer, label.kind, label.token, label.head) == (3, 1, 1, 7, 1)
    assert str(read_label(float(k[0, 0, 0]))) == "the K of token 5, head 0, layer 1"
    assert read_label(0.5) is read_label(float("nan")) is read_label(-3.0) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_solution_takes_random_turns_as_minstate_does(seed):
    assert random_turns(load_file(SOLUTION, "solution"), seed) > 8


@pytest.mark.parametrize("step", STEPS)
def test_the_solution_passes_on_the_real_model(step):
    checks = build.run_checks(load_file(SOLUTION, "solution", solution_up_to(step)), step)
    assert any("real model" in each for each in checks)


@pytest.mark.parametrize(
    "experiment", [pages_in_turns, tokens_per_pass, prompts_of_agents], ids=lambda each: each.__name__
)
def test_what_is_recorded_is_what_the_solution_counts(experiment):
    recorded = json.loads(build.RECORDED.read_text())
    assert recorded.keys() == {each.__name__ for each in EXPERIMENTS}
    assert counted(experiment(load_file(SOLUTION, "solution"))) == counted(recorded[experiment.__name__])


def test_the_table_has_every_file_of_the_core_once():
    names = [name for files, _ in BUYS.values() for name in files.split()]
    core = [*PACKAGE.glob("*.py"), *(PACKAGE / "chat").glob("*.py")]
    wanted = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in core if path.stem != "__init__"}
    assert sorted(names) == sorted(wanted | {"kernels/"})
    assert all(lines_of(name) > 20 for name in names) and sum(map(lines_of, names)) > 40 * 250
    links = re.findall(r"\]\((.*?)\)", what_the_lines_buy().data)
    assert len(links) > 40 and all((NOTEBOOKS / link).exists() for link in links)


@pytest.mark.parametrize(("step", "path"), list(enumerate(BUILD, 1)), ids=lambda each: str(each)[-30:])
def test_a_build_notebook_has_the_parts_of_its_step(step, path):
    notebook = nbformat.read(path, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for call in (f"show_stub({step})", f"begin({step})", f"check({step})", f"measured({step}, ", f"show_diff({step})"):
        assert call in code, call
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    assert words < 750
    assert list(read_solutions(NOTEBOOKS / "solutions" / f"{path.stem}.py")) == [f"check-{step}"]
