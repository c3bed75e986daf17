"""Where the lab finds its data, and where it writes.

The lab runs from a clone of the repository, or from an installed wheel. A wheel holds the lab's data and the notebook
of the main job; the course, its solutions and the tests are in a clone only. What the lab writes goes into the clone,
or below the working directory if there is no clone.
"""

import sys
from pathlib import Path

from minstate.weights import clone_folder

PACKAGE = Path(__file__).resolve().parents[1]
CLONE = clone_folder()
DATA = PACKAGE / "lab" / "data"
TRACES = DATA / "traces"
NOTEBOOKS = CLONE / "notebooks" if CLONE else DATA / "notebooks"
OUT = (CLONE or Path.cwd()) / "out"
RESULTS = CLONE / "data" / "results" if CLONE else Path.cwd() / "results"


def clone_for(program: str) -> Path:
    """Return the clone's folder; where there is none, end the program with a sentence that says why it needs one."""
    if CLONE is None:
        sys.exit(
            f"error: {program} needs a clone of the repository: an installed package does not hold the whole course. "
            "In the clone's folder, install the package with: pip install -e '.[lab]'"
        )
    return CLONE


def source_text(pattern: str = "*.py") -> str:
    """The package's own files that match `pattern` (default: the core), one after the other: a long, real text."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob(pattern)))
