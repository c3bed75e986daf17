"""What a simulated server did for its clients, and how long they waited."""

from array import array
from dataclasses import dataclass, field

import numpy as np


@dataclass
class ServingStats:
    """Counts of tokens, unless the name says otherwise, over the turns that have ended. All times are predictions."""

    sessions: int = 0
    turns: int = 0
    prompt_tokens: int = 0  # whole logs with the turns' input: what a stateless client sends
    log_tokens: int = 0  # each input and answer once
    generated: int = 0
    forwarded: int = 0
    reused: int = 0  # prompt tokens that had K/V
    recomputed: int = 0  # prompt tokens that had been forwarded for this agent before
    preempted: int = 0  # times
    steps: int = 0
    first_s: array = field(default_factory=lambda: array("d"))  # for each turn, from sending it to its first token
    between_s: array = field(default_factory=lambda: array("d"))  # from each token of a turn to the next

    def row(self) -> dict:
        """Shares and percentiles, for a table."""
        return {
            "turns": self.turns,
            "hit rate": self.reused / max(1, self.prompt_tokens),
            "recomputed share": self.recomputed / max(1, self.prompt_tokens),
            "p95 to first token (s)": np.percentile(self.first_s, 95) if self.first_s else np.nan,
            "p95 between tokens (ms)": 1000 * np.percentile(self.between_s, 95) if self.between_s else np.nan,
        }
