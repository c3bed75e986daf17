"""pyproject.toml, constraints.txt, environment.yml and the Makefile describe one environment."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from rattler import MatchSpec, VersionSpec
from rattler import Version as CondaVersion

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for lines in [PROJECT["dependencies"], *EXTRAS.values()] for line in lines]


def pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return [re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines]


PINS = {canonicalize_name(name): Version(version) for name, version in pins()}


def conda_specs():
    lines = [line for line in CONDA["dependencies"] if isinstance(line, str)]
    return {spec.name.normalized: spec for spec in map(MatchSpec, lines)}


def pip_options(lines):
    """`{"-c": "constraints.txt", "-e": ".[lab,serve,test]"}`, however the two options are spelled."""
    options = dict(line.split() for line in lines)
    return {{"--constraint": "-c", "--editable": "-e"}.get(name, name): value for name, value in options.items()}


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_direct_dependency_has_a_pin_inside_its_range(requirement):
    assert requirement.specifier, "a dependency without a range promises versions that were never tested"
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


OURS = {"minstate", *(path.stem for path in ROOT.glob("tests/**/*.py"))}


def test_every_package_that_is_imported_is_asked_for():
    other_names = {"PIL": "pillow", "yaml": "pyyaml", "rattler": "py-rattler", "IPython": "ipykernel"}
    other_names |= {"agents": "openai-agents", "matplotlib_inline": "ipykernel"}
    declared = {canonicalize_name(requirement.name) for requirement in DIRECT}
    for file in [ROOT / "setup.py", *ROOT.glob("minstate/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OURS:
                assert canonicalize_name(other_names.get(top, top)) in declared, f"{file.name} imports {top}"


def test_ranges_stay_wide_so_that_a_machine_with_its_own_build_can_use_it():
    assert all(clause.operator == ">=" for requirement in DIRECT for clause in requirement.specifier)


def test_each_package_is_pinned_once_and_in_order():
    names = [name for name, _ in pins()]
    assert names == sorted(names, key=str.lower)
    assert len(PINS) == len(names)


def test_the_pin_of_triton_is_the_one_that_torch_asks_for_where_it_comes_with_cuda():
    assert (PINS["torch"], PINS["triton"]) == (Version("2.13.0"), Version("3.7.1"))


def test_conda_gives_a_python_for_which_the_project_is_made_and_no_other():
    made_for = {line.rsplit(" ", 1)[-1] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    accepted = VersionSpec(conda_specs()["python"].version)
    given = {f"3.{minor}" for minor in range(30) if accepted.matches(CondaVersion(f"3.{minor}"))}
    assert given == made_for
    assert all(Version(python) in SpecifierSet(PROJECT["requires-python"]) for python in given)


def test_conda_leaves_every_package_to_pip_so_that_each_is_pinned_in_one_place():
    direct = {canonicalize_name(requirement.name) for requirement in DIRECT}
    assert set(conda_specs()) == {"python", "pip", "make", "cxx-compiler"}
    assert not set(conda_specs()) & direct


def test_conda_and_make_install_the_project_with_all_extras_under_the_constraints():
    seldom = {"browse", "ray", "site"}  # for a user who has a browser, several machines, or a place for web pages
    always = [extra for extra in EXTRAS if extra not in seldom]
    (conda,) = [line["pip"] for line in CONDA["dependencies"] if isinstance(line, dict)]
    expected = {"-c": "constraints.txt", "-e": f".[{','.join(always)}]"}
    assert pip_options(conda) == expected
    recipes = re.findall(r"pip install .* -e .*", (ROOT / "Makefile").read_text())
    options = [pip_options(re.findall(r"-[ce] \S+", recipe.replace("'", ""))) for recipe in recipes]
    assert options == [expected, *({**expected, "-e": f".[{extra}]"} for extra in ("browse", "ray", "site"))]
