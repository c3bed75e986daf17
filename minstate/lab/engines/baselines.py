"""The foils: engines that remember less. The same code in every other respect."""

from minstate.chat.template import Continuation, Transcript
from minstate.engine import Engine
from minstate.sequence import Sequence


class NaiveEngine(Engine):
    """Forwards the whole conversation at every turn, as a server does that keeps nothing between requests.

    Inside a turn it decodes with a K/V cache, as every server does. It is spared the templating and tokenising of the
    history that a stateless request would also bring.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "prefix_cache": False})

    def _before_turn(self, sequence: Sequence) -> None:
        self.cache.forget(sequence, self.cache.tree.private_root())


class PrefixReuseEngine(Engine):
    """A new request at every turn, as a server with prefix caching sees it: there are no sessions, only the tree.

    Messages are text: a turn of messages renders and tokenises the whole conversation again. Where that gives other ids
    than the model saw, nothing from there on is reused, and marks beyond are stale. A turn of `token_ids` resends the
    ids. K/V is found in the tree from the root on; what no page of the tree holds, such as the end of the last answer,
    is computed again.
    """

    def __init__(self, *args, **settings):
        super().__init__(*args, **{**settings, "prefix_cache": True})

    def read_input(self, said: Transcript, log: list[int], messages, ids: list[int] | None) -> Continuation:
        return super().read_input(said if messages is None else said.not_in_log(), log, messages, ids)

    def _before_turn(self, sequence: Sequence) -> None:
        self.cache.forget(sequence, sequence.root)
