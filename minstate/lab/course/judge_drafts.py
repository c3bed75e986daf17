"""The judge of lab 3: another source of guesses saves forward passes, costs nothing where it fails, changes no token.

The recorded agents are replayed on an engine without weights: the output is given, so what a draft saves depends on the
guesses alone. What a pass costs is read off the engine's own cost table. `BASELINES` has what the engine needs with the
sources that it has; a test counts this anew.
"""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from minstate.draft_budget import REGRET, CostTable
from minstate.engine import Engine
from minstate.lab.course.finding import Finding
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.engines.stub_model import stub_engine
from minstate.lab.paths import TRACES
from minstate.lab.traces.replay import replay
from minstate.lab.traces.trace import read_trace
from minstate.sampling import Sampling
from minstate.speculation import Speculation
from minstate.turn import Turn

LEAST_SAVED = 0.025  # of the forward passes
TRACE_NAMES = ("agentic", "data_analysis", "planning")
COSTS = CostTable.default("float32")


class Work(NamedTuple):
    """What the turns of a trace have taken."""

    passes: int
    ms: float  # modelled, of all passes but the first of each turn, which ends its prompt

    def __add__(self, other: "Work") -> "Work":
        return Work(self.passes + other.passes, self.ms + other.ms)


BASELINES = {"agentic": Work(298, 5210), "data_analysis": Work(639, 11393), "planning": Work(597, 10573)}


def judge_drafts() -> Iterator[Finding]:
    """Passes and modelled costs of recorded agents, the cost on random text, and the outputs of a real engine."""
    work = {name: replayed(name) for name in TRACE_NAMES}
    passes, before = sum(each.passes for each in work.values()), sum(each.passes for each in BASELINES.values())
    shown = ", ".join(f"{name} {work[name].passes} ({BASELINES[name].passes})" for name in TRACE_NAMES)
    yield Finding(
        f"The recorded agents take {LEAST_SAVED:.1%} fewer forward passes than with the engine's own sources.",
        passes <= (1 - LEAST_SAVED) * before,
        f"{passes} ({before}): {shown}",
    )
    ms, before_ms = sum(each.ms for each in work.values()), sum(each.ms for each in BASELINES.values())
    yield Finding(
        "By the cost table, these passes take less time.",
        ms < before_ms,
        f"{ms:,.0f} ms ({before_ms:,.0f} ms)",
    )
    drafted, without = random_text(Speculation(COSTS)), random_text(None)
    yield Finding(
        f"On random text, drafts add at most {REGRET:.0%} to the modelled cost.",
        drafted.ms <= (1 + REGRET) * without.ms,
        f"{drafted.ms:,.0f} ms, without drafts {without.ms:,.0f} ms",
    )
    free = CostTable((1, 64), (0, 1024), ((1.0, 1.0), (1.0, 1.0)))  # drafts cost nothing: as many as there are
    speculated, plain = outputs(small_engine(speculation=Speculation(free))), outputs(small_engine())
    yield Finding(
        "Outputs are the same without drafts: greedy and sampled, after rollbacks and in forks.",
        speculated == plain,
        f"{len(plain)} turns",
    )


def replayed(name: str) -> Work:
    """A recorded agent, with drafts from all sources that there are."""
    engine = stub_engine(num_pages=2048, speculation=Speculation(COSTS))
    return sum((work_of(turn) for _, turn in replay(engine, read_trace(TRACES / f"{name}-0.jsonl"))), Work(0, 0.0))


def random_text(speculation: Speculation | None) -> Work:
    """Random tokens as input and output: no guess has a reason to be right."""
    engine, draw = stub_engine(num_pages=512, speculation=speculation or False), Random(0)
    total = Work(0, 0.0)
    with engine.open() as session:
        for _ in range(4):
            ids = [draw.randrange(100, 49_000) for _ in range(256)]
            total += work_of(session.send(token_ids=ids[:192], replay=ids[192:]))
    return total


def work_of(turn: Turn) -> Work:
    """The forward passes of a turn, and what they cost by the table."""
    context, ms = turn.stats.context + turn.stats.delta, 0.0
    for number, verdict in enumerate(turn.verdicts):
        if number:
            ms += COSTS.at(context + 1)(1 + len(verdict.draft))
        context += len(verdict.sampled)
    return Work(len(turn.verdicts), ms)


def outputs(engine: Engine) -> list[tuple[int, ...]]:
    """What a random model generates in turns with repeated inputs, rollbacks and forks."""
    draw, found, session = Random(1), [], engine.open()
    for turn in range(24):
        mark, branch = session.mark(), session.fork() if turn % 6 == 5 else session
        new = [draw.randrange(10, 16) for _ in range(draw.randrange(1, 12))]
        sampling = Sampling(temperature=draw.choice([0.0, 0.7]), seed=turn, ignore_eos=True)
        found.append(branch.send(token_ids=new, max_new_tokens=12, sampling=sampling).token_ids)
        engine.check()
        if turn % 5 == 4:
            session.rollback(mark)
    return found
