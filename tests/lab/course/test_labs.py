"""The labs: the judge says "passed" with the reference solution and "not yet" without it, and nothing else breaks.

Each solution is a patch. It is applied in a temporary copy of the package, in which the judge and the tests that the
lab names then run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minstate.lab.course import judge_drafts, judge_eviction
from minstate.lab.course.judge import LABS, main, verdict
from minstate.weights import find_model

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "notebooks" / "labs"
PAGES = {path.stem[:2]: path for path in sorted(FOLDER.glob("L*.md"))}
COMMAND = re.compile(r"^python -m pytest -q (.*)$", re.MULTILINE)


def named_tests(lab: str) -> list[str]:
    """The tests that the lab's page says must still pass: its last command with several files."""
    return max(COMMAND.findall(PAGES[lab].read_text()), key=len).split()


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder), "MINSTATE_MODEL": str(find_model())}
    environment["HYPOTHESIS_PROFILE"] = "short"  # whoever works on a lab runs the tests in full
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )


def patched_copy(lab: str, folder: Path) -> Path:
    """A copy of the package and its tests with the reference solution of a lab."""
    for name in ("minstate", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (patch,) = (FOLDER / "solutions").glob(f"{lab}_*.patch")
    ceiling = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # what lies above is no repository
    done = subprocess.run(["git", "apply", str(patch)], cwd=folder, env=ceiling, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(
            f"the reference solution of {lab}, {patch.relative_to(ROOT)}, does not apply to the engine as it is: "
            f"change the engine by hand as the patch does, and write `git diff minstate` into it.\n{done.stderr}"
        )
    return folder


@pytest.mark.parametrize("lab", LABS)
def test_without_a_change_the_judge_says_not_yet(lab, capsys):
    assert not verdict(lab)
    printed = capsys.readouterr().out
    assert printed.endswith("not yet\n") and "\nNO " in f"\n{printed}" and "raised an exception" not in printed


@pytest.mark.parametrize("lab", LABS)
def test_with_the_solution_the_judge_says_passed_and_the_named_tests_pass(lab, tmp_path):
    folder = patched_copy(lab, tmp_path)
    judged = run(["minstate.lab.course.judge", lab], folder)
    assert judged.returncode == 0 and judged.stdout.endswith("passed\n"), judged.stdout + judged.stderr
    tested = run(["pytest", "-q", "-x", "-p", "no:cacheprovider", *named_tests(lab)], folder)
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr


def test_the_judges_compare_with_the_engine_as_it_is():
    for (name, share), baseline in judge_eviction.BASELINES.items():
        counted = [judge_eviction.recomputed(name, share, policy) for policy in ("LRU", "hints")]
        assert counted == list(baseline), (name, share)
    for name, baseline in judge_drafts.BASELINES.items():
        counted = judge_drafts.replayed(name)
        assert (counted.passes, round(counted.ms)) == baseline, name


def test_an_exception_of_the_engine_is_shown_and_is_not_passed(monkeypatch, capsys):
    def broken():
        raise RuntimeError("a page is lost")
        yield

    monkeypatch.setitem(LABS, "L1", broken)
    with pytest.raises(SystemExit) as ended:
        main(["L1"])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "a page is lost" in printed.err and printed.out.endswith("not yet\n")


@pytest.mark.parametrize("lab", LABS)
def test_a_lab_is_described_on_two_pages(lab):
    text = PAGES[lab].read_text()
    assert len(text.split()) <= 1000, "about two pages"
    for section in (
        "**The question.**",
        "## Where the code is",
        "## The contract",
        "## Judges",
        "## What earns points",
    ):
        assert section in text
    assert f"python -m minstate.lab.course.judge {lab}" in text and text.count("<details>") >= 3
    assert all((ROOT / name.partition("::")[0]).exists() for name in named_tests(lab) if name != "--deselect")
    points = re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)
    assert sum(map(int, points)) == 10


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_every_link_of_the_labs_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (FOLDER / target).exists(), target


def test_a_rubric_adds_up():
    points = re.findall(r"^\| (\d+) \| \*\*", (FOLDER / "capstone.md").read_text(), flags=re.MULTILINE)
    assert sum(map(int, points)) == 100
