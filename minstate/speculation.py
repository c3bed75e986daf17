"""Speculation: several tokens a forward pass, and the same output.

A forward pass over one token reads all weights, to use each once. Checking k guessed tokens beside it reads them once
as well. So up to some k it costs little more, and every guess that the model agrees with saves a forward pass
([speculative sampling](https://arxiv.org/abs/2211.17192), see also arXiv 2302.01318). There is no draft model here: the
guesses come from prompt lookup, and from the grammar where it leaves only one choice. How many of them are forwarded is
decided in `draft_budget`.

**Why the output stays the same.** A draft is a *point mass*: one guessed token, and no distribution. So no rejection
sampling is needed. At every position the token is chosen from the model's own logits exactly as without a draft, with
the same noise, keyed by (seed, position); the draft is accepted as long as it names the tokens so chosen. The logits
behind an accepted token are those of a forward pass that had been given that token, since K/V of a prefix depend on
nothing behind it. By induction, every token equals the unspeculated one, greedy or sampled.

(The rule of the paper accepts a guess x with probability min(1, p(x)/q(x)) = p(x), as q is 1 there, and otherwise draws
from p without x. The result has the distribution p, too. Choosing first and comparing then *is* that rule, with the
noise drawn only once.)

What remains is rounding: a token's logits may differ in their last digits from those of a forward pass over it alone.
In float32 this shows only at a near-tie; in bfloat16 near-ties are common, and a reply may differ from the
unspeculated one.
"""

from collections import abc
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from minstate.arguments import whole_number
from minstate.draft_budget import CostTable, Ledger
from minstate.errors import BadValue
from minstate.prompt_lookup import LONGEST_MATCH, NO_MATCH, Corpus, NgramIndex

if TYPE_CHECKING:
    from minstate.chat.grammar import Constraint

GRAMMAR, LOG, CORPUS = SOURCES = ("grammar", "log", "corpus")


@dataclass(frozen=True)
class Speculation:
    """How an engine speculates.

    costs          what a forward pass costs on this machine
    max_draft      guessed tokens a sequence and forward pass, at most
    max_sequences  draft only while no more sequences than this produce tokens; None leaves the decision to `costs`
    sources        where guesses come from: "grammar" (tokens without an alternative), "log" (the session's own),
                   "corpus" (the tenant's tool schemas and the replies of its other sessions)
    """

    costs: CostTable
    max_draft: int = 31
    max_sequences: int | None = None
    sources: tuple[str, ...] = SOURCES

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_draft", whole_number("max_draft", self.max_draft))
        if self.max_sequences is not None:
            object.__setattr__(self, "max_sequences", whole_number("max_sequences", self.max_sequences))
        if not isinstance(self.sources, tuple) or not set(self.sources) <= set(SOURCES):
            raise BadValue(f"sources must be a tuple of some of {', '.join(SOURCES)}, not {self.sources!r}")

    @classmethod
    def of(cls, wanted: "bool | Speculation", costs: str) -> "Speculation | None":
        """What `Engine(speculation=...)` asks for, by default with the table named `costs`. Raises `BadValue`."""
        if isinstance(wanted, cls):
            return wanted
        if not isinstance(wanted, bool):
            raise BadValue(f"speculation must be True, False or a Speculation, not {wanted!r}")
        return cls(CostTable.default(costs)) if wanted else None


class Guess(NamedTuple):
    """One token of a draft."""

    token_id: int
    source: str  # one of SOURCES
    match: int  # length of the match that it was read behind, in tokens; 0 if the grammar guessed
    chance: float  # that the model chooses this token, if it chooses those before it


class Verdict(NamedTuple):
    """What became of a draft in one forward pass of a turn."""

    draft: tuple[Guess, ...]  # the guessed tokens that were forwarded
    sampled: tuple[int, ...]  # the tokens that the model chose: the accepted part of the draft, and one more

    @property
    def accepted(self) -> int:
        """How many tokens of the draft the model chose."""
        return sum(guess.token_id == token for guess, token in zip(self.draft, self.sampled, strict=False))


