"""What can go wrong, each with the standard exception a caller would expect to catch.

After any of these the engine is consistent: log and marks of the session are as they were before the call, and
`Engine.check()` passes.
"""


class MinstateError(Exception):
    """Base of all errors that minstate raises on purpose."""


class BadMessage(MinstateError, ValueError):
    """A message or token id that cannot be fed to the model."""


class BadValue(MinstateError, ValueError):
    """A limit, a sampling value or a setting outside its range."""


class OutOfPages(MinstateError, MemoryError):
    """The KV pool has too few free pages: says how many are needed, how many there are, and how to get more."""


class ContextOverflow(MinstateError, ValueError):
    """The conversation would outgrow the positions that the model was trained for."""


class SessionBusy(MinstateError, RuntimeError):
    """The session is in the middle of a turn."""


class SessionClosed(MinstateError, RuntimeError):
    """The session was closed; its pages are gone."""


class StaleMark(MinstateError, ValueError):
    """The mark belongs to another session, or the log was cut before it: by `rollback`, `sync`, or another history."""


class UnreadableSession(MinstateError, ValueError):
    """A file that holds no session, a damaged one, or one of another model."""


class TurnTimeout(MinstateError, TimeoutError):
    """A turn took longer than it was given; its session is as before it."""


class EngineMisuse(MinstateError, RuntimeError):
    """An engine was entered from a second thread, or from inside one of its own steps."""


class UnsupportedModel(MinstateError, ValueError):
    """The model needs something that minstate does not implement; says what."""


class UnsupportedSchema(MinstateError, ValueError):
    """A JSON schema asks for something that cannot be enforced while a reply is written; says what."""


class ModelNotFound(MinstateError, FileNotFoundError):
    """No model at the place named; says where one can be had."""


class DamagedWeights(MinstateError, ValueError):
    """The weight files are incomplete, unreadable, or do not fit the model's configuration."""


class BrokenInvariant(MinstateError, AssertionError):
    """`Engine.check()` found bookkeeping that contradicts itself: a bug in minstate."""
