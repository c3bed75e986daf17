"""Keys and values in 8 bits beside the model's own format: what they change, and what they save.

The text of each trace is given, token by token (teacher forcing), so one other choice does not make all that follows
different. At each position of a log:

    equal choices   the share of positions where both formats find the same token the most likely one
    largest gap     where they do not: by how much the two choices' logits differ in the model's own format, at most
    perplexity      exp of the mean of −ln p, with p the probability of the token that follows
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from minstate.engine import Engine
from minstate.lab.engines.stub_model import stub_engine
from minstate.lab.machines.pass_timing import CHUNK, pass_s, prefilled_sequence
from minstate.lab.paths import TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence

CONTEXTS = (1024, 7168)


def kv_int8(dtype: str = "float32", rounds: str = "9") -> pd.DataFrame:
    """For each trace, how far the two formats agree; memory and the time of a decode step are attributes."""
    engines = [Engine.from_pretrained(dtype=dtype, kv_dtype=kv_dtype, num_pages=1000) for kv_dtype in (None, "int8")]
    rows = [
        {"trace": path.stem} | agreement(engines, list(logs_of(path.stem).values()), path.stem)
        for path in sorted(TRACES.glob("*.jsonl"))
    ]
    table = pd.DataFrame(rows).set_index("trace")
    names = [dtype, "int8"]
    table.attrs = {
        "kv_bytes_per_token": {
            name: engine.pool.bytes_per_page // engine.pool.page_size
            for name, engine in zip(names, engines, strict=True)
        },
        "decode step": decode_steps(dict(zip(names, engines, strict=True)), int(rounds)),
    }
    return table


def logs_of(trace: str) -> dict[str, list[int]]:
    """The token ids of each session of a committed trace at its end."""
    sessions, logs = {}, {}
    for record, _ in replay(stub_engine(), read_trace(TRACES / f"{trace}.jsonl"), sessions=sessions):
        logs[record.session] = list(sessions[record.session].token_ids)
    return logs


def all_logits(engine: Engine, log: list[int]) -> Iterator[torch.Tensor]:
    """The logits of every position, in chunks `[CHUNK, vocab]` in float32."""
    sequence = Sequence(engine.pool)
    while sequence.kv_len < len(log):
        count = min(CHUNK, len(log) - sequence.kv_len)
        sequence.log = log[: sequence.kv_len + count]
        batch = RaggedBatch.build([sequence.chunk(count)])
        batch = RaggedBatch(**{**vars(batch), "logit_rows": torch.arange(count)})
        yield engine.core.runner.logits(batch).float()
        sequence.table.commit()
    sequence.table.truncate(0)


def agreement(engines: list[Engine], logs: list[list[int]], name: str) -> dict[str, float]:
    """What the second engine's logits have in common with the first one's, over all positions of all logs."""
    same, gap, surprise, positions = 0, 0.0, np.zeros(2), 0
    for log in tqdm(logs, desc=name, unit="log"):
        following = torch.tensor([*log[1:], -1])
        for own, other, after in zip(
            *(all_logits(engine, log) for engine in engines), following.split(CHUNK), strict=True
        ):
            known = after >= 0
            choices = [logits.argmax(-1, keepdim=True) for logits in (own, other)]
            gaps = own.gather(1, choices[0]) - own.gather(1, choices[1])
            same, gap = same + int((choices[0] == choices[1]).sum()), max(gap, float(gaps.max()))
            for i, logits in enumerate((own, other)):
                surprise[i] += float(torch.nn.functional.cross_entropy(logits[known], after[known], reduction="sum"))
        positions += len(log)
    perplexity = np.exp(surprise / (positions - len(logs)))
    return {
        "tokens": positions,
        "equal choices": same / positions,
        "largest gap": gap,
        "perplexity": perplexity[0],
        "perplexity, int8": perplexity[1],
    }


def decode_steps(engines: dict[str, Engine], rounds: int) -> list[dict]:
    """Milliseconds of a decode step, engines in turns: the median of all rounds."""
    cases = [(name, context) for context in CONTEXTS for name in engines]
    sequences = {case: prefilled_sequence(engines[case[0]], case[1]) for case in tqdm(cases, desc="prefill")}
    taken = pd.DataFrame(
        [{case: pass_s(engines[case[0]], sequences[case], 1) for case in cases} for _ in tqdm(range(rounds))]
    )
    return [
        {"kv": name, "context": context, "median ms": round(1000 * taken[name, context].median(), 2)}
        for name, context in cases
    ]
