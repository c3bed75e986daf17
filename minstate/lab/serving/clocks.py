"""Two clocks for a replay: the machine's own, and one that a cost table moves on."""

import time
from collections.abc import Sequence

from minstate.draft_budget import CostTable
from minstate.engine import Engine
from minstate.request import Request
from minstate.scheduler import Event


class WallClock:
    """Seconds as they pass on this machine."""

    def now(self) -> float:
        """The time, in seconds."""
        return time.perf_counter()

    def wait(self, until_s: float) -> None:
        """Sleep until `until_s`."""
        time.sleep(max(0.0, until_s - self.now()))

    def after_step(self, engine: Engine, running: Sequence[Request]) -> None:
        """Do nothing: the step has taken its time already."""


class ModelledClock:
    """Seconds by a cost table: a replay then never sleeps, and takes the same modelled time on any machine.

    An engine that should tell the same time takes `now` as its clock. A step is priced as one sequence with the
    contexts of all that took part, which is too much for many long contexts.
    """

    def __init__(self, costs: CostTable):
        self.costs, self.seconds = costs, 0.0

    def now(self) -> float:
        """The time, in seconds."""
        return self.seconds

    def wait(self, until_s: float) -> None:
        """Move on to `until_s` at once."""
        self.seconds = max(self.seconds, until_s)

    def after_step(self, engine: Engine, running: Sequence[Request]) -> None:
        """Move on by the price of the engine's last step, in which some of `running` took part."""
        contexts = {request.number: request.sequence.kv_len for request in running}
        events = [event for event in events_of_last_step(engine) if event.what in ("prefill", "decode")]
        tokens = sum(event.tokens + event.drafted for event in events)
        context = sum(contexts.get(event.request, 0) for event in events)
        self.seconds += self.costs.at(context)(tokens) / 1000 if tokens else 0.0


def events_of_last_step(engine: Engine) -> list[Event]:
    """What the scheduler decided in the last step, the latest decision first."""
    scheduler, events = engine.scheduler, []
    for event in reversed(scheduler.timeline):
        if event.step < scheduler.steps - 1:
            break
        if event.step == scheduler.steps - 1:
            events.append(event)
    return events
