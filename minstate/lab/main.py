"""The main job: execute the first notebook, show its table, and leave the executed page under `out/`."""

import argparse
import sys

from minstate.errors import MinstateError
from minstate.lab.extras import lab_extra
from minstate.lab.paths import NOTEBOOKS, OUT
from minstate.weights import find_model

FIRST = NOTEBOOKS / "00_start_here.ipynb"


def main() -> None:
    """Execute `00_start_here.ipynb` of a clone, or the copy of it that an installed package holds."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.main", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would be executed, and stop")
    dry_run = parser.parse_args().dry_run
    with lab_extra("the main job"):
        from minstate.lab.notebook.web_page import render, text_outputs
    if dry_run:
        print(f"would execute {FIRST}, and write its page into {OUT}")
        return
    try:
        find_model()
    except MinstateError as error:
        sys.exit(f"error: {error}")
    print(f"executing {FIRST}: two engines, the same agent, the same tokens", flush=True)
    page = render(FIRST, OUT)
    print(text_outputs(page.with_suffix(".ipynb"), "headline"))
    print(f"\nThe executed page, with its figures: {page}")


if __name__ == "__main__":
    main()
