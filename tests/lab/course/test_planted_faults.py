"""Faults that students make, planted into the solution: the checker of the step finds each, and says what is wrong."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from minstate.lab.course.build import run_checks
from minstate.lab.course.build_models import load_file
from minstate.lab.course.build_steps import SOLUTION, STEPS, solution_up_to


class Fault(NamedTuple):
    step: int
    name: str
    old: str
    new: str
    message: str  # a regular expression


def read_faults() -> list[Fault]:
    """The faults of the file; its first lines describe the format. It shows parts of the solution, hence its folder."""
    faults, path = [], Path(__file__).with_name("solutions") / "planted_faults.txt"
    for block in re.split(r"^# ", path.read_text(), flags=re.MULTILINE)[1:]:
        title, *lines = block.splitlines()
        old, new, message = ("\n".join(line[2:] for line in lines if line.startswith(mark)) for mark in "-+!")
        faults.append(Fault(int(title[0]), title[3:], old, new, message))
    return faults


FAULTS = read_faults()


def test_there_are_faults_for_each_step():
    assert len(FAULTS) == len({(fault.step, fault.name) for fault in FAULTS}) >= 50
    assert {fault.step for fault in FAULTS} == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_the_solution_passes_every_check_on_the_small_model(step):
    assert len(run_checks(load_file(SOLUTION, "solution", solution_up_to(step)), step, real=False)) >= 3


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.step}: {fault.name}")
def test_a_planted_fault_is_named_by_the_checker_of_its_step(fault):
    text, before = solution_up_to(fault.step), solution_up_to(fault.step - 1) if fault.step > 1 else ""
    section = text[len(before) :]
    assert section.count(fault.old) == 1, f"{section.count(fault.old)} times {fault.old}"
    engine = load_file(SOLUTION, "planted", before + section.replace(fault.old, fault.new))
    with pytest.raises(AssertionError) as caught:
        run_checks(engine, fault.step, real=False)
    assert re.search(fault.message, str(caught.value), flags=re.DOTALL), str(caught.value)
    assert str(caught.value).startswith(f"step {fault.step} · ")
