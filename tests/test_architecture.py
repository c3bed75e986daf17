"""What ARCHITECTURE.md says is so: who calls whom, who imports whom, how long files are, which test guards which rule.

Each change that the page proposes is made in memory, in a process of its own, where the test it names has to fail.
"""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
TURN, ARROWS = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
FILES = [*(ROOT / "minstate").glob("*.py"), *(ROOT / "minstate" / "chat").glob("*.py")]
CORE = {  # by the names that the page has for them: `engine`, `chat/template`
    path.relative_to(ROOT / "minstate").with_suffix("").as_posix(): path for path in FILES if path.stem != "__init__"
}
KERNELS = [
    path
    for path in (ROOT / "minstate" / "kernels").rglob("*")
    if path.suffix in {".py", ".cpp", ".h"} and path.stem != "__init__"
]
CHANGE = re.compile(r"- `([\w/]+)\.py`: in `([\w.]+)` write `([^`]+)` for `([^`]+)`: `(tests/[^`]+)`")
CHANGES = CHANGE.findall(" ".join(PAGE.split()))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def definitions() -> dict[str, ast.AST]:
    """Classes, methods and functions of the core: `Chat`, `Chat.delta`, `choose`."""
    found = {}
    for path in CORE.values():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[node.name] = node
                inside = [each for each in getattr(node, "body", []) if isinstance(each, ast.FunctionDef)]
                found |= {f"{node.name}.{each.name}": each for each in inside}
    return found


def names_in(node: ast.AST) -> set[str]:
    return {getattr(each, field, None) for each in ast.walk(node) for field in ("id", "attr")}


# ---- One turn


