"""The students' edition of the repository, without answers, for a lecturer to hand out.

    python -m minstate.lab.notebook.release ../for-students

It has every file that git knows, so that `make lab`, the labs and the tests that judge them work there, except: folders
called `solutions`, tests that mention solutions, and what runs the project's own checks. Notebooks are without outputs.
The hidden cases of exercises are in it; they hold digests, no results.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

from minstate.lab.notebook.student import cleared
from minstate.lab.paths import clone_for

LEFT_OUT = {"solutions", ".ci", ".github"}  # folders, at any depth


def files_of_edition(root: Path) -> list[Path]:
    """The files of the clone at `root`, relative to it, that the edition has. Raises RuntimeError without git."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True)
    if listed.returncode:
        raise RuntimeError(f"git does not list the files of {root}: {listed.stderr.strip()}")
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    return [path for path in files if (root / path).is_file() and not _left_out(root, path)]


def _left_out(root: Path, path: Path) -> bool:
    """Whether a file holds answers, or is a test that cannot pass without them."""
    if LEFT_OUT & set(path.parts[:-1]):
        return True
    return path.parts[0] == "tests" and "solution" in (root / path).read_text(encoding="utf-8", errors="ignore").lower()


def release(root: Path, out: Path) -> int:
    """Write the edition into `out`, a folder that is empty or not there yet. Returns the number of its files."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    files = files_of_edition(root)
    for path in files:
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            nbformat.write(cleared(nbformat.read(root / path, as_version=4)), target)
        else:
            shutil.copy(root / path, target)
    return len(files)


def main(arguments: list[str]) -> None:
    """Write the edition into the folder that is named; SystemExit says why that is impossible."""
    root = clone_for("lab.notebook.release")
    if len(arguments) != 1:
        sys.exit("usage: python -m minstate.lab.notebook.release OUT")
    try:
        count = release(root, out := Path(arguments[0]))
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"{out}: {count} files, without solutions and outputs")


if __name__ == "__main__":
    main(sys.argv[1:])
