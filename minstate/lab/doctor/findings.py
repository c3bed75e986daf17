"""What an examination finds: the counts of each request, and their sums."""

from collections import Counter
from dataclasses import dataclass, field, replace

from minstate.lab.logs.requests import Reading

BLOCKS = (16, 64, 128)  # tokens of a block, in caches that reuse whole blocks only


@dataclass(frozen=True)
class Examined:
    """One request. Counts are tokens; `message` is the index of the message in which it parts."""

    place: str
    session: int
    fork_of: int | None
    tokens: int
    old: int
    lost: int
    new: int
    blocks: dict[int, int]  # what a cache of such blocks would have prefilled
    cause: str = ""
    message: int | None = None
    was: str = ""
    now: str = ""
    reply_tokens: int = 0
    saved_passes: int = 0  # forward passes that prompt lookup would have saved
    at_s: float | None = None
    reported: tuple[int, int] | None = None
    past_limit: bool = False
    model: str = ""


@dataclass
class Examination:
    """All requests of a log, and what became of its records."""

    requests: list[Examined] = field(default_factory=list)
    reading: Reading = field(default_factory=Reading)
    tokenizer: str = ""
    sessions: int = 0
    limit: int | None = None

    def total(self, what: str) -> int:
        """The sum of a count: "tokens", "old", "lost", "new", "reply_tokens", "saved_passes"."""
        return sum(getattr(request, what) for request in self.requests)

    def prefilled(self) -> dict[str, int]:
        """Tokens that caches of different kinds would have prefilled, the worst first."""
        blocks = {f"blocks of {b}": sum(request.blocks[b] for request in self.requests) for b in reversed(BLOCKS)}
        exact = sum(max(1, request.tokens - request.old) for request in self.requests)
        return {"no cache": self.total("tokens"), **blocks, "exact to the token": exact, "session": self.total("new")}

    def causes(self) -> dict[str, tuple[int, int]]:
        """For each cause the requests and the lost tokens, the costliest first."""
        requests, lost = Counter(), Counter()
        for request in self.requests:
            if request.cause:
                requests[request.cause] += 1
                lost[request.cause] += request.lost
        return {cause: (requests[cause], count) for cause, count in lost.most_common()}

    @property
    def days(self) -> float | None:
        """How many days the log spans; None if it has no times, or less than an hour of them."""
        times = [request.at_s for request in self.requests if request.at_s is not None]
        span = max(times) - min(times) if times else 0
        return span / 86_400 if span >= 3_600 else None


def without_text(examination: Examination) -> Examination:
    """The same without any words of the log: of records that cannot be read, only the places remain."""
    reading = examination.reading
    named = [f"{problem.partition(': ')[0]}: cannot be read" for problem in reading.named]
    requests = [replace(request, was="", now="") for request in examination.requests]
    return replace(examination, requests=requests, reading=replace(reading, named=named))
