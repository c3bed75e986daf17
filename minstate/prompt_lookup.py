"""Prompt lookup (Saxena, 2023; in transformers as `prompt_lookup_num_tokens`): what came last time comes again.

A reply of an agent repeats what the context holds already: names of tools and files, JSON, lines that it quotes. So its
next tokens can be guessed without a second model: find where the last few tokens occurred before, and read on there.
"""

from collections import OrderedDict
from typing import NamedTuple

from minstate.errors import BrokenInvariant

NGRAM = 2  # tokens that must recur for a match
LONGEST = 32  # tokens of a match that are compared at most: longer ones are no surer
CANDIDATES = 64  # earlier occurrences that are looked at, most recent first
END = -1  # ends a document; no token has this id


class Match(NamedTuple):
    """The last `length` tokens occurred before, and were followed by what begins at `position`."""

    length: int
    position: int


NO_MATCH = Match(0, 0)


class NgramIndex:
    """Where each n-gram of a list of tokens occurred, in chains from the most recent occurrence to the first.

    The hash chains of LZ77 compressors (RFC 1951, section 4). A new token costs one dictionary entry, and taking it
    back undoes exactly that, so growing, rolling back and looking up never depend on how long the list is. A suffix
    automaton finds the longest match without bound, and sooner; but it grows at several times the time and memory,
    knows the first occurrence and not the last, and can't take tokens back
    (`python -m minstate.lab.bench prompt_lookup`).

    The index does not hold the list: its owner passes it in, and calls `truncate` *before* tokens go.
    """

    def __init__(self):
        self._last: dict[tuple[int, ...], int] = {}  # n-gram -> the position behind its most recent occurrence
        self._before: list[int] = [0] * NGRAM  # at each such position: the one before it in its chain, 0 for none

    def extend(self, tokens: list[int]) -> None:
        """Take up the n-grams that are new. The very last has nothing behind it yet, and is left for later."""
        last, before = self._last, self._before
        for position in range(len(before), len(tokens)):
            ngram = tuple(tokens[position - NGRAM : position])
            before.append(last.get(ngram, 0))
            last[ngram] = position

    def truncate(self, tokens: list[int], length: int) -> None:
        """Forget what the tokens from `length` on have brought in."""
        for position in range(len(self._before) - 1, max(length, NGRAM) - 1, -1):
            ngram, earlier = tuple(tokens[position - NGRAM : position]), self._before.pop()
            if earlier:
                self._last[ngram] = earlier
            else:
                del self._last[ngram]

    def find(self, tokens: list[int], tail: list[int]) -> Match:
        """Where the end of `tail` occurs in `tokens`: the longest such match, the most recent of equally long ones.

        Looks at `CANDIDATES` occurrences and compares `LONGEST` tokens, whatever the length of `tokens`.
        """
        if len(tail) < NGRAM:
            return NO_MATCH
        longest, best, wanted = min(len(tail), LONGEST), NO_MATCH, tail[-1]
        before, beaten = self._before, 0
        position = self._last.get(tuple(tail[-NGRAM:]), 0)
        for _ in range(CANDIDATES):
            if not position:
                break
            # Only if it agrees where the best match so far ends can it be longer. What ends a document leads nowhere.
            if beaten < position and tokens[position - beaten - 1] == wanted and tokens[position] != END:
                length = NGRAM
                while length < min(longest, position) and tokens[position - length - 1] == tail[-length - 1]:
                    length += 1
                if length > beaten:
                    best, beaten = Match(length, position), length
                    if length == longest:
                        break
                    wanted = tail[-length - 1]
            position = before[position]
        return best

    def copy(self) -> "NgramIndex":
        """The same for a copy of the list."""
        other = NgramIndex()
        other._last, other._before = dict(self._last), list(self._before)
        return other

    def check(self, tokens: list[int]) -> None:
        """Raises `BrokenInvariant` unless this is the index of `tokens`, as far as they have been taken up."""
        fresh = NgramIndex()
        fresh.extend(tokens[: len(self._before)])
        if (self._last, self._before) != (fresh._last, fresh._before):
            raise BrokenInvariant("the index for prompt lookup is not that of its list")


class Corpus:
    """What others wrote, to look up beside a session's own log: schemas of tools, replies of a tenant's other agents.

    Keeps the most recent `limit` tokens, or a little more; documents are kept apart by a token that nobody has.
    """

    def __init__(self, limit: int = 2**14):
        self.limit = limit
        self.tokens: list[int] = []
        self.index = NgramIndex()
        self._once: set[tuple[int, ...]] = set()

    def add(self, tokens: list[int]) -> None:
        """Take up one more document."""
        self.tokens += [*tokens, END]
        if len(self.tokens) > 2 * self.limit:  # so seldom that it costs each token a constant
            self.tokens = self.tokens[-self.limit :]
            self.index = NgramIndex()
            self._once.clear()
        self.index.extend(self.tokens)

    def add_once(self, tokens: list[int]) -> None:
        """As `add`, unless that has been done with the same document."""
        if tuple(tokens) not in self._once:
            self.add(tokens)
            self._once.add(tuple(tokens))

    def read(self, position: int, count: int) -> list[int]:
        """At most `count` tokens from `position` on, to the end of the document."""
        tokens = self.tokens[position : position + count]
        return tokens[: tokens.index(END)] if END in tokens else tokens


class Corpora:
    """A corpus for each tenant: of the last `REMEMBERED` that opened a session."""

    REMEMBERED = 64

    def __init__(self):
        self._by_tenant: OrderedDict[str, Corpus] = OrderedDict()  # the last used last

    def of(self, tenant: str) -> Corpus:
        """The tenant's own, which is empty if it is new, or was forgotten."""
        corpus = self._by_tenant[tenant] = self._by_tenant.pop(tenant, None) or Corpus()
        if len(self._by_tenant) > self.REMEMBERED:
            self._by_tenant.popitem(last=False)
        return corpus
