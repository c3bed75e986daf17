"""Prompt lookup: guess the next tokens by finding where the last few tokens occurred before.

An agent's reply repeats what its context holds already: names of tools and files, JSON, lines that it quotes. So its
next tokens can be guessed without a second model: the guess is what followed the same tokens last time. The idea is
[prompt lookup decoding](https://github.com/apoorvumang/prompt-lookup-decoding) (Saxena, 2023), in transformers
`prompt_lookup_num_tokens`.
"""

from collections import OrderedDict
from typing import NamedTuple

from minstate.errors import BrokenInvariant

NGRAM = 2  # tokens that must recur for a match
LONGEST_MATCH = 32  # tokens of a match that are compared at most: a longer match makes no better guess
CANDIDATES = 64  # earlier occurrences that are compared at most, the most recent first
END = -1  # ends a document; no token has this id


class Match(NamedTuple):
    """The last `length` tokens occurred before, and `position` is where the text that followed them begins."""

    length: int
    position: int


NO_MATCH = Match(0, 0)


class NgramIndex:
    """Where each n-gram of a list of tokens occurred, in chains from the most recent occurrence to the first.

    These are the hash chains of LZ77 compressors ([RFC 1951](https://www.rfc-editor.org/rfc/rfc1951#section-4)). A new
    token costs one dictionary entry, and truncation undoes exactly that. So the time to grow, truncate or look up does
    not depend on the length of the list. A suffix automaton finds the longest match without a bound, and sooner. But it
    takes several times the time and memory to grow, knows the first occurrence and not the last, and cannot be
    truncated (`python -m minstate.lab.bench prompt_lookup`).

    The index does not hold the list. Its owner passes the list in, and calls `truncate` *before* it removes tokens.
    """

    def __init__(self):
        self._last: dict[tuple[int, ...], int] = {}  # n-gram → the position after its most recent occurrence
        self._before: list[int] = [0] * NGRAM  # by position: the one before it in the same chain, 0 for none

    def extend(self, tokens: list[int]) -> None:
        """Index the n-grams that are new. The very last n-gram is left out, since no token follows it yet."""
        last, before = self._last, self._before
        for position in range(len(before), len(tokens)):
            ngram = tuple(tokens[position - NGRAM : position])
            before.append(last.get(ngram, 0))
            last[ngram] = position

    def truncate(self, tokens: list[int], length: int) -> None:
        """Forget the n-grams that the tokens from `length` on added."""
        for position in range(len(self._before) - 1, max(length, NGRAM) - 1, -1):
            ngram, earlier = tuple(tokens[position - NGRAM : position]), self._before.pop()
            if earlier:
                self._last[ngram] = earlier
            else:
                del self._last[ngram]

    def find(self, tokens: list[int], tail: list[int]) -> Match:
        """Where the end of `tail` occurs in `tokens`: the longest match, and the most recent of equally long matches.

        Compares at most `CANDIDATES` occurrences and `LONGEST_MATCH` tokens of each, whatever the length of `tokens`.
        """
        if len(tail) < NGRAM:
            return NO_MATCH
        limit, best, best_length = min(len(tail), LONGEST_MATCH), NO_MATCH, 0
        wanted, before = tail[-1], self._before
        position = self._last.get(tuple(tail[-NGRAM:]), 0)
        for _ in range(CANDIDATES):
            if not position:
                break
            # To be longer than the best match, this one must agree with the token that the best match lacks, `wanted`.
            # An occurrence at the end of its document guesses nothing.
            if best_length < position and tokens[position - best_length - 1] == wanted and tokens[position] != END:
                length = NGRAM
                while length < min(limit, position) and tokens[position - length - 1] == tail[-length - 1]:
                    length += 1
                if length > best_length:
                    best, best_length = Match(length, position), length
                    if length == limit:
                        break
                    wanted = tail[-length - 1]
            position = before[position]
        return best

    def copy(self) -> "NgramIndex":
        """An index for a copy of the list."""
        other = NgramIndex()
        other._last, other._before = dict(self._last), list(self._before)
        return other

    def check(self, tokens: list[int]) -> None:
        """Raises `BrokenInvariant` unless this is the index of `tokens`, as far as they have been indexed."""
        fresh = NgramIndex()
        fresh.extend(tokens[: len(self._before)])
        if (self._last, self._before) != (fresh._last, fresh._before):
            raise BrokenInvariant("the prompt-lookup index does not fit its list of tokens")


class Corpus:
    """Documents in which a session looks up guesses besides its own log: tool schemas, replies of the tenant's agents.

    A corpus keeps the most recent `limit` tokens at least, and twice as many at most. `END` separates documents.
    """

    def __init__(self, limit: int = 2**14):
        self.limit = limit
        self.tokens: list[int] = []
        self.index = NgramIndex()
        self._added_once: set[tuple[int, ...]] = set()

    def add(self, tokens: list[int]) -> None:
        """Add a document, and drop the oldest tokens if there are too many."""
        self.tokens += [*tokens, END]
        if len(self.tokens) > 2 * self.limit:  # so rarely that the cost per token is constant
            self.tokens = self.tokens[-self.limit :]
            self.index = NgramIndex()
            self._added_once.clear()
        self.index.extend(self.tokens)

    def add_once(self, tokens: list[int]) -> None:
        """Add a document, unless it was added by this method before."""
        if tuple(tokens) not in self._added_once:
            self.add(tokens)
            self._added_once.add(tuple(tokens))

    def read(self, position: int, count: int) -> list[int]:
        """At most `count` tokens from `position` on, and none beyond the end of the document."""
        tokens = self.tokens[position : position + count]
        return tokens[: tokens.index(END)] if END in tokens else tokens


class Corpora:
    """A corpus for each of the `REMEMBERED` tenants that opened a session most recently."""

    REMEMBERED = 64

    def __init__(self):
        self._by_tenant: OrderedDict[str, Corpus] = OrderedDict()  # most recently used last

    def of(self, tenant: str) -> Corpus:
        """The tenant's corpus. It is empty if the tenant is new, or was forgotten."""
        corpus = self._by_tenant[tenant] = self._by_tenant.pop(tenant, None) or Corpus()
        if len(self._by_tenant) > self.REMEMBERED:
            self._by_tenant.popitem(last=False)
        return corpus
