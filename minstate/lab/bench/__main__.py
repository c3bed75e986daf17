"""Run one benchmark, print its table and write it to `data/results/` (without a clone: to `results/`), or to `--out`.

Settings go behind its name: `python -m minstate.lab.bench peers workload=coding dtype=bfloat16`.
"""

import argparse
import json
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

from minstate.errors import BadValue, ModelNotFound
from minstate.lab.extras import lab_extra
from minstate.lab.paths import RESULTS

BENCHMARKS = (  # each is a function in the module of its name
    "ablation",
    "cpu_steps",
    "doctor",
    "gpu",
    "kernels",
    "kv_int8",
    "many_agents",
    "many_machines",
    "memory",
    "paged_decode",
    "peers",
    "prompt_lookup",
    "radix_tree",
    "serve_agents",
    "serve_load",
    "simulate",
    "speculation",
    "weka",
)


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.bench", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="of the benchmark's own")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for the table")
    arguments = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in arguments.settings)
    with lab_extra(f"the benchmark `{arguments.name}`"):
        benchmark = getattr(import_module(f"minstate.lab.bench.{arguments.name}"), arguments.name)
        from minstate.lab.bench.repeats import UNFINISHED
        from minstate.lab.measure import machine
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        table = benchmark(**settings).round(3)
    except (BadValue, ModelNotFound) as error:  # no model, or no GPU: its message says what to do
        sys.exit(f"error: {error}")
    print(table.to_string())
    record = {
        "command": " ".join(["python -m minstate.lab.bench", arguments.name, *arguments.settings]),
        "date": date.today().isoformat(),
        "machine": machine(),
        **table.attrs,
        "rows": table.reset_index().to_dict("records"),
    }
    which = [value for name, value in settings.items() if name in ("workload", "device", "dtype")]
    path = arguments.out / f"{'_'.join([arguments.name, *which])}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")
    for kept in UNFINISHED.glob(f"{path.stem}*"):
        kept.unlink()


if __name__ == "__main__":
    main()
