"""Replay several traces at once on one engine, each by a team of agents.

A team has the sessions of one trace. A turn is due when the session's previous output is there (for a fork: its
parent's), its tools or people have taken their `delay_s`, and the reports that it waits for have been made. The turns
that are due are submitted, and the engine's steps move all of them on together.

A turn that fails, or is refused, ends its own conversation only. Its row has the reason. The turns that need it are
left out: those that follow in its session, that fork it, or that wait for its report. All others go on.

The clock is the machine's, or a cost table moves it on (`clocks`): then a replay never sleeps.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from minstate.engine import Engine
from minstate.errors import MinstateError
from minstate.lab.measure import turn_row
from minstate.lab.serving.clocks import ModelledClock, WallClock
from minstate.lab.traces.trace import Trace, TraceTurn
from minstate.request import Request
from minstate.session import Session
from minstate.turn import Turn


class DueTurn(NamedTuple):
    """A turn whose conditions are met."""

    at_s: float  # when they are
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
        self._conditions = [self._condition(place) for place in range(len(self.turns))]

    def due(self) -> Iterator[DueTurn]:
        """The turns all of whose conditions are met, or will be once their delay is over."""
        for place in self.to_do:
            before, reports = self._conditions[place]
            if all(needed in self.done_s for needed in (*before, *reports)):
                begun_s = max([self.start_s, *(self.done_s[needed] for needed in before)])
                reported_s = [self.done_s[needed] for needed in reports]
                yield DueTurn(max([begun_s + self.pace * self.turns[place].delay_s, *reported_s]), self.number, place)

    def begin(self, engine: Engine, place: int) -> Request:
        """Submit the turn; its session is opened if this is the first turn."""
        self.to_do.remove(place)
        turn = self.turns[place]
        if turn.session not in self.sessions:
            opening = self.header.sessions[turn.session]
            self.sessions[turn.session] = engine.open(opening.messages, opening.tools)
        return engine.submit(self.sessions[turn.session], list(turn.messages), replay=turn.output)

    def fail(self, place: int) -> None:
        """The turn is not done, and never will be: close its session, if it was opened."""
        if session := self.sessions.get(self.turns[place].session):
            session.close()

    def end(self, place: int, now_s: float, *, hint: bool) -> None:
        """The turn is done. Fork the sessions that begin here, and close the session after its last turn.

        hint  whether the session announces when its next turn is due
        """
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

    def _condition(self, place: int) -> tuple[list[int], list[int]]:
        """The turn before it in its session, and the turns whose reports it waits for."""
        turn, earlier = self.turns[place], range(place)
        own = turn.fork_of.session if turn.fork_of else turn.session
        before = [other for other in earlier if self.turns[other].session == own][-1:]
        return before, [other for other in earlier if self.turns[other].session in turn.waits_for]


def replay_concurrently(
    engine: Engine,
    traces: Sequence[Trace],
    *,
    clock: WallClock | ModelledClock | None = None,
    pace: float = 1.0,
    hints: bool = False,
) -> pd.DataFrame:
    """A row for each turn, in the order in which they were done: what it cost; when it was due and done, in seconds.

    If a turn failed, its `error` is the reason, and it has no costs; `error` is "" for all others.

    pace   factor on all delays of tools and people
    hints  whether sessions announce how long their tools will take (`Session.expect`)

    Raises what is no turn's fault, such as an exception of the engine's step; all sessions are then closed.
    """
    clock = clock or WallClock()
    start_s = clock.now()
    teams = [Team(number, trace, start_s, pace) for number, trace in enumerate(traces)]
    running: dict[Request, DueTurn] = {}
    rows = []
    try:
        with tqdm(total=sum(len(team.turns) for team in teams), unit="turn", mininterval=1) as bar:
            while (due_turns := sorted(due for team in teams for due in team.due())) or running:
                for due in [due for due in due_turns if due.at_s <= clock.now()]:
                    due_turns.remove(due)
                    team = teams[due.team]
                    try:
                        running[team.begin(engine, due.place)] = due
                    except MinstateError as error:
                        team.fail(due.place)
                        rows.append(_row(team.turns[due.place], due, clock.now(), start_s, error=error))
                if not running:
                    if due_turns:
                        clock.wait(due_turns[0].at_s)
                    continue
                ended = engine.step()
                clock.after_step(engine, list(running))
                for request in ended:
                    due, now_s = running.pop(request), clock.now()
                    team = teams[due.team]
                    if request.turn:
                        team.end(due.place, now_s, hint=hints)
                    else:
                        team.fail(due.place)
                    row = _row(team.turns[due.place], due, now_s, start_s, ended=request.turn, error=request.error)
                    rows.append(row)
                    bar.update()
    finally:
        for team in teams:
            for session in team.sessions.values():
                session.close()
    return pd.DataFrame(rows)


def _row(
    turn: TraceTurn,
    due: DueTurn,
    now_s: float,
    start_s: float,
    *,
    ended: Turn | None = None,
    error: Exception | None = None,
) -> dict:
    due_s, done_s = due.at_s - start_s, now_s - start_s
    times = {"due_s": due_s, "done_s": done_s, "latency_s": done_s - due_s}
    costs = turn_row(ended) if ended else {}
    reason = f"{type(error).__name__}: {error}" if error else ""
    return {"team": due.team, "session": turn.session, "turn": turn.turn, **times, "error": reason, **costs}
