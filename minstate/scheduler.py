"""Requests in, work for ragged batches out: continuous batching (Orca, OSDI 2022) with chunked prefill (Sarathi,
arXiv 2308.16369), in order of arrival. Reads no clock: the same requests give the same batches."""

from dataclasses import dataclass, field

from minstate.batch import Sequence
from minstate.sampling import Sampling


@dataclass(eq=False)
class Request:
    """One turn on its way: what the scheduler and the engine need to know of it, and what it has cost so far."""

    sequence: Sequence
    log_before: int  # length of the log before the turn; an abort truncates to it
    prompt_length: int  # length of the log with the turn's input
    reused: int  # tokens that had K/V when the turn began
    max_new_tokens: int
    sampling: Sampling
    replay: tuple[int, ...] | None  # the output, where it is given
    generated: list[int] = field(default_factory=list)
    agreed: int = 0  # replayed tokens that the model itself would have chosen
    forwarded: int = 0
    steps: int = 0
    flops: int = 0
    kv_bytes_read: int = 0

    @property
    def remaining(self) -> int:
        """Tokens that have still to be forwarded before the next one can be chosen."""
        return len(self.sequence.log) - self.sequence.kv_len

    @property
    def pages_to_come(self) -> int:
        """Free pages that the turn may still take, at its longest. The last new token is never forwarded."""
        longest = self.prompt_length + self.max_new_tokens - 1
        return self.sequence.table.pages_needed(longest - self.sequence.kv_len)


class Scheduler:
    """Decides which tokens the next forward pass takes: at most `token_budget` of them."""

    def __init__(self, token_budget: int):
        self.token_budget = token_budget
        self.running: list[Request] = []  # in order of arrival

    def next_batch(self) -> list[tuple[Request, int]]:
        """The requests of the next step, each with its number of query tokens. Empty when nothing runs.

        Decodes go first, since somebody is reading along; prefills share what is left of the budget, oldest first. With
        more decodes than budget, the youngest wait until an older one is done.
        """
        budget = self.token_budget
        work = []
        for request in sorted(self.running, key=lambda request: request.remaining > 1):  # stable: arrival order stays
            count = min(request.remaining, budget)
            if count:
                work.append((request, count))
                budget -= count
        return work
