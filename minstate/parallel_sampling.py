"""Several answers to one prompt: each by a fork of the session, all in one batch, on K/V that is computed once.

The scheduler does the sharing. Of several sequences that need the same page next, only one computes it; the others wait
and then borrow it from the tree. What they compute themselves is the end of the prompt, which fills no page.
"""

from collections.abc import Iterable
from contextlib import ExitStack

from minstate.arguments import token_ids_of, whole_number
from minstate.session import Session
from minstate.turn import Turn, takes_turn_options


@takes_turn_options
def choices(
    session: Session, messages=None, *, n: int = 2, token_ids: Iterable[int] | None = None, **options
) -> list[tuple[Session, Turn]]:
    """`n` answers to `messages`, each with the session that goes on from it; `session` stays as it is, and idle.

    Takes what `Session.send` takes. Each answer is that of a fork, so where `sampling` draws noise they differ; greedy
    answers are all the same. Close the sessions that you don't need. Raises what `Engine.submit`, `Session.fork` and
    `Session.send` raise; then no fork is left, and the next forks draw the noise that these would have drawn.
    """
    ids = None if token_ids is None else token_ids_of("token_ids", token_ids)
    with ExitStack() as undo:
        undo.callback(setattr, session, "forks", session.forks)
        forks = [undo.enter_context(session.fork()) for _ in range(whole_number("n", n, 1))]
        streams = [fork.stream(messages, token_ids=ids, **options) for fork in forks]
        for stream in streams:  # the first one steps the engine, and so moves all of them on
            list(stream)
        undo.pop_all()
    return [(fork, stream.turn) for fork, stream in zip(forks, streams, strict=True)]
