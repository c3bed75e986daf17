"""Run one benchmark, print its table and write it to `data/results/<name>.json`."""

import argparse
import json
from datetime import date

from minstate.lab.bench import RESULTS
from minstate.lab.bench.agentic_turns import agentic_turns
from minstate.lab.bench.paged_decode import paged_decode
from minstate.lab.bench.radix_tree import radix_tree
from minstate.lab.measure import machine

BENCHMARKS = {benchmark.__name__: benchmark for benchmark in (agentic_turns, paged_decode, radix_tree)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.bench", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    name = parser.parse_args().name
    table = BENCHMARKS[name]().round(3)
    print(table.to_string())
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {
        "command": f"python -m minstate.lab.bench {name}",
        "date": date.today().isoformat(),
        "machine": machine(),
        "rows": table.reset_index().to_dict("records"),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
