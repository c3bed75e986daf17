"""The tokens of a turn that is under way, one at a time."""

from collections.abc import Iterator
from typing import Self

from minstate.request import Request
from minstate.turn import StreamedToken, Turn


class TokenStream:
    """The tokens of one turn, as they come; `turn` holds the whole answer once the last one is out."""

    def __init__(self, engine, request: Request):
        self.engine, self.request = engine, request
        self._delivered = 0

    @property
    def turn(self) -> Turn | None:
        """The whole answer; None until the turn is done."""
        return self.request.turn

    def __iter__(self) -> Iterator[StreamedToken]:
        return self

    def __next__(self) -> StreamedToken:
        while self._delivered == len(self.request.tokens):
            if self.request.error:
                raise self.request.error
            if self.request.done:
                raise StopIteration
            self.engine.step()
        self._delivered += 1
        return self.request.tokens[self._delivered - 1]

    def close(self) -> None:
        """Abort the turn unless it is done."""
        self.request.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self.engine.guard.abandon(self.request)
