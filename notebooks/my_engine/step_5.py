# ruff: noqa: D100, F821, PIE790


# ---- Step 5: prompt lookup with verification
def lookup(log, ngram=2, most=8):
    """A draft: what followed the last `ngram` tokens when they last occurred before, `most` tokens at most."""
    ...


def verify(draft, chosen):
    """The part of `chosen` that counts: chosen[i] is the model's choice behind draft[:i], if that much was right."""
    ...


class DraftingSession(SharingSession):
    """A session that forwards a draft behind what is pending. It says the same tokens, in fewer passes."""

    def pending(self):
        """As before, and a draft: shorter than what the reply may still have, since a pass adds a token of its own."""
        ...

    def receive(self, x):
        """Log what counts, up to a token of `stop`. A rejected draft leaves nothing: `cache.length == len(log) - 1`."""
        ...
