"""minstate for many clients at once: `AsyncEngine` lets the tasks of an event loop share one engine."""

from minstate.serve.async_engine import AsyncEngine
from minstate.serve.async_session import AsyncSession, AsyncTokenStream

__all__ = ["AsyncEngine", "AsyncSession", "AsyncTokenStream"]
