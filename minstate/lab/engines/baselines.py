"""Engines that keep less between two turns, to compare with. In every other respect they run the same code."""

from dataclasses import replace

from minstate.chat.transcript import Continuation, Transcript
from minstate.engine import Engine
from minstate.guard import entry
from minstate.prefix_cache import PrefixCache
from minstate.radix_node import Node
from minstate.sequence import Sequence
from minstate.session import Session


class NaiveEngine(Engine):
    """Forwards the whole conversation at every turn, as a server does that keeps nothing between two requests.

    Within a turn it decodes with a K/V cache, as every server does. It does not render and tokenise the history again,
    which a stateless request would cost as well.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "prefix_cache": False})

    @entry
    def submit(self, session: Session, *args, **options):
        """As `Engine.submit`, after the session has lost its K/V."""
        if session.engine is self:
            session.require_idle()
            drop_kv(self.cache, session.sequence, self.cache.tree.private_root())
        return super().submit(session, *args, **options)


class PrefixReuseEngine(Engine):
    """Takes every turn for a new request, as a server with a prefix cache does: it has no sessions, only the tree.

    A stateless client sends text: a turn of messages renders and tokenises the whole conversation again. Where the new
    ids differ from the log, the log is cut, its K/V is not reused, and later marks become stale. A turn of `token_ids`
    sends the ids of the log again. K/V is looked up in the tree from the root on; tokens that no page of the tree
    holds, such as the end of the last output, are computed again.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "prefix_cache": True})

    @entry
    def submit(self, session: Session, *args, **options):
        """As `Engine.submit`, after the session has lost its own K/V: the tree still has its full pages."""
        if session.engine is self:
            session.require_idle()
            drop_kv(self.cache, session.sequence, session.sequence.root)
        return super().submit(session, *args, **options)

    def read_input(self, transcript: Transcript, log: list[int], messages, ids: list[int] | None) -> Continuation:
        """As `Engine.read_input`, but messages are rendered together with the whole history."""
        if messages is not None:
            transcript = replace(transcript, in_log=0)
        return super().read_input(transcript, log, messages, ids)


def drop_kv(cache: PrefixCache, sequence: Sequence, root: Node) -> None:
    """An idle sequence loses all its K/V, as if by eviction, and continues under `root`."""
    cache.tree.join(root)  # otherwise `release` drops a root that only this sequence uses
    cache.release(sequence)
    cache.enter(sequence, root)
    cache.tree.leave(root)
