"""The foils: engines that remember less. The same code in every other respect."""

from minstate.engine import Engine
from minstate.session import Session
from minstate.turn import Handle


class NaiveEngine(Engine):
    """Forwards the whole conversation at every turn, as a server does that keeps nothing between requests.

    Inside a turn it decodes with a K/V cache, as every server does. It is spared the templating and tokenising of the
    history that a stateless request would also bring.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "prefix_cache": False})

    def submit(self, session: Session, messages=None, **options) -> Handle:
        session.require_idle()
        self.cache.forget(session.sequence, self.cache.tree.private_root())
        return super().submit(session, messages, **options)


class PrefixReuseEngine(Engine):
    """A new request at every turn, as a server with prefix caching sees it: there are no sessions, only the tree.

    Messages are text: before a turn of messages the whole history is written out and tokenised again. Where that gives
    other ids than the model saw, nothing from there on is reused, and marks beyond are stale. A turn of `token_ids`
    resends the ids. K/V is found in the tree from the root on; what no page of the tree holds, such as the end of the
    last answer, is computed again.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "prefix_cache": True})

    def submit(self, session: Session, messages=None, **options) -> Handle:
        session.require_idle()
        self.cache.forget(session.sequence, session.sequence.root)
        if messages is not None:
            log = session.sequence.log
            again = self.tokenizer.encode(self.tokenizer.decode(log), add_special_tokens=False)
            same = next((i for i, (had, has) in enumerate(zip(log, again, strict=False)) if had != has), len(again))
            session.forget_marks(beyond=same)
            log[:] = again
        return super().submit(session, messages, **options)
