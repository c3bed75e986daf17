"""The doctor's commands: `python -m minstate.lab.doctor template PATH…`, and `… log FILE…`.

`log` examines logs of requests: what a prefix cache loses, by which cause, and what would save most.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minstate.errors import MinstateError

if TYPE_CHECKING:
    from minstate.lab.doctor.prices import Pricing


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.doctor", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    template = commands.add_parser("template", help="check chat templates")
    template.add_argument("paths", nargs="+", type=Path, help="a Jinja file, a folder of them, or a tokenizer's folder")
    template.add_argument("--json", type=Path, help="also write names and outcomes into this file")
    log = commands.add_parser("log", help="examine logs of requests")
    log.add_argument("paths", nargs="+", type=Path, help="files or folders, in any format that minstate.lab.logs reads")
    log.add_argument("--tokenizer", help="a folder or a Hub id, with a chat template; by default, the default model's")
    log.add_argument("--strict", action="store_true", help="stop at the first record that cannot be read")
    log.add_argument("--no-text", action="store_true", help="leave every word of the log out of the reports")
    log.add_argument("--no-lookup", action="store_true", help="do not count what prompt lookup would save; faster")
    log.add_argument("--limit", type=int, help="positions of the model: mark longer requests")
    cost = log.add_mutually_exclusive_group()
    cost.add_argument("--price", nargs=2, type=float, metavar=("NEW", "CACHED"), help="$ for a million prompt tokens")
    cost.add_argument("--prices", type=Path, help='a JSON file: {"model": {"input": 3, "cached_input": 0.3}}')
    cost.add_argument("--machine", help="seconds: a file of minstate.lab.calibrate, or `default`")
    log.add_argument("--dtype", default="float32", help="which table of that file")
    log.add_argument("--html", type=Path, help="write a page into this file")
    log.add_argument("--json", type=Path, help="write all counts into this file")
    arguments = parser.parse_args()
    missing = [str(path) for path in arguments.paths if not path.exists()]
    if missing:
        parser.error(f"there is no {', '.join(missing)}")
    if arguments.command == "template":
        from minstate.lab.doctor.templates import run

        run(arguments.paths, arguments.json)
        return
    try:
        _examine_log(arguments)
    except MinstateError as error:
        sys.exit(f"error: {error}")


def _examine_log(arguments: argparse.Namespace) -> None:
    from minstate.lab.doctor.examine import examine
    from minstate.lab.doctor.findings import without_text
    from minstate.lab.doctor.page import page
    from minstate.lab.doctor.report import as_json, summary

    found = examine(
        arguments.paths, arguments.tokenizer, strict=arguments.strict, lookup=not arguments.no_lookup,
        limit=arguments.limit, progress=True,
    )  # fmt: skip
    found = without_text(found) if arguments.no_text else found
    price = _price(arguments)
    print(summary(found, price))
    if arguments.html:
        arguments.html.write_text(page(found, price))
    if arguments.json:
        arguments.json.write_text(as_json(found, price))


def _price(arguments: argparse.Namespace) -> "Pricing | None":
    from minstate.draft_budget import CostTable
    from minstate.lab.doctor.prices import Machine, Price, PriceList

    if arguments.price:
        return Price(*arguments.price)
    if arguments.prices:
        return PriceList.load(arguments.prices)
    if arguments.machine == "default":
        return Machine(CostTable.default(arguments.dtype))
    return Machine(CostTable.load(arguments.machine, arguments.dtype)) if arguments.machine else None


if __name__ == "__main__":
    main()
