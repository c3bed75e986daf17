"""The judge of lab 4: a tenant waits for its own fair share, and not for the end of another tenant's queue."""

from collections.abc import Iterator
from itertools import count

from minstate.engine import Engine
from minstate.lab.course.finding import Finding
from minstate.lab.engines.small_engine import small_engine
from minstate.request import Request
from minstate.sampling import Sampling

ANSWER = 16  # tokens; a turn that runs takes as many steps
QUEUES = (8, 16, 32)  # turns that the loud tenant has submitted
LONGEST_WAIT = 3 * ANSWER  # steps that the quiet tenant may wait, however long that queue is
LONGEST_STARVATION = 600  # steps that a tenant may wait while new tenants keep coming
FREE = Sampling(ignore_eos=True)
COMMON = list(range(10, 34))  # the loud tenant's turns begin with it


def judge_waiting() -> Iterator[Finding]:
    """A quiet tenant behind a loud one, what that costs, and a loud tenant among ever new ones."""
    waits, mixed = [], Mixed(0, 0, [])
    for queue in QUEUES:
        mixed = quiet_behind(queue)
        waits.append(mixed.waited)
    shown = ", ".join(f"{wait} steps behind {queue} turns" for wait, queue in zip(waits, QUEUES, strict=True))
    yield Finding(
        f"A quiet tenant waits at most {LONGEST_WAIT} steps, however many turns another tenant has in the queue.",
        max(waits) <= LONGEST_WAIT,
        shown,
    )
    loud, quiet = quiet_behind(QUEUES[-1], quiet=False), quiet_behind(0)
    yield Finding(
        "Being fair costs no work: together the turns take no more steps than one tenant after the other.",
        mixed.steps <= loud.steps + quiet.steps,
        f"{mixed.steps} steps; {loud.steps} for the loud tenant alone, {quiet.steps} for the quiet one",
    )
    yield Finding(
        "No answer depends on who waits for whom.",
        mixed.answers == [*loud.answers, *quiet.answers],
        f"{len(mixed.answers)} answers compared with those of the same turns alone",
    )
    waited = loud_among_new_tenants()
    yield Finding(
        f"A tenant that was served much before is served again within {LONGEST_STARVATION} steps, while new tenants "
        "keep coming.",
        waited < LONGEST_STARVATION,
        f"{waited} steps" if waited < LONGEST_STARVATION else "it was not admitted within these steps",
    )


class Mixed:
    """What became of a queue of turns."""

    def __init__(self, waited: int, steps: int, answers: list[tuple[int, ...]]):
        self.waited, self.steps, self.answers = waited, steps, answers  # `waited`: steps of the quiet tenant's turn


def quiet_behind(queue: int, *, quiet: bool = True) -> Mixed:
    """A loud tenant submits `queue` turns with a common prefix; then a quiet tenant, if it is there, submits one."""
    engine = small_engine(num_pages=40)
    turns = [submit(engine, "loud", [*COMMON, 40 + number, 41, 42, 43]) for number in range(queue)]
    last = submit(engine, "quiet", list(range(100, 128))) if quiet else None
    waited = run(engine, last) if last else 0
    engine.run()
    engine.check()
    done = [*turns, *([last] if last else [])]
    return Mixed(waited, engine.scheduler.steps, [request.turn.token_ids for request in done])


def loud_among_new_tenants() -> int:
    """How many steps a tenant with a past waits while turns of new tenants come as fast as they are served."""
    engine = small_engine(num_pages=40)
    for number in range(8):
        submit(engine, "loud", [*COMMON, 40 + number, 41, 42, 43])
    engine.run()
    names = (f"new {number}" for number in count())

    def keep_coming() -> None:
        while len(engine.scheduler.waiting) < 6:
            submit(engine, next(names), [number % 200 + 50 for number in range(28)])

    keep_coming()
    last = submit(engine, "loud", [*COMMON, 60, 61, 62, 63])
    waited = run(engine, last, keep_coming)
    engine.check()
    return waited


def submit(engine: Engine, tenant: str, prompt: list[int]) -> Request:
    """A turn of a session of its own."""
    return engine.submit(engine.open(tenant=tenant), token_ids=prompt, max_new_tokens=ANSWER, sampling=FREE)


def run(engine: Engine, request: Request, before_step=lambda: None) -> int:
    """Step until the turn is admitted, or `LONGEST_STARVATION` steps have passed. Returns how many steps that took."""
    start = engine.scheduler.steps
    while not request.admitted and engine.scheduler.steps - start < LONGEST_STARVATION:
        before_step()
        engine.step()
    return engine.scheduler.steps - start
