"""Measure what a forward pass, and what moving K/V costs on this machine: `python -m minstate.lab.calibrate [dtypes]`.

Writes a table for each dtype into one file. An engine uses it if it is passed
`Speculation(CostTable.load("out/costs.json", "float32"))`. Its default is a table that was measured on a CPU. On a GPU,
where a forward pass over 16 tokens costs hardly more than a pass over one token, an engine with that table drafts too
little. The table also says how fast K/V comes back from the tiers below the pool: `--tiers` measures only this again.
"""

import argparse
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.lab.extras import lab_extra
from minstate.lab.machines.pass_timing import pass_s, prefilled_sequence
from minstate.lab.machines.tier_timing import tier_bytes_per_s
from minstate.lab.paths import OUT

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 512)
MAX_DRAFT = 64  # passes over up to so many tokens are measured as drafts, with logits for every token
CONTEXTS = (512, 2048, 4096, 8000)


def calibrate(dtype: str, rounds: int = 7, device: str = "cpu") -> CostTable:
    """Time forward passes over 1 to 512 query tokens that end at 512 to 8,000 tokens of real text, in random order.

    A cost is the lower quartile of its times, since a disturbance only ever makes a pass longer. Costs rise with tokens
    and with context; where noise makes a measured one fall, it is raised to the one before it.
    """
    from minstate.lab.measure import machine  # needs the extra `lab`

    engine = Engine.from_pretrained(dtype=dtype, device=device, num_pages=sum(CONTEXTS) // 16 + 256)
    sequences = [prefilled_sequence(engine, context) for context in tqdm(CONTEXTS, desc=f"{dtype}, prompts")]
    cases = [(row, column) for row in range(len(CONTEXTS)) for column in range(len(TOKENS))]

    def pass_ms(row: int, column: int) -> float:
        tokens = TOKENS[column]
        return 1000 * pass_s(engine, sequences[row], tokens, tokens - 1 if tokens <= MAX_DRAFT else 0)

    for row, column in cases if device == "cuda" else ():  # compiles kernels, captures graphs
        pass_ms(row, column)
    order, times = np.random.default_rng(0), np.zeros((rounds, len(CONTEXTS), len(TOKENS)))
    for taken in tqdm(times, desc=f"{dtype}, rounds"):
        for row, column in order.permutation(cases):
            taken[row, column] = pass_ms(row, column)
    by_context = [accumulate(row, max) for row in np.quantile(times, 0.25, axis=0).round(2).tolist()]
    by_tokens = [tuple(accumulate(column, max)) for column in zip(*by_context, strict=True)]
    where = torch.cuda.get_device_name() if device == "cuda" else machine()
    return CostTable(TOKENS, CONTEXTS, tuple(zip(*by_tokens, strict=True)), where, **tier_bytes_per_s(engine))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.calibrate", description=__doc__)
    parser.add_argument("dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiers", action="store_true", help="keep the costs of forward passes that the file has")
    parser.add_argument("--path", type=Path, default=OUT / "costs.json")
    arguments = parser.parse_args()
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    for dtype in arguments.dtypes:
        with lab_extra("lab.calibrate"):
            if arguments.tiers:
                engine = Engine.from_pretrained(dtype=dtype, device=arguments.device, num_pages=1)
                table = replace(CostTable.load(arguments.path, dtype), **tier_bytes_per_s(engine))
            else:
                table = calibrate(dtype, device=arguments.device)
        table.save(arguments.path, dtype)
        costs = ", ".join(f"{n}: {table.at(1024)(n):.3g}" for n in TOKENS)
        print(f"{dtype}, ms by tokens at a context of 1,024: {costs}")
        rates = f"{table.host_bytes_per_s / 1e9:.2f} from host memory, {table.disk_bytes_per_s / 1e9:.2f} from the disk"
        print(f"{dtype}, GB of K/V a second: {rates}")
    print(f"written to {arguments.path}")


if __name__ == "__main__":
    main()
