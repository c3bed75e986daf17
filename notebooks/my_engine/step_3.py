# ruff: noqa: D100, F821, PIE790


# ---- Step 3: a session whose turn costs Δ
class Session:
    """A conversation: `log` has all its tokens, input and replies; `cache` has K and V of the first `cache.length`.
    Between two turns `cache.length == len(log) - 1`: the last token was chosen, and not forwarded."""

    def __init__(self, model, cache, stop):
        self.model, self.cache, self.stop, self.log = model, cache, stop, []

    def begin(self, ids, count):
        """A turn begins, with the input `ids`. The reply ends after `count` tokens, or with one of the set `stop`."""
        ...

    @property
    def done(self):
        """Whether the reply is complete."""
        ...

    def pending(self):
        """What the next pass forwards: the tokens of the log without K and V. In a turn's first pass, this is Δ."""
        ...

    def receive(self, x):
        """The pass over `pending()` gave x [T, hidden]: choose the next token."""
        ...

    def send(self, ids, count):
        """A whole turn. Returns the reply."""
        self.begin(ids, count)
        while not self.done:
            self.receive(forward(self.model, self.pending(), self.cache))
        return self.log[self.start :]
