"""All errors that minstate raises on purpose. Each is also the standard exception that a caller would expect.

After any of these errors but `EngineBroken` and `BrokenInvariant`, the log and the marks of the session are as they
were before the call, and `Engine.check()` passes.
"""


class MinstateError(Exception):
    """Base of all errors that minstate raises on purpose."""


class BadMessage(MinstateError, ValueError):
    """A message or token id that cannot be fed to the model."""


class BadValue(MinstateError, ValueError):
    """A limit, a sampling value or a setting outside its range."""


class OutOfPages(MinstateError, MemoryError):
    """The KV pool has too few free pages. The message says how many are needed, how many there are, and what to do.

    needed     pages that the turn, the session or the pool needs
    available  pages that it can have; 0 for a pool that the memory cannot hold
    """

    def __init__(self, message: str = "", *, needed: int = 0, available: int = 0):
        super().__init__(message)
        self.needed, self.available = needed, available


class ContextOverflow(MinstateError, ValueError):
    """The conversation would outgrow the positions that the model was trained for.

    needed  positions, in tokens, of the conversation with the whole turn
    limit   positions that the model has
    """

    def __init__(self, message: str = "", *, needed: int = 0, limit: int = 0):
        super().__init__(message)
        self.needed, self.limit = needed, limit


class SessionBusy(MinstateError, RuntimeError):
    """The session is in the middle of a turn."""


class SessionClosed(MinstateError, RuntimeError):
    """The session was closed; its pages are gone."""


class StaleMark(MinstateError, ValueError):
    """The mark belongs to another session, or `rollback`, `sync` or another history has cut the log before the mark."""


class UnreadableSession(MinstateError, ValueError):
    """A file that holds no session, is damaged, or holds a session of another model."""


class TurnTimeout(MinstateError, TimeoutError):
    """A turn took longer than its time limit. The session is as it was before the turn."""


class NonFiniteLogits(MinstateError, FloatingPointError):
    """The model's logits hold NaN or +infinity, or leave no token to choose. The session is as before the turn.

    A weight is damaged, or a number in the forward pass was too large for the model's dtype.
    """


class EngineMisuse(MinstateError, RuntimeError):
    """An engine was called from a second thread, or from inside one of its own steps."""


class EngineClosed(MinstateError, RuntimeError):
    """An `AsyncEngine` was closed, or its engine has failed. The message says which."""


class EngineBroken(MinstateError, RuntimeError):
    """An exception has left the engine's bookkeeping half changed, and the engine refuses all calls: make a new one."""


class UnsupportedModel(MinstateError, ValueError):
    """The model needs a feature that minstate does not implement. The message names it."""


class UnsupportedSchema(MinstateError, ValueError):
    """A JSON schema asks for something that cannot be enforced while a reply is generated. The message names it."""


class ModelNotFound(MinstateError, FileNotFoundError):
    """There is no model under this name. The message says how to get one."""


class DamagedWeights(MinstateError, ValueError):
    """The weight files are incomplete, unreadable, or do not fit the model's configuration."""


class BrokenInvariant(MinstateError, AssertionError):
    """`Engine.check()` found bookkeeping that contradicts itself: a bug in minstate."""
