"""Two ways to find where the last few tokens occurred before: chains of n-grams, and a suffix automaton."""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pandas as pd

from minstate.draft_budget import CostTable
from minstate.lab.paths import source_text
from minstate.prompt_lookup import LONGEST_MATCH, Corpus, Match, NgramIndex
from minstate.speculation import Speculation, Speculator
from minstate.weights import find_model, read_tokenizer

LOOKUPS = 2000


class SuffixAutomaton:
    """All substrings of a list as a smallest automaton (Blumer et al., TCS 40, 1985): the alternative to n-gram chains.

    The suffix link of the whole list leads to the state of the longest suffix that occurred before. The state knows its
    first occurrence. To know the most recent one, every token would have to update all states along the suffix links.
    """

    def __init__(self):
        self._edges: list[dict[int, int]] = [{}]
        self._link, self._length, self._end = [-1], [0], [0]
        self._last = 0

    def extend(self, tokens: list[int]) -> None:
        """Add the tokens that are new, in amortised constant time each."""
        for position in range(self._length[self._last], len(tokens)):
            self._append(tokens[position], position + 1)

    def find(self, _tokens: list[int], _tail: list[int]) -> Match:
        """The longest suffix that occurred before, and the position behind its first occurrence."""
        state = self._link[self._last]
        return Match(self._length[state], self._end[state]) if state > 0 else Match(0, 0)

    def _append(self, token: int, end: int) -> None:
        new, state = self._state({}, end, end), self._last
        while state != -1 and token not in self._edges[state]:
            self._edges[state][token] = new
            state = self._link[state]
        if state == -1:
            self._link[new] = 0
        else:
            target = self._edges[state][token]
            if (
                self._length[target] != self._length[state] + 1
            ):  # the state stands for longer strings too: split them off
                clone = self._state(dict(self._edges[target]), self._length[state] + 1, self._end[target])
                self._link[clone], self._link[target] = self._link[target], clone
                while state != -1 and self._edges[state].get(token) == target:
                    self._edges[state][token] = clone
                    state = self._link[state]
                target = clone
            self._link[new] = target
        self._last = new

    def _state(self, edges: dict[int, int], length: int, end: int) -> int:
        self._edges.append(edges)
        self._link.append(-1)
        self._length.append(length)
        self._end.append(end)
        return len(self._edges) - 1


def prompt_lookup() -> pd.DataFrame:
    """Both structures on source code: time to grow and to look up at 10,000 and 100,000 tokens, and the hit rate.

    A look-up is timed as in a decode step, in which one token is new. `matches` is the share of positions where the
    last tokens matched; `hits` is the share of matches whose following token was also the next one.
    """
    ids = read_tokenizer(find_model()).encode(source_text("**/*.py"))
    rows = []
    for tokens in (10_000, 100_000):
        if len(ids) < tokens + LOOKUPS:
            raise ValueError(f"the source has {len(ids)} tokens, not {tokens + LOOKUPS}")
        for name, kind in [("n-gram chains", NgramIndex), ("suffix automaton", SuffixAutomaton)]:
            rows.append({"structure": name, "context": tokens, **_measure(kind, ids, tokens)})
    return pd.DataFrame(rows).set_index("structure")


def _measure(kind: Callable, ids: list[int], tokens: int) -> dict[str, float]:
    log, times, hits, matches = ids[:tokens], [], 0, 0
    tracemalloc.start()
    weighed = kind()
    weighed.extend(log)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    start = time.perf_counter()
    index = kind()
    index.extend(log)
    grow_s = time.perf_counter() - start
    for token in ids[tokens : tokens + LOOKUPS]:
        start = time.perf_counter()
        index.extend(log)
        match = index.find(log, log[-LONGEST_MATCH:])
        times.append(time.perf_counter() - start)
        matches += match.length >= 3
        hits += match.length >= 3 and log[match.position] == token
        log.append(token)
    row = {
        "µs a token, growing": 1e6 * grow_s / tokens,
        "bytes a token": size / tokens,
        "median µs a step": 1e6 * float(np.median(times)),
        "slowest of 100, µs": 1e6 * float(np.quantile(times, 0.99)),
        "matches": matches / LOOKUPS,
        "hits": hits / matches,
    }
    if hasattr(index, "truncate"):
        start = time.perf_counter()
        index.truncate(log, tokens)
        row["µs a token, taken back"] = 1e6 * (time.perf_counter() - start) / LOOKUPS
        row["median µs a draft"] = _median_draft_us(ids, tokens)
    return row


def _median_draft_us(ids: list[int], tokens: int) -> float:
    """Microseconds that a decode step takes to propose up to 31 tokens: index, look up, estimate chances."""
    speculator, log, times = Speculator(Speculation(CostTable.default("float32")), Corpus()), ids[:tokens], []
    speculator.propose(log, 0)
    for token in ids[tokens : tokens + LOOKUPS]:
        start = time.perf_counter()
        speculator.propose(log, 31)
        times.append(time.perf_counter() - start)
        log.append(token)
    return 1e6 * float(np.median(times))
