"""Answers to exact repeats, from memory: the fourth mechanism of arXiv 2605.26289.

A client that asks the same thing twice, behind the same log, gets the same tokens twice: everything an answer depends
on is in the key. So it can be given without a forward pass. It has no K/V then, which the next turn computes.

This is a wrapper around sessions and engine, which know nothing of it. No measurement of minstate goes through it: how
often agents repeat themselves exactly is a property of theirs, and no speed of ours.
"""

import hashlib
import time
from array import array
from collections import OrderedDict
from dataclasses import replace

from minstate.engine import GREEDY, Engine
from minstate.sampling import Sampling
from minstate.session import Session
from minstate.turn import Turn

NO_WORK = dict.fromkeys(
    ["agreed", "drafted", "accepted", "forced", "forwarded", "steps", "preempted", "flops", "kv_bytes_read"], 0
)


class ResponseCache:
    """The last `capacity` answers of an engine. Sessions of one tenant share them, as they share K/V."""

    def __init__(self, engine: Engine, capacity: int = 1024):
        self.engine, self.capacity = engine, capacity
        self.hits = self.misses = 0
        self._turns: OrderedDict[tuple, Turn] = OrderedDict()  # the last used last

    def send(self, session: Session, messages=None, *, token_ids=None, **options) -> Turn:
        """As `session.send`, or the answer that it gave before; then `stats` say that nothing was forwarded."""
        started_s = time.perf_counter()
        session.require_idle()
        ids = None if token_ids is None else list(token_ids)
        sampling = options.get("sampling", GREEDY)
        if options.get("replay") is not None or not isinstance(sampling, Sampling):
            return session.send(messages, token_ids=ids, **options)
        log = session.sequence.log
        keep, new, said = self.engine.read_input(session.said, log, messages, ids)
        tools = session.said.tools if options.get("tools") is None else options["tools"]
        asked = {**options, "sampling": sampling.for_fork(session.lineage), "tools": tools}
        seen = hashlib.sha256(array("q", [*log[:keep], *new]).tobytes()).digest()
        key = session.tenant, seen, len(new), repr(sorted(asked.items()))
        turn = self._turns.pop(key, None)
        if turn is None:
            self.misses += 1
            turn = self._turns[key] = session.send(messages, token_ids=ids, **options)
            if len(self._turns) > self.capacity:
                self._turns.popitem(last=False)
            return turn
        self.hits += 1
        self._turns[key] = turn
        session.cut(keep)
        log += [*new, *turn.token_ids]
        prompt_length = keep + len(new)
        session.said = said.completed(log, prompt_length, turn.text, self.engine.tokenizer)
        context, total_s = max(0, keep - 1), time.perf_counter() - started_s
        counts = {"context": context, "delta": prompt_length - context, "reused": prompt_length}
        stats = replace(turn.stats, **NO_WORK, **counts, ttft_s=total_s, total_s=total_s)
        return replace(turn, stats=stats, verdicts=())