def test_in_the_picture_of_a_turn_each_name_is_used_by_one_above_it():
    above: list[list[str]] = []  # the chains on the way down to the line
    for line in TURN.splitlines():
        drawn, chain, _ = re.fullmatch(r"([│├└─ ]*)(\S+(?: → \S+)*)\s*(.*)", line).groups()
        del above[len(drawn) // 3 :]
        users = [name for each in above for name in each]
        for name in chain.split(" → "):
            assert name in definitions(), name
            used = {word for user in users for word in names_in(definitions()[user])}
            assert not users or name.rpartition(".")[2] in used, f"none of {users} uses {name}"
            users.append(name)
        above.append(chain.split(" → "))


def test_every_method_that_the_page_names_is_there():
    named = set(re.findall(r"\b[A-Z]\w+\.[a-z_]\w*", PAGE))
    assert len(named) > 30 and named <= definitions().keys(), named - definitions().keys()


# ---- Who knows whom


def short(imported: str) -> str | None:
    """The page's name for an imported module of the core, `kernels` for all of these, or `torch`; None for others."""
    top, *parts = imported.split(".")
    if top == "torch" or parts[:1] == ["kernels"]:
        return parts[0] if top == "minstate" else top
    wanted = ["/".join(parts[:count]) for count in (1, 2)]
    return next((name for name in wanted if top == "minstate" and name in CORE), None)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of the core (`kernels` for all of these) and torch: those imported at once, and inside functions.

    What only a type checker reads is left out.
    """
    now, later = set(), set()

    def walk(node: ast.AST, found: set[str]) -> None:
        for each in ast.iter_child_nodes(node):
            names = [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
            if isinstance(each, ast.ImportFrom):
                names = [f"{each.module}.{alias.name}" for alias in each.names]
            found |= {known for name in names if (known := short(name))}
            if not (isinstance(each, ast.If) and "TYPE_CHECKING" in names_in(each.test)):
                walk(each, later if isinstance(each, ast.FunctionDef) else found)

    walk(tree(path), now)
    return now, later - now


def drawn() -> list[tuple[str, set[str]]]:
    return [(name, set(known.split())) for name, known in re.findall(r"([\w/]+) →((?: [\w/]+)+)", ARROWS)]


def test_the_arrows_are_the_imports():
    arrows = {name: set() for name in CORE}
    for name, known in drawn():
        arrows[name] |= known
    assert arrows == {name: imports(path)[0] - {"errors", "torch"} for name, path in CORE.items()}
    later = {(name, known) for name, path in CORE.items() for known in imports(path)[1] & {*CORE, "kernels"}}
    assert later == set(re.findall(r"`(\w+)` → `(\w+)`", PAGE))
    assert not any("lab" in each for path in CORE.values() for each in imports(path))


def test_arrows_point_down_or_to_the_right():
    order = [name for name, _ in drawn()]
    for at, (name, known) in enumerate(drawn()):
        assert not known & set(order[:at]) - {name}, name


def test_what_is_said_to_do_without_torch_does():
    (named,) = re.findall(r"do without torch: (.*?)\.\sSo", PAGE, flags=re.DOTALL)
    waiting = re.findall(r"`([\w/]+)`", named)
    without, seen = set(waiting), set()
    while waiting:
        name = waiting.pop()
        known = set().union(*imports(CORE[name]))
        assert "torch" not in known, name
        seen.add(name)
        waiting += known - seen
    assert seen == without, "all that they know is among them"


# ---- What to read

ROWS = [row for row in re.findall(r"^\| (.*) \| .* \| (.*)\|$", PAGE, flags=re.MULTILINE) if "`" in row[0]]
LENGTHS = {file: int(count) for files, _ in ROWS for file, count in re.findall(r"`([\w./]+)` (\d+)", files)}


def lines(paths) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_files_are_about_as_long_as_it_says():
    assert LENGTHS.keys() == {f"{name}.py" for name in CORE} | {"kernels/"}
    for file, count in LENGTHS.items():
        assert lines(KERNELS if file == "kernels/" else [CORE[file[:-3]]]) == pytest.approx(count, rel=0.15), file
    core, kernels = re.findall(r"(\d+) files with ([\d,]+) lines", PAGE)
    for (files, count), paths in [(core, list(CORE.values())), (kernels, KERNELS)]:
        assert int(files) == len(paths) and lines(paths) == pytest.approx(int(count.replace(",", "")), rel=0.05)


def test_a_notebook_is_named_beside_a_file_that_it_explains():
    guide = (ROOT / "notebooks" / "README.md").read_text()
    for files, numbers in ROWS:
        for number in re.findall(r"\d\d", numbers):
            (row,) = re.findall(rf"^\| \[{number} .*$", guide, flags=re.MULTILINE)
            assert any(file in row for file in re.findall(r"`([\w./]+)`", files)), (files, number)


# ---- The rules

# Gives one function after the other the code of its broken source, and runs the test that has to notice.
BREAKS = """
import ast, importlib, inspect, json, sys, textwrap
import pytest


class Seen:
    def __init__(self):
        self.errors = []

    def pytest_exception_interact(self, call):
        self.errors.append(call.excinfo.type.__name__)


def broken(function, new, old):
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{source.count(old)} times {old}"
    (changed,) = ast.parse(source.replace(old, new)).body
    changed.decorator_list = []
    names = dict(vars(sys.modules[function.__module__]))
    exec(compile(ast.Module([changed], []), inspect.getsourcefile(function), "exec"), names)
    return names[function.__name__].__code__


outcomes = []
for module, name, new, old, test in json.load(sys.stdin):
    function = importlib.import_module(f"minstate.{module.replace('/', '.')}")
    for part in name.split("."):
        function = getattr(function, part)
    function, seen = inspect.unwrap(function), Seen()
    whole, function.__code__ = function.__code__, broken(function, new, old)
    code = pytest.main(["-q", "-x", "--tb=no", "-p", "no:cacheprovider", test], plugins=[seen])
    function.__code__ = whole
    outcomes.append([test, int(code), seen.errors])
print("\\n" + json.dumps(outcomes))
"""


def test_each_rule_has_a_change_that_breaks_it():
    rules = re.split(r"^\d+\. \*\*", PAGE, flags=re.MULTILINE)[1:]
    assert 8 <= len(rules) <= 12 and all(CHANGE.search(" ".join(rule.split())) for rule in rules)
    assert len(CHANGES) == PAGE.count("write `"), "all changes are understood"


def test_when_a_rule_is_broken_the_test_that_it_names_fails():
    run = [sys.executable, "-c", BREAKS]
    done = subprocess.run(run, input=json.dumps(CHANGES), capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    for test, code, errors in json.loads(done.stdout.splitlines()[-1]):
        assert code == pytest.ExitCode.TESTS_FAILED, f"{test} ended with code {code}\n{done.stdout}"
        slips = {"NameError", "TypeError", "SyntaxError", "AttributeError"}
        assert errors and not slips & set(errors), f"{test} failed for another reason: {errors}"
