"""The foil: an engine that forgets. The same code in every other respect."""

from minstate.engine import Engine
from minstate.session import Session
from minstate.turn import Handle


class NaiveEngine(Engine):
    """Forwards the whole conversation at every turn, as a server does that keeps nothing between requests.

    Inside a turn it decodes with a K/V cache, as every server does. It is spared the templating and tokenising of the
    history that a stateless request would also bring.
    """

    def submit(self, session: Session, messages=None, **options) -> Handle:
        session.require_idle()
        session.sequence.table.truncate(0)
        return super().submit(session, messages, **options)
