"""The build notebooks: stubs for the student's file, its checkers, snapshots of what has passed, and their differences.

    begin(3)       puts the stubs of step 3 behind what my_engine.py has
    check(3)       imports the file anew, runs the checks of step 3, and keeps a snapshot if all pass
    show_diff(3)   what has changed since the snapshot of step 2
    measured(3, f) what f(engine) gives for the student's engine, or else the numbers that the course has recorded

The file lies beside the notebook, and its snapshots in a folder `.my_engine`. For the notebooks of the repository
themselves, both lie in `out/my_engine`, so that running them leaves the repository as it is.
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from IPython.display import Markdown, display

from minstate.lab.course import build_check_batch as batch
from minstate.lab.course import build_check_cache as cache
from minstate.lab.course import build_check_lookup as lookup
from minstate.lab.course import build_check_pages as pages
from minstate.lab.course import build_check_session as session
from minstate.lab.course import build_check_tree as tree
from minstate.lab.course.build_models import FOLDER, load_file
from minstate.lab.course.build_steps import FILE, STEPS, open_tasks, solution_up_to, stub, tasks, with_stubs
from minstate.lab.paths import DATA, NOTEBOOKS, OUT

CHECKS = dict(enumerate((cache, pages, session, tree, lookup, batch), 1))
RECORDED = DATA / "build_demos.json"
_instead: list[Path] = []  # the folder of the solution, where it stands in for the student's


def folder() -> Path:
    """Where the student's file and its snapshots are."""
    if _instead:
        return _instead[-1]
    here = Path.cwd()
    return OUT / "my_engine" if here == NOTEBOOKS else here


def snapshot(step: int) -> Path:
    """The student's file as it was when it last passed the checks of `step`."""
    return folder() / ".my_engine" / f"step_{step}.py"


def begin(step: int) -> Markdown:
    """Put the stubs of `step`, and of steps before it, at the end of the student's file. Returns a link to it."""
    path = folder() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    if (text := with_stubs(before, step)) != before:
        path.write_text(text)
    names = ", ".join(f"`{name}`" for name in tasks(step))
    # The repository's own notebooks show no link, because their outputs become web pages, and the file does not.
    where = f"[{FILE}]({FILE})" if path.parent == Path.cwd() else f"`{FILE}`, in *out/my_engine*,"
    return Markdown(f"Open {where} and write, behind “Step {step}”: {names}.")


def show_stub(step: int) -> Markdown:
    """The stubs of a step, as they are in the student's file before anything is written."""
    return Markdown(f"```python\n{stub(step)}```")


def check(step: int) -> None:
    """Run the checks of a step on the student's file as it is on disk. AssertionError names what is wrong with it."""
    path = folder() / FILE
    text = path.read_text() if path.exists() else ""
    stubs, missing = open_tasks(text, step)
    if len(stubs + missing) == len(tasks(step)):
        print(f"not attempted yet: write {', '.join(tasks(step))} in {FILE}, and run this cell again")
        return
    if missing or stubs:
        what = [f"has no {', '.join(missing)}"] * bool(missing) + [f"still has ... in {', '.join(stubs)}"] * bool(stubs)
        raise AssertionError(f"{FILE} {' and '.join(what)}")
    engine = load_file(path, "my_engine", text)
    passed = run_checks(engine, step)
    snapshot(step).parent.mkdir(exist_ok=True)
    if not any(snapshot(later).exists() for later in range(step + 1, STEPS.stop)):  # else it would show later steps
        snapshot(step).write_text(text)
    print(f"correct, in {len(passed)} of {len(passed)} checks", *passed, sep="\n  ✓ ")


def run_checks(engine: ModuleType, step: int, real: bool = True) -> list[str]:
    """What the checks of a step say, all of them, or those that need no real model. The first that fails raises."""
    checks = [each for each in CHECKS[step].CHECKS if real or not each.__name__.startswith("real_")]
    for each in checks:
        try:
            each(engine)
        except AssertionError as error:
            raise AssertionError(f"step {step} · {error}") from None
        except Exception as error:
            error.add_note(f"This happened in the check “{each.__doc__}”.")
            raise
    return [each.__doc__ for each in checks]


def show_diff(step: int) -> None:
    """The difference between the snapshots of `step` and of the step before; before step 1, there is given.py."""
    if not snapshot(step).exists():
        print(f"nothing to compare yet: check({step}) keeps a snapshot of {FILE} when it passes")
        return
    before = snapshot(step - 1)
    if step == 1:
        text = (FOLDER / "given.py").read_text()
        old, name = text[text.index("def attention") :], "given.py"
    else:
        old, name = (before.read_text(), f"step {step - 1}") if before.exists() else ("", f"no snapshot of {step - 1}")
    new = snapshot(step).read_text()
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"step {step}", n=2, lineterm=""))
    added = sum(line.startswith("+") for line in lines[2:])
    display(
        Markdown(
            "```diff\n" + "\n".join(lines) + "\n```\n" + f"{added} lines are new; {FILE} has {len(new.splitlines())}."
        )
    )


def engine_of(step: int) -> ModuleType | None:
    """The student's engine as it was when it passed `step`; None if it has not passed yet."""
    path = snapshot(step)
    return load_file(path, "my_engine") if path.exists() else None


def measured(step: int, experiment: Callable) -> dict:
    """What `experiment(engine)` gives with the student's engine, or what is recorded if it has not passed `step`."""
    if engine := engine_of(step):
        print("measured with your engine")
        return experiment(engine)
    print(f"recorded with the course's own engine; once check({step}) has passed, yours runs here")
    return json.loads(RECORDED.read_text())[experiment.__name__]


def use_solution(step: int) -> None:
    """The solution as it is at `step` stands in for the student's file, and for the snapshots of steps before."""
    _instead[:] = [OUT / "my_engine" / f"solved_{step}"]
    for each in range(1, step + 1):
        snapshot(each).parent.mkdir(parents=True, exist_ok=True)
        snapshot(each).write_text(solution_up_to(each))
    snapshot(step).unlink()
    (folder() / FILE).write_text(solution_up_to(step))
