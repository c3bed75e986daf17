"""Measure what a forward pass costs on this machine: `python -m minstate.lab.calibrate [--device cuda] [dtypes]`.

Writes a table for each dtype into one file. An engine takes it with
`Speculation(CostTable.load("out/costs.json", "float32"))`; without one it takes the default that minstate ships, which
is a CPU's: on a GPU, where a pass over 16 tokens costs hardly more than one over a single token, it drafts too little.
"""

import argparse
import time
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minstate.costs import CostTable
from minstate.engine import Engine
from minstate.lab.extras import lab_extra
from minstate.lab.paths import OUT
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 512)
DRAFTED = 64  # passes up to here are measured as drafts, with logits for every token; longer ones as prompts
CONTEXTS = (512, 2048, 4096, 8000)


def calibrate(dtype: str, rounds: int = 7, device: str = "cpu") -> CostTable:
    """Passes of 1 to 512 query tokens that end at 512 to 8,000 tokens of real text, in interleaved rounds.

    Takes the lower quartile, since whatever disturbs a pass makes it longer. Costs are made to rise with tokens and
    with context, as they do but for noise.
    """
    from minstate.lab.bench.cpu_steps import prefilled  # these two need the extra `lab`
    from minstate.lab.measure import machine

    engine = Engine.from_pretrained(dtype=dtype, device=device, num_pages=sum(CONTEXTS) // 16 + 256)
    sequences = [prefilled(engine, context) for context in tqdm(CONTEXTS, desc=f"{dtype}, prompts")]
    cases = [(row, column) for row in range(len(CONTEXTS)) for column in range(len(TOKENS))]
    for row, column in cases if device == "cuda" else ():  # compiles kernels, captures graphs
        pass_ms(engine, sequences[row], TOKENS[column])
    order, times = np.random.default_rng(0), np.zeros((rounds, len(CONTEXTS), len(TOKENS)))
    for taken in tqdm(times, desc=f"{dtype}, rounds"):
        for row, column in order.permutation(cases):
            taken[row, column] = pass_ms(engine, sequences[row], TOKENS[column])
    by_context = [accumulate(row, max) for row in np.quantile(times, 0.25, axis=0).round(2).tolist()]
    by_tokens = [tuple(accumulate(column, max)) for column in zip(*by_context, strict=True)]
    where = torch.cuda.get_device_name() if device == "cuda" else machine()
    return CostTable(TOKENS, CONTEXTS, tuple(zip(*by_tokens, strict=True)), where)


def pass_ms(engine: Engine, sequence: Sequence, tokens: int) -> float:
    """Milliseconds of a pass over `tokens` query tokens that ends where the sequence ends."""
    drafted = tokens - 1 if tokens <= DRAFTED else 0
    whole, end = sequence.log, len(sequence.log)
    sequence.table.truncate(end - tokens)
    start = time.perf_counter()
    sequence.log = whole[: end - drafted]
    batch = RaggedBatch.build([(sequence, tokens - drafted)], [whole[end - drafted :]])
    engine.logits(batch).argmax(-1).tolist()
    taken = time.perf_counter() - start
    sequence.log = whole
    return 1000 * taken


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minstate.lab.calibrate", description=__doc__)
    parser.add_argument("dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--path", type=Path, default=OUT / "costs.json")
    arguments = parser.parse_args()
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    for dtype in arguments.dtypes:
        with lab_extra("lab.calibrate"):
            table = calibrate(dtype, device=arguments.device)
        table.save(arguments.path, dtype)
        costs = ", ".join(f"{n}: {table.at(1024)(n):.3g}" for n in TOKENS)
        print(f"{dtype}, ms by tokens at a context of 1,024: {costs}")
    print(f"written to {arguments.path}")


if __name__ == "__main__":
    main()
