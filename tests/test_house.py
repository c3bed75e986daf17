"""The rules of the house, checked on the source alone: who may import whom, and how long things may become."""

import ast
import io
import sys
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = sorted((ROOT / "minstate").glob("*.py"))
CHAT = sorted((ROOT / "minstate" / "chat").glob("*.py"))
CORE = [*ENGINE, *CHAT, *sorted((ROOT / "minstate" / "kernels").rglob("*.py"))]
LAB = sorted((ROOT / "minstate" / "lab").rglob("*.py"))

SERVE = sorted((ROOT / "minstate" / "serve").rglob("*.py"))

FILE_LINES = 300
LONGER_FUNCTIONS: dict[str, str] = {}  # such as "minstate/lab/figures/x.py: draw", and why it stays in one piece
NOT_BELOW_THE_MODEL = {"radix_tree", "speculation", "draft_budget", "prompt_lookup"}


def name_of(path: Path) -> str:
    """`minstate/chat/drift.py` is `minstate.chat.drift`, and `minstate/chat/__init__.py` is `minstate.chat`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in [*CORE, *SERVE, *LAB]}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """The package's modules that a file imports: at its top, inside functions, and for a type checker alone."""
    return frozenset(name for name in all_imports(path) if name.partition(".")[0] == "minstate")


@cache
def all_imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, wherever it comes from."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)}:{node.lineno}: write the import with its full name"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & MODULES.keys()) or {node.module}
    return frozenset(found)


def known(name: str) -> set[str]:
    """The modules that are loaded with this one, however far down."""
    found, waiting = set(), [name]
    while waiting:
        new = imports(MODULES[waiting.pop()]) - found
        found |= new
        waiting += new & MODULES.keys()
    return found


def test_the_core_imports_neither_the_lab_nor_the_server():
    for path in CORE:
        above = {name for name in imports(path) if name.startswith(("minstate.lab", "minstate.serve"))}
        assert not above, (
            f"{path.relative_to(ROOT)} imports {above}: pass in what the core needs, or move it into the core"
        )


def test_the_server_imports_the_core_and_never_the_lab():
    for path in SERVE:
        above = {name for name in imports(path) if name.startswith("minstate.lab")}
        assert not above, f"{path.relative_to(ROOT)} imports {above}: the lab looks at the server, not the other way"
        others = {name.partition(".")[0] for name in all_imports(path)} - {"minstate"} - sys.stdlib_module_names
        allowed = {"pydantic", "starlette", "uvicorn"}  # the extra `serve`
        assert others <= allowed, f"{path.relative_to(ROOT)} imports {others - allowed}: name it in the extra `serve`"


def test_no_module_of_the_core_imports_itself_through_others():
    graph = {name_of(path): imports(path) for path in [*CORE, *SERVE] if path != ROOT / "minstate" / "__init__.py"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        pytest.fail(f"imports go in a circle, {circle}: move what both need into the lower file, types included")


def test_the_model_knows_neither_the_tree_nor_speculation():
    below = {name.rpartition(".")[2] for name in known("minstate.model")}
    assert not below & NOT_BELOW_THE_MODEL, (
        f"minstate/model.py loads {below & NOT_BELOW_THE_MODEL}: a forward pass needs a batch and an attention, no more"
    )


def test_a_file_can_be_read_at_one_sitting():
    cpp = [path for path in (ROOT / "minstate").rglob("*") if path.suffix in (".cpp", ".h")]
    files = [*CORE, *SERVE, *LAB, *cpp]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    long = {file: count for file, count in lines.items() if count > FILE_LINES}
    assert not long, f"longer than {FILE_LINES} lines: {long}. Split a file by what a reader looks for"


@pytest.mark.parametrize(("paths", "most"), [(CORE, 50), (SERVE, 50), (LAB, 60)], ids=["core", "serve", "lab"])
def test_a_function_fits_on_a_screen(paths, most):
    long = {}
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name, lines = f"{path.relative_to(ROOT)}: {node.name}", node.end_lineno - node.lineno + 1
                if lines > most and name not in LONGER_FUNCTIONS:
                    long[name] = lines
    assert not long, f"longer than {most} lines: {long}. Give one of the steps a name and a function of its own"


def test_an_exception_is_for_a_function_that_is_there():
    for name in LONGER_FUNCTIONS:
        file, _, function = name.partition(": ")
        assert f"def {function}(" in (ROOT / file).read_text(), name


@pytest.mark.parametrize(("folder", "paths", "budget"), [("minstate", ENGINE, 4300), ("minstate/chat", CHAT, 2400)])
def test_the_core_stays_small(folder, paths, budget):
    lines = {path.name: len(code_lines(path)) for path in paths}
    longest = max(lines, key=lines.get)
    assert sum(lines.values()) < budget, (
        f"{folder}/*.py has {sum(lines.values())} lines of code, and stays below {budget} ({longest} has the most): "
        "remove something first, or build it beside the core"
    )


def code_lines(path: Path) -> set[int]:
    """The lines that hold code: no blank ones, no comments, no docstrings."""
    beside = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    lines = {n for token in tokens if token.type not in beside for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(tree(path)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


SOME_CODE = '''"""Not this."""

X = """
two
more"""  # three lines
# not this

def f():
    """Nor
    this."""
    return X
'''


def test_a_line_of_code_is_one_that_does_something(tmp_path):
    (tmp_path / "some.py").write_text(SOME_CODE)
    assert code_lines(tmp_path / "some.py") == {3, 4, 5, 8, 11}
