"""Play several traces at once on one engine: agents that work side by side.

Each trace is a team of one session or more, and its turns come when their time has come: the session's previous output
is there (a fork's: its parent's), its tools or people have taken their `delay_s`, and the reports that it waits for
have been made. What is due is submitted, and the engine steps for all of them together.

Time is that of the machine, or modelled from a cost table: then a run takes no time to wait, and is the same anywhere.
"""

import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from minstate.costs import CostTable
from minstate.engine import Engine
from minstate.lab.agent.code_base import WORDS
from minstate.lab.measure import flat
from minstate.lab.traces.scripts import SCRIPTS, Draft
from minstate.lab.traces.trace import Trace, TraceHeader, TraceTurn
from minstate.lab.traces.write import records
from minstate.session import Session
from minstate.turn import Handle


class WallClock:
    """Seconds as they pass."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, until: float) -> None:
        time.sleep(max(0.0, until - self.now()))

    def stepped(self, engine: Engine, running: Sequence[Handle]) -> None:
        """A step has taken the time that it took."""


class ModelledClock:
    """Seconds as a cost table has them. Give `now` to the engine as its clock, where it should be the same.

    A step is priced as one sequence with the contexts of all who took part: for many long ones that is too slow.
    """

    def __init__(self, costs: CostTable):
        self.costs, self.seconds = costs, 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, until: float) -> None:
        self.seconds = max(self.seconds, until)

    def stepped(self, engine: Engine, running: Sequence[Handle]) -> None:
        """A step has taken as long as a pass over its tokens does, with the context of those who took part."""
        contexts = {handle.request.number: handle.request.sequence.kv_len for handle in running}
        last = [event for event in _last_step(engine) if event.tokens]
        tokens = sum(event.tokens + event.drafted for event in last)
        context = sum(contexts.get(event.request, 0) for event in last)
        self.seconds += self.costs.at(context)(tokens) / 1000 if tokens else 0.0


class Due(NamedTuple):
    """A turn that may begin."""

    at_s: float
    team: int
    place: int  # in its trace


class Team:
    """The sessions of one trace, and which of its turns are done."""

    def __init__(self, number: int, trace: Trace, start_s: float, pace: float):
        self.number, self.header, self.turns = number, trace.header, list(trace.turns)
        self.start_s, self.pace = start_s, pace
        self.sessions: dict[str, Session] = {}
        self.to_do = set(range(len(self.turns)))
        self.done_s: dict[int, float] = {}  # when each turn was done
        self._needs = [self._needed(place) for place in range(len(self.turns))]

    def due(self) -> Iterator[Due]:
        """The turns all of whose conditions are met, and when they are."""
        for place in self.to_do:
            before, reports = self._needs[place]
            if all(needed in self.done_s for needed in (*before, *reports)):
                begun_s = max([self.start_s, *(self.done_s[needed] for needed in before)])
                came_s = [self.done_s[needed] for needed in reports]
                yield Due(max([begun_s + self.pace * self.turns[place].delay_s, *came_s]), self.number, place)

    def begin(self, engine: Engine, place: int) -> Handle:
        """Submit the turn, in its session, which is opened if it is not there yet."""
        self.to_do.remove(place)
        turn = self.turns[place]
        if turn.session not in self.sessions:
            opening = self.header.sessions[turn.session]
            self.sessions[turn.session] = engine.open(opening.messages, opening.tools)
        return engine.submit(self.sessions[turn.session], list(turn.messages), replay=turn.output)

    def end(self, place: int, now_s: float, *, hint: bool) -> None:
        """The turn is done. Fork those that begin here; close the session after its last turn, else hint."""
        self.done_s[place] = now_s
        turn, session = self.turns[place], self.sessions[self.turns[place].session]
        for other in self.turns:
            if other.fork_of and (other.fork_of.session, other.fork_of.after_turn) == (turn.session, turn.turn):
                self.sessions[other.session] = session.fork()
        following = [other for other in self.turns[place + 1 :] if other.session == turn.session]
        if not following:
            session.close()
        elif hint and not following[0].waits_for:
            session.expect(self.pace * following[0].delay_s)

    def _needed(self, place: int) -> tuple[list[int], list[int]]:
        """The turn before it in its session, and those whose reports it waits for."""
        turn, earlier = self.turns[place], range(place)
        own = turn.fork_of.session if turn.fork_of else turn.session
        before = [other for other in earlier if self.turns[other].session == own][-1:]
        return before, [other for other in earlier if self.turns[other].session in turn.waits_for]


def play(
    engine: Engine,
    traces: Sequence[Trace],
    *,
    clock: WallClock | ModelledClock | None = None,
    pace: float = 1.0,
    hints: bool = False,
) -> pd.DataFrame:
    """A row for each turn, in the order in which they were done: what it cost; when it was due and done, in seconds.

    pace   factor on all delays of tools and people
    hints  whether sessions say how long their tools will take (`Session.expect`)

    Raises what a turn raises, and what `Engine.submit` raises; all sessions are then closed.
    """
    clock = clock or WallClock()
    start_s = clock.now()
    teams = [Team(number, trace, start_s, pace) for number, trace in enumerate(traces)]
    running: dict[Handle, Due] = {}
    rows = []
    try:
        with tqdm(total=sum(len(team.turns) for team in teams), unit="turn", mininterval=1) as bar:
            while running or any(team.to_do for team in teams):
                due = sorted(one for team in teams for one in team.due())
                for one in due:
                    if one.at_s <= clock.now():
                        running[teams[one.team].begin(engine, one.place)] = one
                if not running:
                    clock.wait(due[0].at_s)
                    continue
                ended = engine.step()
                clock.stepped(engine, list(running))
                for handle in ended:
                    if handle.error:
                        raise handle.error
                    one, now_s = running.pop(handle), clock.now()
                    team = teams[one.team]
                    team.end(one.place, now_s, hint=hints)
                    rows.append(_row(team.turns[one.place], one, now_s - start_s, handle, start_s))
                    bar.update()
    finally:
        for team in teams:
            for session in team.sessions.values():
                session.close()
    return pd.DataFrame(rows)


def _row(turn: TraceTurn, due: Due, done_s: float, handle: Handle, start_s: float) -> dict:
    times = {"due_s": due.at_s - start_s, "done_s": done_s, "latency_s": done_s - (due.at_s - start_s)}
    return {"team": due.team, "session": turn.session, "turn": turn.turn, **times, **flat(handle.turn)}


def _last_step(engine: Engine) -> list:
    """The scheduler's decisions of the last step."""
    scheduler, events = engine.scheduler, []
    for event in reversed(scheduler.timeline):
        if event.step < scheduler.steps - 1:
            break
        if event.step == scheduler.steps - 1:
            events.append(event)
    return events


def wordless(name: str, seed: int) -> Trace:
    """A trace of one of `trace_scripts.SCRIPTS`, written without a model: agents call tools and say nothing besides.

    Where an output has no call, it is words drawn from the seed.
    """
    script, draw = SCRIPTS[name](seed), Random(f"words of {name} {seed}")
    vocabulary = [*WORDS["people"], *WORDS["towns"], *WORDS["companies"]]

    def say(draft: Draft) -> str:
        return "" if draft.calls else " ".join(draw.choices(vocabulary, k=draft.tokens // 3))

    header = TraceHeader(name, script.sessions, seed, script.about, len(script.drafts))
    return Trace(header, tuple(records(script, say)))
