"""Judge a lab: does a change of the engine achieve what the lab asks for?

    python -m minstate.lab.course.judge L1

prints a line for each thing that is measured on the engine of this clone, and then "passed", or "not yet" if one of
them does not hold. Everything that a judge measures is a counter: tokens, forward passes, steps, calls that were read.
No judge reads a clock, so the verdict is the same on every machine. Whether the change breaks something else is for
the project's own tests to say; each lab names them.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator

from minstate.lab.course.finding import Finding
from minstate.lab.course.judge_dialect import judge_dialect
from minstate.lab.course.judge_drafts import judge_drafts
from minstate.lab.course.judge_eviction import judge_eviction
from minstate.lab.course.judge_waiting import judge_waiting

LABS: dict[str, Callable[[], Iterator[Finding]]] = {
    "L1": judge_eviction,
    "L2": judge_dialect,
    "L3": judge_drafts,
    "L4": judge_waiting,
}


def verdict(lab: str) -> bool:
    """Print what the judge of a lab finds. Returns whether all of it holds."""
    passed = True
    try:
        for what, holds, measured in LABS[lab]():
            passed = passed and holds
            print(f"{'yes' if holds else 'NO ':3} {what}\n      {measured}", flush=True)
    except Exception:  # noqa: BLE001  whatever the changed engine raises, the student reads it here
        traceback.print_exc()
        print("NO  the engine raised an exception")
        passed = False
    print("passed" if passed else "not yet")
    return passed


def main(arguments: list[str] | None = None) -> None:
    """Judge the lab that is named on the command line; the exit status is 0 if it is passed, and else 1."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.course.judge", description="Judge a lab.")
    parser.add_argument("lab", choices=LABS, help="which lab")
    sys.exit(not verdict(parser.parse_args(arguments).lab))


if __name__ == "__main__":
    main()
