"""The six steps of the student's file: stubs, what is left to do in a file, and the state of the solution at each step.

    python -m minstate.lab.course.build_steps        # write the stubs anew, from the solution

The file is written from top to bottom, and a step changes nothing of the steps before it. So the complete solution is
one file, and what it is at step 3 is its beginning, up to the line `# ---- Step 4: …`. A stub is the solution's section
without the bodies of its functions, except of `__init__` and of those named in `GIVEN`.
"""

import ast
import re
from pathlib import Path

from minstate.lab.course.build_models import FOLDER
from minstate.lab.paths import NOTEBOOKS

SOLUTION = NOTEBOOKS / "solutions" / "my_engine" / "my_engine.py"
FILE = "my_engine.py"
STEPS = range(1, 7)
HEADER = re.compile(r"^# ---- Step (\d): (.*)$", flags=re.MULTILINE)
GIVEN = {"Session.send"}
LINT = "# ruff: noqa: D100, F821, PIE790\n\n\n"  # a stub names what earlier steps define, and does nothing
TOP = f'''"""{FILE}. `model` is a Transformer of given.py, T the number of new tokens, n of all tokens so far."""

import torch
'''


def solution_up_to(step: int) -> str:
    """The complete solution as it is after `step`."""
    return _cut(SOLUTION.read_text(), step)[0]


def _cut(text: str, step: int) -> tuple[str, str]:
    """The text up to the end of `step`, and the section of `step` alone."""
    starts = {int(header[1]): header.start() for header in HEADER.finditer(text)}
    end = starts.get(step + 1, len(text))
    return text[:end].rstrip() + "\n", text[starts[step] : end].rstrip() + "\n"


def stub(step: int) -> str:
    """The stubs of a step: its header, classes and functions, with shapes and invariants in their docstrings."""
    return stub_path(step).read_text().removeprefix(LINT)


def definitions(text: str) -> dict[str, ast.FunctionDef]:
    """The functions and methods of a file by name, such as `Cache.extend`. Raises SyntaxError."""
    found = {}
    for node in ast.parse(text).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name: each for each in inside if isinstance(each, ast.FunctionDef)}
    return found


def is_stub(function: ast.FunctionDef) -> bool:
    """Whether its body is a docstring and `...`, or less."""
    return all(isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in function.body)


def tasks(step: int) -> list[str]:
    """The functions that a student writes in a step."""
    return [name for name, function in definitions(stub(step)).items() if is_stub(function)]


def open_tasks(text: str, step: int) -> tuple[list[str], list[str]]:
    """The step's functions that are stubs still, and those that the file does not define. Raises SyntaxError."""
    there = definitions(text)
    wanted = tasks(step)
    return [name for name in wanted if name in there and is_stub(there[name])], [
        name for name in wanted if name not in there
    ]


def with_stubs(text: str, step: int) -> str:
    """The student's file, and at its end the stubs of all steps up to `step` that it lacks; nothing else changes."""
    text = text or TOP
    for each in range(1, step + 1):
        has_header = any(int(header[1]) == each for header in HEADER.finditer(text))
        names = {name.split(".")[0] for name in tasks(each)}
        if not has_header and not any(re.search(rf"^(class|def) {name}\b", text, flags=re.MULTILINE) for name in names):
            text = text.rstrip() + "\n\n\n" + stub(each)
    return text


def make_stub(step: int) -> str:
    """The stub of a step, as it follows from the solution."""
    _, section = _cut(SOLUTION.read_text(), step)
    lines = section.splitlines()
    for name, function in reversed(definitions(section).items()):
        if name.endswith("__init__") or name in GIVEN:
            continue
        first = function.body[0]
        indent = " " * first.col_offset
        lines[first.end_lineno : function.end_lineno] = [f"{indent}..."]
    return LINT + "\n".join(lines) + "\n"


def stub_path(step: int) -> Path:
    """Where the stub of a step is kept."""
    return FOLDER / f"step_{step}.py"


if __name__ == "__main__":
    for number in STEPS:
        stub_path(number).write_text(make_stub(number))
        print(stub_path(number))
