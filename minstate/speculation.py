"""Speculation: several tokens a forward pass, and the same output.

A pass over one token reads all weights to use each once. Checking k guessed tokens beside it reads them once too, so up
to some k it costs little more, and every guess that the model agrees with saves a pass (Leviathan et al., arXiv
2211.17192). Here nobody but the context guesses: prompt lookup, and the grammar where it leaves one choice.

**Why the output stays the same.** A draft is a *point mass*: one guessed token, and no distribution. So no rejection
sampling is needed: at every position the token is chosen from the model's own logits exactly as without a draft, with
the same noise, keyed by (seed, position); the draft is accepted as long as it names the tokens so chosen. The logits
behind an accepted token are those of a pass that had been given that token, since K/V of a prefix depend on nothing
behind it. By induction every token equals the unspeculated one, greedy or sampled. (The rule of the paper above
accepts a guess x with probability min(1, p(x)/q(x)) = p(x), as q is 1 there, and otherwise draws from p without x:
that has the distribution p too. Choosing first and comparing then *is* that rule, with the noise drawn only once.)
What this leaves is rounding: a token's logits may differ in their last digits from those of a pass over it alone. In
float32 that has to meet a near-tie to show; in bfloat16 near-ties are common, and a reply may part from the other.

**How much to draft.** As much as gives the most tokens per cost: `allot`. What a pass costs is in a table, measured
once (`costs.CostTable`); how surely a guess is right is estimated from what became of the guesses so far
(`Acceptance`). A guess that is not worth its price is not forwarded, but still compared with what the model says next.
So the estimate follows the text at no cost, and drafting starts again by itself where it pays.

**What it can lose.** A ledger for each session (`Speculator.can_pay`) allows no draft that could bring the modelled
cost above 1 + `REGRET` times that of no speculation, on any text whatsoever. (What a token saves is known where a
sequence runs alone. In a batch, whose passes go on for the others, it is its share of the pass.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

from minstate.costs import CostTable
from minstate.errors import BadValue, BrokenInvariant
from minstate.prompt_lookup import LONGEST, NO_MATCH, Corpus, NgramIndex

if TYPE_CHECKING:
    from minstate.chat.grammar import Constraint

GRAMMAR, LOG, CORPUS = SOURCES = ("grammar", "log", "corpus")
REGRET = 0.03  # modelled cost that speculation may add at most, as a share of that without


@dataclass(frozen=True)
class Speculation:
    """How an engine speculates.

    costs          what a forward pass costs on this machine
    max_draft      guessed tokens a sequence and pass, at most
    max_sequences  set by hand: draft only while no more sequences than this produce tokens; None leaves it to `costs`
    sources        who may guess: "grammar" (tokens without an alternative), "log" (the session's own), "corpus"
                   (the tenant's tool schemas and the replies of its other sessions)
    """

    costs: CostTable
    max_draft: int = 31
    max_sequences: int | None = None
    sources: tuple[str, ...] = SOURCES

    def __post_init__(self) -> None:
        for name, value in [("max_draft", self.max_draft), ("max_sequences", self.max_sequences)]:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise BadValue(f"{name} must be a whole number from 0 up, not {value!r}")
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
    match: int  # how many tokens before it agreed with what it was read behind; 0 of the grammar's
    chance: float  # that the model says this token, if it says those before it


class Verdict(NamedTuple):
    """One forward pass of a turn, in which it could say something."""

    draft: tuple[Guess, ...]  # the tokens forwarded beside the last one known
    said: tuple[int, ...]  # what the model says: the accepted part of the draft, and a token of its own

    @property
    def accepted(self) -> int:
        """How many tokens of the draft it says."""
        return sum(guess.token_id == token for guess, token in zip(self.draft, self.said, strict=False))


class Acceptance:
    """How often the token behind a match was right, by source and length of the match, lately.

    The mean of a Beta distribution: a prior worth `WEIGHT` observations, and observations that fade by `FADING` each.
    """

    WEIGHT, FADING, SUREST = 4.0, 0.96, 0.99  # nothing but the grammar is certain
    PRIOR = (0.4, 0.6, 0.75, 0.8, 0.85)  # by `band`

    def __init__(self):
        self._seen = {source: [[prior * self.WEIGHT, self.WEIGHT] for prior in self.PRIOR] for source in (LOG, CORPUS)}

    def chances(self, source: str) -> list[float]:
        """For each band of matches, the estimated probability that the model says the token behind such a match."""
        return [min(hits / trials, self.SUREST) for hits, trials in self._seen[source]]

    def observe(self, source: str, match: int, hit: bool) -> None:
        """Such a token was what the model said, or was not."""
        seen = self._seen[source][band(match)]
        seen[:] = seen[0] * self.FADING + hit, seen[1] * self.FADING + 1

    def copy(self) -> "Acceptance":
        other = Acceptance()
        other._seen = {source: [list(seen) for seen in bands] for source, bands in self._seen.items()}
        return other


def band(match: int) -> int:
    """Matches of 2, 3-4, 5-8, 9-16, and of more tokens are told apart."""
    return min((match - 1).bit_length(), len(Acceptance.PRIOR)) - 1


class Speculator:
    """What one session knows for guessing: an index of its log, the tenant's corpus, its acceptance, its ledger."""

    def __init__(self, settings: Speculation, corpus: Corpus):
        self.settings, self.corpus = settings, corpus
        self.index = NgramIndex()
        self.acceptance = Acceptance()
        self.base_ms = 0.0  # modelled cost of its passes as they would have been without drafts
        self.regret_ms = 0.0  # modelled cost of drafts, less that of the passes that they saved

    def propose(
        self, log: list[int], count: int, constraint: "Constraint | None" = None, *, sure: float = 1.0
    ) -> list[Guess]:
        """At most `count` tokens that may come next: what the grammar leaves, else what came after the longest match.

        Where a match ends, at the end of the log or of a document, the next one is looked up behind the draft so far.
        Proposes nothing that `constraint`, which stays as it is, does not allow. `sure` is the chance of what it
        forces: less than 1 where the output is given and need not obey it, or may end before.
        """
        self.index.extend(log)
        walk = constraint.copy() if constraint else None
        forced_too = walk is not None and GRAMMAR in self.settings.sources
        draft: list[Guess] = []
        tail = log[-LONGEST:]
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
            tail = (tail + [guess.token_id for guess in draft[before:]])[-LONGEST:]
        return draft

    def learn(self, proposed: Sequence[Guess], said: Sequence[int]) -> None:
        """Compare what was proposed, forwarded or not, with what the model said: up to where they part."""
        for guess, token in zip(proposed, said, strict=False):
            hit = guess.token_id == token
            if guess.source != GRAMMAR:
                self.acceptance.observe(guess.source, guess.match, hit)
            if not hit:
                break

    def can_pay(self, extra_ms: float) -> bool:
        """Whether the ledger stays within `REGRET` even if nothing of a draft that costs so much is accepted."""
        return self.regret_ms + extra_ms <= REGRET * self.base_ms

    def truncate(self, log: list[int], length: int) -> None:
        """The log is about to lose its tokens from `length` on."""
        self.index.truncate(log, length)

    def fork(self) -> "Speculator":
        """The same for a copy of the log; an empty ledger, so that no allowance is spent twice."""
        other = Speculator(self.settings, self.corpus)
        other.index, other.acceptance = self.index.copy(), self.acceptance.copy()
        return other

    def check(self, log: list[int]) -> None:
        """Raises `BrokenInvariant` if the index is not that of the log, or the ledger is overdrawn."""
        self.index.check(log)
        if self.regret_ms > REGRET * self.base_ms + 1e-6:
            raise BrokenInvariant(f"speculation has lost {self.regret_ms} ms on {self.base_ms} ms of work")

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


class Share(NamedTuple):
    """One sequence's part in a pass."""

    context: int  # tokens that have K/V
    tokens: int  # query tokens without a draft
    producing: bool  # whether it will say something: its log ends with them
    speculator: Speculator
    proposed: Sequence[Guess]


class Allotment(NamedTuple):
    """How much is drafted in a pass, and what it is expected to cost, in ms."""

    counts: list[int]  # for each share, how many of the proposed tokens are forwarded
    prices: list[float]  # for each share, what they add to the pass
    base_ms: float  # of the pass without them
    token_ms: float  # what an accepted token saves


def allot(shares: Sequence[Share], settings: Speculation, room: int) -> Allotment:
    """Which proposed tokens to forward: those that give the most expected tokens per cost, `room` at most.

    A token of a draft is said only if all before it are, so its worth is the product of their chances. Taken in falling
    order of worth, whatever sequence they belong to, the first m are the best m; what remains is to try every m:

        (producing + worth of m tokens) / (cost of the producing tokens alone + what m tokens add to this pass)

    A prefill in the same pass makes tokens dearer, as they share the machine with it, but not more valuable. As more
    sequences produce, the first term grows, and with it the worth that a token needs: concurrency ends drafting.

    The table was measured with one sequence, and a pass is priced as if it were one, with the contexts of all. For many
    long ones that is too dear, so in company it drafts rather too little than too much.
    """
    cost = settings.costs.at(sum(share.context + share.tokens for share in shares))
    total, producing = sum(share.tokens for share in shares), sum(share.producing for share in shares)
    base_ms, alone_ms = cost(total), cost(max(producing, 1))
    nothing = Allotment([0] * len(shares), [0.0] * len(shares), base_ms, alone_ms / max(producing, 1))
    if settings.max_sequences is not None and producing > settings.max_sequences:
        return nothing
    wanted = sorted(
        (-worth, place, owner)
        for owner, share in enumerate(shares)
        for place, worth in enumerate(accumulate((guess.chance for guess in share.proposed), mul))
    )
    best, best_rate = nothing, producing / alone_ms
    counts, prices, sure_ms, stopped = list(nothing.counts), list(nothing.prices), [0.0] * len(shares), set()
    taken, worth, ms = 0, 0.0, base_ms
    for negative, _, owner in wanted:
        if taken == room:
            break
        more_ms = cost(total + taken + 1)
        price = prices[owner] + more_ms - ms
        sure_ms[owner] += nothing.token_ms * (negative == -1)  # what is certain to be saved is not at risk
        if owner in stopped or not shares[owner].speculator.can_pay(price - sure_ms[owner]):
            stopped.add(owner)  # nor may it have any token behind this one
            continue
        counts[owner] += 1
        prices[owner] = price
        taken, worth, ms = taken + 1, worth - negative, more_ms
        rate = (producing + worth) / (alone_ms + ms - base_ms)
        if rate > best_rate:
            best, best_rate = nothing._replace(counts=list(counts), prices=list(prices)), rate
    return best


def settle(allotment: Allotment, shares: Sequence[Share], said: Sequence[int]) -> None:
    """After the pass, in which each share has `said` so many tokens: enter its cost and savings into the ledgers.

    All tokens but one of those said have saved a pass; the one would have been said without a draft.
    """
    total = sum(share.tokens for share in shares)
    for share, price, count in zip(shares, allotment.prices, said, strict=True):
        share.speculator.base_ms += allotment.base_ms * share.tokens / total
        share.speculator.regret_ms += price - max(0, count - 1) * allotment.token_ms
