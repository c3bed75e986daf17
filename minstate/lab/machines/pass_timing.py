"""Time single forward passes over one sequence, outside of any turn."""

import time

from minstate.engine import Engine
from minstate.lab.paths import source_text
from minstate.ragged_batch import RaggedBatch
from minstate.sequence import Sequence

CHUNK = 512  # tokens of a prompt in a forward pass


def prefilled_sequence(engine: Engine, context: int) -> Sequence:
    """A sequence of `context` tokens with K/V. Its text is real, since attention to random text is unlike any other."""
    sequence = Sequence(engine.pool)
    sequence.log = engine.tokenizer.encode(source_text())[:context]
    while sequence.kv_len < context:
        engine.core.runner.logits(RaggedBatch.build([sequence.chunk(min(CHUNK, context - sequence.kv_len))]))
        sequence.table.commit()
    return sequence


def pass_s(engine: Engine, sequence: Sequence, tokens: int, drafted: int = 0) -> float:
    """Seconds of a forward pass over the last `tokens` tokens of the sequence, the last `drafted` of them as a draft.

    The time includes building the batch, and reading the arg-maxes of its logits.
    """
    whole, end = sequence.log, len(sequence.log)
    sequence.table.truncate(end - tokens)
    start = time.perf_counter()
    sequence.log = whole[: end - drafted]
    batch = RaggedBatch.build([sequence.chunk(tokens - drafted, whole[end - drafted :])])
    engine.core.runner.logits(batch).argmax(-1).tolist()
    taken = time.perf_counter() - start
    sequence.table.commit()
    sequence.log = whole
    return taken