class Acceptance:
    """How often the token behind a match was right lately, by the source and the length of the match.

    The mean of a Beta distribution: a prior worth `WEIGHT` observations, and observations that fade by `FADING` each.
    """

    WEIGHT, FADING, SUREST = 4.0, 0.96, 0.99  # nothing but the grammar is certain
    PRIOR = (0.4, 0.6, 0.75, 0.8, 0.85)  # by `band`

    def __init__(self):
        self._seen = {source: [[prior * self.WEIGHT, self.WEIGHT] for prior in self.PRIOR] for source in (LOG, CORPUS)}

    def chances(self, source: str) -> list[float]:
        """For each band of matches, the estimated probability that the model chooses the token behind such a match."""
        return [min(hits / trials, self.SUREST) for hits, trials in self._seen[source]]

    def observe(self, source: str, match: int, hit: bool) -> None:
        """The model chose such a token, or did not."""
        seen = self._seen[source][band(match)]
        seen[:] = seen[0] * self.FADING + (1 if hit else 0), seen[1] * self.FADING + 1

    def copy(self) -> "Acceptance":
        """The same, to go on by itself."""
        other = Acceptance()
        other._seen = {source: [list(seen) for seen in bands] for source, bands in self._seen.items()}
        return other


def band(match: int) -> int:
    """The index of a match's length among the five that are told apart: 2, 3-4, 5-8, 9-16, and more tokens."""
    return min((match - 1).bit_length(), len(Acceptance.PRIOR)) - 1


class Speculator:
    """What one session guesses with: an index of its log, the tenant's corpus, its acceptance rates, its ledger."""

    def __init__(self, settings: Speculation, corpus: Corpus):
        self.settings, self.corpus = settings, corpus
        self.index = NgramIndex()
        self.acceptance = Acceptance()
        self.ledger = Ledger()

    def propose(
        self, log: list[int], count: int, constraint: "Constraint | None" = None, *, sure: float = 1.0
    ) -> list[Guess]:
        """At most `count` tokens that may come next: those that the grammar forces, else those after the longest match.

        Where a match ends, at the end of the log or of a document, the next one is looked up behind the draft so far.
        Proposes nothing that `constraint`, which stays as it is, does not allow. `sure` is the chance of a forced
        token: less than 1 where the output is replayed and need not obey the grammar, or may end before.
        """
        try:
            self.index.extend(log)
        except BaseException:
            self.index = NgramIndex()  # half an entry may be missing: the next draft makes it anew
            raise
        walk = constraint.copy() if constraint else None
        forced_too = walk is not None and GRAMMAR in self.settings.sources
        draft: list[Guess] = []
        tail = log[-LONGEST_MATCH:]
        while len(draft) < count:
            if forced_too and walk.forced:
                guesses = [Guess(token, GRAMMAR, 0, sure) for token in walk.forced]
            else:
                guesses = self._look_up(log, tail, count - len(draft))
            before, guesses = len(draft), guesses[: count - len(draft)]
            if walk is None:
                draft += guesses
            else:
                for guess in guesses:
                    if walk.ended or not walk.allows(guess.token_id):
                        return draft
                    walk.advance(guess.token_id)
                    draft.append(guess)
                    if guess.source != GRAMMAR and forced_too and walk.forced:
                        break
            if len(draft) == before:
                break
            tail = (tail + [guess.token_id for guess in draft[before:]])[-LONGEST_MATCH:]
        return draft

    def learn(self, proposed: abc.Sequence[Guess], sampled: abc.Sequence[int]) -> None:
        """Compare proposed tokens, forwarded or not, with those that the model chose, up to the first difference."""
        for guess, token in zip(proposed, sampled, strict=False):
            hit = guess.token_id == token
            if guess.source != GRAMMAR:
                self.acceptance.observe(guess.source, guess.match, hit)
            if not hit:
                break

    def truncate(self, log: list[int], length: int) -> None:
        """The log is about to lose its tokens from `length` on."""
        self.index.truncate(log, length)

    def fork(self) -> "Speculator":
        """The same for a copy of the log. Its ledger is empty, so that no allowance is spent twice."""
        other = Speculator(self.settings, self.corpus)
        other.index, other.acceptance = self.index.copy(), self.acceptance.copy()
        return other

    def check(self, log: list[int]) -> None:
        """Raises `BrokenInvariant` if the index is not that of the log, or the ledger is overdrawn."""
        self.index.check(log)
        self.ledger.check()

    def _look_up(self, log: list[int], tail: list[int], count: int) -> list[Guess]:
        own = self.index.find(log, tail) if LOG in self.settings.sources else NO_MATCH
        other = self.corpus.index.find(self.corpus.tokens, tail) if CORPUS in self.settings.sources else NO_MATCH
        if own.length >= other.length:
            source, length, tokens = LOG, own.length, log[own.position : own.position + count] if own.length else []
        else:
            source, length, tokens = CORPUS, other.length, self.corpus.read(other.position, count)
        chances, matches = self.acceptance.chances(source), range(length, length + len(tokens))
        sure = [chances[band(match)] for match in matches]
        return list(map(Guess._make, zip(tokens, repeat(source), matches, sure, strict=False)))
