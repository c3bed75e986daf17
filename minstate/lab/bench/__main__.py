"""Run one benchmark, print its table and write it to `data/results/`.

Settings go behind its name: `python -m minstate.lab.bench peers workload=coding dtype=bfloat16`.
"""

import argparse
import json
from datetime import date

from minstate.lab.bench import RESULTS
from minstate.lab.bench.ablation import ablation
from minstate.lab.bench.cpu_steps import cpu_steps
from minstate.lab.bench.gpu import gpu
from minstate.lab.bench.kernels import kernels
from minstate.lab.bench.many_agents import many_agents
from minstate.lab.bench.paged_decode import paged_decode
from minstate.lab.bench.peers import peers
from minstate.lab.bench.prompt_lookup import prompt_lookup
from minstate.lab.bench.radix_tree import radix_tree
from minstate.lab.bench.simulate import simulate
from minstate.lab.bench.speculation import speculation
from minstate.lab.measure import machine

BENCHMARKS = {
    benchmark.__name__: benchmark
    for benchmark in (
        ablation,
        cpu_steps,
        gpu,
        kernels,
        many_agents,
        paged_decode,
        peers,
        prompt_lookup,
        radix_tree,
        simulate,
        speculation,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.bench", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="of the benchmark's own")
    arguments = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in arguments.settings)
    table = BENCHMARKS[arguments.name](**settings).round(3)
    print(table.to_string())
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python -m minstate.lab.bench", arguments.name, *arguments.settings]),
        "date": date.today().isoformat(),
        "machine": machine(),
        **table.attrs,
        "rows": table.reset_index().to_dict("records"),
    }
    which = [value for name, value in settings.items() if name in ("workload", "dtype")]
    path = RESULTS / f"{'_'.join([arguments.name, *which])}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
