"""Answers to exact repeats, from memory: the fourth mechanism of arXiv 2605.26289.

A client that sends the same input twice, behind the same log, gets the same tokens twice, because everything that an
answer depends on is in the key. So the second answer needs no forward pass. It has no K/V then; the next turn computes
it.

The cache is a wrapper around sessions and engine, which do not know of it. No measurement of minstate goes through it:
how often agents repeat themselves exactly is a property of the agents, and no speed of the engine.
"""

import hashlib
import time
from array import array
from collections import OrderedDict
from dataclasses import replace

from minstate.engine import Engine
from minstate.session import Session
from minstate.turn import Turn, TurnOptions

NO_WORK = dict.fromkeys(
    ["agreed", "drafted", "accepted", "forced", "forwarded", "steps", "preempted", "flops", "kv_bytes_read"], 0
)


class ResponseCache:
    """The last `capacity` answers of an engine. Sessions of one tenant share them, as they share K/V."""

    def __init__(self, engine: Engine, capacity: int = 1024):
        self.engine, self.capacity = engine, capacity
        self.hits = self.misses = 0
        self._turns: OrderedDict[tuple, Turn] = OrderedDict()  # the last used one last

    def send(self, session: Session, messages=None, *, token_ids=None, **options) -> Turn:
        """As `session.send`, or the answer that it gave before; then `stats` say that nothing was forwarded."""
        started_s = time.perf_counter()
        asked = TurnOptions.of(options)
        session.require_idle()
        ids = None if token_ids is None else list(token_ids)
        if asked.replay is not None or asked.on_overflow != "error":
            return session.send(messages, token_ids=ids, **options)
        log = session.sequence.log
        given = self.engine.read_input(session.transcript, log, messages, ids)
        tools = session.transcript.tools if asked.tools is None else asked.tools
        asked = replace(asked, sampling=asked.sampling.for_fork(session.lineage), tools=tools)
        prompt = hashlib.sha256(array("q", [*log[: given.keep], *given.ids]).tobytes()).digest()
        key = session.tenant, prompt, len(given.ids), repr(asked)
        turn = self._turns.pop(key, None)
        if turn is None:
            self.misses += 1
            turn = self._turns[key] = session.send(messages, token_ids=ids, **options)
            if len(self._turns) > self.capacity:
                self._turns.popitem(last=False)
            return turn
        self.hits += 1
        self._turns[key] = turn
        session.add_answered(given, turn)
        context, prompt_length = max(0, given.keep - 1), given.keep + len(given.ids)
        counts = {"context": context, "delta": prompt_length - context, "reused": prompt_length}
        total_s = time.perf_counter() - started_s
        stats = replace(turn.stats, **NO_WORK, **counts, ttft_s=total_s, total_s=total_s)
        return replace(turn, stats=stats, verdicts=())
