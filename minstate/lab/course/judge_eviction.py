"""The judge of lab 1: an eviction rule has the engine compute fewer tokens again than LRU has, and changes no answer.

It replays traffic on the prefix cache without a model, as `lab.serving.compare_eviction` does. A token is computed
again if a pool without limit would not have computed it. `BASELINES` has the numbers of the engine's own rule, because
the engine that is judged has another one; a test counts them anew on the engine as it is.
"""

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple

from minstate.engine import Engine
from minstate.lab.course.finding import Finding
from minstate.lab.engines.small_engine import small_engine
from minstate.lab.serving.compare_eviction import AccessTrace, access_trace, replay_accesses
from minstate.lab.serving.traffic import TrafficShape, draw_sessions
from minstate.sampling import Sampling
from minstate.session import Session

LEAST_SAVED = {1 / 2: 0.15, 1 / 4: 0.05}  # of the tokens that LRU computes again, by the share of the working set
PAGE_SIZE = 16
FREE = Sampling(ignore_eos=True)


class Traffic(NamedTuple):
    """Sessions that a judge draws: their shape, and how many."""

    shape: TrafficShape
    count: int
    seed: int

    @property
    def trace(self) -> AccessTrace:
        """All turns, in a fixed order."""
        return _trace(self)


class Baseline(NamedTuple):
    """Tokens that the engine computes again on one traffic and pool: by its own rule, without hints and with them."""

    lru: int
    hints: int


TRAFFIC = {
    "long sessions": Traffic(TrafficShape.for_context(6_000), 30, 0),
    "short sessions": Traffic(TrafficShape.for_context(4_000, turns=12, subagent_turns=5), 60, 1),
}
BASELINES = {
    ("long sessions", 1 / 2): Baseline(253_155, 237_712),
    ("long sessions", 1 / 4): Baseline(1_446_485, 1_189_381),
    ("short sessions", 1 / 2): Baseline(56_253, 52_811),
    ("short sessions", 1 / 4): Baseline(296_811, 212_031),
}


def judge_eviction() -> Iterator[Finding]:
    """How many tokens fewer are computed again, without hints and with them, and whether all answers stay the same."""
    with_hints = []
    for (name, share), baseline in BASELINES.items():
        again, hinted = (recomputed(name, share, policy) for policy in ("LRU", "hints"))
        saved, least = 1 - again / baseline.lru, LEAST_SAVED[share]
        yield Finding(
            f"{name.capitalize()}, a pool of {share:.0%} of the working set: {least:.0%} less is computed again.",
            saved >= least,
            f"{again:,}; under LRU {baseline.lru:,}. That is {saved:.1%} less",
        )
        with_hints.append((hinted, baseline.hints))
    yield Finding(
        "With hints, no more tokens are computed again than under the engine's rule with hints.",
        all(hinted <= before for hinted, before in with_hints),
        ", ".join(f"{hinted:,} ({before:,})" for hinted, before in with_hints),
    )
    small, ample = (answers(small_engine(num_pages=pages)) for pages in (44, 2000))
    yield Finding(
        "In a small pool all answers are those of an ample one, and every recount holds.",
        small == ample,
        f"{len(small)} answers",
    )


def recomputed(name: str, share: float, policy: str) -> int:
    """Tokens that a pool of this share of the working set computes again under one of `EVICTION_POLICIES`."""
    traffic = TRAFFIC[name]
    pages = int(share * traffic.trace.working_set / PAGE_SIZE)
    return replay_accesses(traffic.trace, pages, policy, page_size=PAGE_SIZE).computed - least_computed(traffic)


@cache
def least_computed(traffic: Traffic) -> int:
    """Tokens that a pool computes in which everything fits."""
    pages = 10 * traffic.trace.working_set // PAGE_SIZE
    return replay_accesses(traffic.trace, pages, "LRU", page_size=PAGE_SIZE).computed


@cache
def _trace(traffic: Traffic) -> AccessTrace:
    return access_trace(draw_sessions(traffic.shape, traffic.seed, count=traffic.count, per_s=0.1))


def answers(engine: Engine) -> list[tuple[int, ...]]:
    """What sessions with a common prompt generate that take turns, are forked and are closed, as a seed has it."""
    draw, prompt, found = Random(0), list(range(10, 30)), []
    sessions: list[Session] = []
    for _ in range(60):
        if len(sessions) < 3 or draw.random() < 0.2:
            sessions.append(engine.open())
            new = prompt + [draw.randrange(40, 200) for _ in range(8)]
        elif draw.random() < 0.3:
            sessions.append(draw.choice(sessions).fork())
            new = [draw.randrange(40, 200) for _ in range(6)]
        else:
            sessions.append(sessions.pop(draw.randrange(len(sessions))))
            new = [draw.randrange(40, 200) for _ in range(4)]
        session = sessions[-1]
        if len(session.token_ids) < 120:
            found.append(session.send(token_ids=new, max_new_tokens=4, sampling=FREE).token_ids)
        if len(sessions) > 5 or len(session.token_ids) >= 120:
            sessions.pop(draw.randrange(len(sessions))).close()
        engine.check()
    return found
