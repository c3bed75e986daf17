"""An installed copy works away from the repository: its data is there, and what it lacks is said in a sentence.

The wheel is built from a copy of the source, and installed into a virtual environment that sees the packages of the
present one, and not the repository. All commands run in one process, since importing torch takes seconds.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # of several processes one builds the wheel, and runs all of these

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ("minstate", "notebooks", "pyproject.toml", "setup.py", "README.md", "LICENSE")
ANSWERS = """
import contextlib, io, json, runpy, sys

def answer(module, *arguments):
    sys.argv, shown, code = [module, *arguments], io.StringIO(), 0
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
    return {"code": code, "text": shown.getvalue()}

def without(package, module, *arguments):
    kept, sys.modules[package] = sys.modules.get(package), None  # as if it were not installed
    try:
        return answer(module, *arguments)
    finally:
        del sys.modules[package]
        sys.modules |= {package: kept} if kept else {}

"""
PROGRAM = (
    ANSWERS
    + """
lab = "minstate.lab."
answers = {name: answer(lab + name, "--help") for name in ("bench", "calibrate", "traces.write", "fetch", "main")}
answers["fetch without gguf"] = without("gguf", lab + "fetch")
answers["main without nbformat"] = without("nbformat", lab + "main")
answers["bench without pandas"] = without("pandas", lab + "bench", "radix_tree")
answers["main, dry"] = answer(lab + "main", "--dry-run")
answers["main without a model"] = answer(lab + "main")
for name in ("solutions", "browse", "cases", "student", "release", "collect"):
    answers["notebook." + name] = answer(lab + "notebook." + name)
answers["site"] = answer(lab + "site")

import importlib
import minstate
from minstate.lab import paths
from minstate.lab.agent.workload import AgenticWorkload
from minstate.lab.bench.__main__ import BENCHMARKS
from minstate.kernels.cpu import build
from minstate.lab.traces.trace import read_trace
from minstate.serve import AsyncEngine, live_page

with AgenticWorkload(seed=0, turns=2) as workload:
    inputs = len(list(workload))
facts = {
    "file": minstate.__file__,
    "server": sys.modules[AsyncEngine.__module__].__file__,
    "page": sorted(path.name for path in live_page.FOLDER.iterdir()),
    "clone": paths.CLONE,
    "results": str(paths.RESULTS),
    "traces": {path.stem: len(list(read_trace(path).turns)) for path in sorted(paths.TRACES.glob("*.jsonl"))},
    "inputs": inputs,
    "C++": len(build.SOURCES) * build.HERE.joinpath("vectors.h").exists(),
    "characters of source": len(paths.source_text()),
    "benchmarks": [callable(getattr(importlib.import_module(lab + "bench." + name), name)) for name in BENCHMARKS],
}
print(json.dumps({"answers": answers, "facts": facts}))
"""
)


def pip(*arguments: str | Path) -> None:
    options = ["--disable-pip-version-check", "--no-deps", "--no-index", "-q"]
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *options, *arguments[1:]], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this source, which is copied first: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip("wheel", "--no-build-isolation", "-w", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    shutil.rmtree(folder / "source")
    return built


@pytest.fixture(scope="module")
def python(wheel):
    """An interpreter for which the wheel is installed, beside the packages of the one that runs the tests."""
    folder = wheel.parent / "environment"
    venv.create(folder, with_pip=False)
    (own,) = folder.glob("lib/python*/site-packages")
    pip("install", "--target", own, wheel)
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own / "packages.pth").write_text("\n".join(packages))  # their own .pth files, an editable install, are not read
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def outcome(python):
    """What the program finds, and what the commands answer, in a folder that has nothing to do with the package."""
    folder = python.parents[2] / "elsewhere"
    folder.mkdir()
    mine = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MINSTATE_MODEL")}
    run = [python, "-c", PROGRAM]
    done = subprocess.run(run, cwd=folder, env=mine | {"HOME": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_installed_copy_runs_and_finds_its_data(outcome, python):
    facts, folder = outcome["facts"], python.parents[2]
    assert Path(facts["file"]).is_relative_to(folder / "environment") and facts["clone"] is None
    assert Path(facts["server"]).is_relative_to(folder / "environment")
    assert facts["page"] == ["index.html", "page.css", "page.js"]
    assert facts["traces"] == {"agentic-0": 6, "coding-0": 35, "data_analysis-0": 12, "planning-0": 17}
    assert facts["C++"] == 5
    assert facts["inputs"] == 2 and facts["characters of source"] > 100_000
    assert facts["results"] == str(folder / "elsewhere" / "results")
    assert all(facts["benchmarks"])


@pytest.mark.parametrize("command", ["bench", "calibrate", "traces.write", "fetch", "main"])
def test_a_command_explains_itself(outcome, command):
    answer = outcome["answers"][command]
    assert answer["code"] == 0 and f"usage: python -m minstate.lab.{command}" in answer["text"]


def test_the_main_job_has_its_notebook(outcome, python):
    answer = outcome["answers"]["main, dry"]
    assert answer["code"] == 0
    notebook = Path(answer["text"].removeprefix("would execute ").split(", and ")[0])
    assert notebook.is_relative_to(python.parents[1])
    assert json.loads(notebook.read_text()) == json.loads((ROOT / "notebooks" / notebook.name).read_text())


def test_the_hidden_cases_of_exercises_are_in_it(outcome, python):
    found = python.parents[1].glob("lib/python*/site-packages/minstate/lab/data/notebooks/cases/*.json")
    assert {path.name for path in found} == {path.name for path in ROOT.glob("notebooks/cases/*.json")}


def test_without_a_model_the_main_job_names_the_command_that_fetches_one(outcome):
    answer = outcome["answers"]["main without a model"]
    assert answer["code"].startswith("error: no model in") and "python -m minstate.lab.fetch" in answer["code"]


@pytest.mark.parametrize("command", ["fetch without gguf", "main without nbformat", "bench without pandas"])
def test_without_the_extra_a_command_names_what_installs_it(outcome, python, command):
    code = outcome["answers"][command]["code"]
    assert code.startswith("error: ") and command.split()[-1] in code
    assert code.endswith(f": {python} -m pip install 'minstate[lab]'")


@pytest.mark.parametrize(
    "command",
    ["site", *(f"notebook.{name}" for name in ("solutions", "browse", "cases", "student", "release", "collect"))],
)
def test_a_command_for_the_whole_course_asks_for_a_clone(outcome, command):
    assert f"lab.{command} needs a clone of the repository" in outcome["answers"][command]["code"]
