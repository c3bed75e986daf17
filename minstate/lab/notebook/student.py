"""The course for a student: cleared working copies in `work/`, opened in JupyterLab.

    python -m minstate.lab.notebook.student              # as `make lab` does
    python -m minstate.lab.notebook.student --copy       # only the copies

`work/` lies beside `notebooks/`, and git ignores it. The copies have no outputs, so nothing stands under a question
before the student has answered it, and links such as `../minstate/session.py` lead to the same files. A file that is
there already is the student's, and stays as it is. JupyterLab's root is the clone, so that links to source files open.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minstate.lab.paths import clone_for

TEACHERS = {"solutions", "cases"}  # folders, at any depth: answers, and what `check` reads where it lies
MADE = {"__pycache__", ".ipynb_checkpoints"}


def cleared(notebook: NotebookNode) -> NotebookNode:
    """The notebook without outputs and counts; texts, tags and what is folded away stay."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def course_files(notebooks: Path, without: set[str] = TEACHERS) -> Iterator[Path]:
    """The files below `notebooks`, in order, except those in folders of the names `without`."""
    for path in sorted(notebooks.rglob("*")):
        if path.is_file() and not (without | MADE) & set(path.relative_to(notebooks).parts[:-1]):
            yield path


def make_copies(notebooks: Path, work: Path) -> tuple[list[Path], list[Path]]:
    """Copy the course into `work`. Returns the files that were written, and those that were there and stay."""
    written, kept = [], []
    for path in course_files(notebooks):
        target = work / path.relative_to(notebooks)
        if target.exists():
            kept.append(target)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            nbformat.write(cleared(nbformat.read(path, as_version=4)), target)
        else:
            shutil.copyfile(path, target)
        written.append(target)
    return written, kept


def start_page(work: Path) -> str:
    """The name of the notebook to begin with: the first of the course."""
    return min(path.name for path in work.glob("[0-9][0-9]_*.ipynb"))


def options(root: Path, work: Path, user: int) -> list[str]:
    """JupyterLab's options for a clone at `root`. It refuses to run as `user` 0 unless told to, as in a container."""
    page = f"/lab/tree/{work.relative_to(root).as_posix()}/{start_page(work)}"
    return [f"--ServerApp.root_dir={root}", f"--LabApp.default_url={page}", *(["--allow-root"] if user == 0 else [])]


def main(arguments: list[str]) -> None:
    """Make the copies; then, without `--copy`, become JupyterLab, with all other arguments passed on to it."""
    root = clone_for("lab.notebook.student")
    work = root / "work"
    written, kept = make_copies(root / "notebooks", work)
    print(f"work/: {len(written)} files of the course copied" + (f", {len(kept)} were there and stay" if kept else ""))
    if kept:
        print("    to begin a notebook again: rename or delete the file in work/, and start this program once more")
    if "--copy" in arguments:
        return
    user = os.getuid() if hasattr(os, "getuid") else 1  # Windows has no such number
    sys.stdout.flush()
    command = [sys.executable, "-m", "jupyterlab", *options(root, work, user), *arguments]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(sys.argv[1:])
