"""What the server remembers: after each turn the session in which it ended, to be forked by whatever continues it.

A turn never runs in a remembered session. It runs in a fork, which costs a copy of two lists, so a turn that fails, or
whose client leaves, has changed nothing, and an old response can be continued as cheaply as the newest one.

    resp_1 ──fork, Δ──▶ resp_2 ──fork, Δ──▶ resp_3
                 └──────fork, Δ──▶ resp_4               an older response, continued in another way

Remembered sessions hold no page back: their K/V is evicted like that of any idle session, and computed again when it is
needed. What they cost is a list of token ids each, and the text that the client sent. `most_tokens` bounds this for
each tenant, whose least recently used turns go first: what one tenant sends takes no memory from another.
"""

import json
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minstate.chat.drift import Drift
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.async_session import AsyncSession
from minstate.serve.history import Message, keys_of
from minstate.session import Session

ENTRY = 256  # tokens: what remembering a turn takes beside its log and texts, such as its session and its keys


@dataclass(eq=False)
class Stored:
    """A conversation as it was when a turn ended."""

    id: str  # of the response
    tenant: str
    session: AsyncSession  # idle for ever
    keys: Sequence[bytes]  # of its messages, as the client knows them
    messages: list[Message]
    tools: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]  # for the template
    tokens: int  # of its log
    instructions: str | None = None
    body: dict[str, Any] | None = None  # as the Responses API gives it; None if it can't be retrieved
    items: list[dict[str, Any]] = field(default_factory=list)  # the input, as the Responses API gives it
    used: float = field(default_factory=time.monotonic)
    weight: int = 0  # tokens of its log and, at four characters a token, what is kept beside it


@dataclass(frozen=True)
class Branch:
    """A session for a new turn, and the messages to send to it."""

    session: AsyncSession
    messages: list[Message]
    drift: Drift | None  # if the history does not extend what the model saw


class Conversations:
    """All that is remembered.

    most_tokens  of one tenant, in all: see `Stored.weight`
    seconds      after which something that nobody has used is forgotten
    """

    def __init__(self, engine: AsyncEngine, most_tokens: int, seconds: float):
        self._engine, self._most_tokens, self._seconds = engine, most_tokens, seconds
        self.stored: dict[str, Stored] = {}  # by id
        self._recent: dict[str, OrderedDict[str, Stored]] = {}  # by tenant, then by id, least recently used first
        self._weights: Counter[str] = Counter()  # by tenant
        self._ending: dict[bytes, Stored] = {}  # by the key of the whole conversation
        self._holding: dict[bytes, Stored] = {}  # by the key of any beginning of it
        self._named: dict[tuple[str, str], Stored] = {}  # by tenant, and the client's name for the conversation

    @property
    def tokens(self) -> int:
        """The weight of all that is remembered."""
        return self._weights.total()

    def get(self, tenant: str, id_: str) -> Stored | None:
        """A response of this tenant's, unless it was deleted or forgotten."""
        self._expire()
        found = self.stored.get(id_)
        return found if found and found.tenant == tenant and found.body else None

    async def branch(
        self, tenant: str, messages: list[Message], tools: Sequence[Mapping], options: Mapping, name: str | None
    ) -> Branch:
        """A session for the turn that answers these messages: a fork of what they extend, if anything.

        A history that has drifted from a conversation keeps what the two have in common. Raises `BadMessage`, and what
        `Engine.open` raises.
        """
        self._expire()
        keys = keys_of(tenant, tools, options, messages)
        for at in range(len(messages) - 1, 0, -1):
            parent = self._ending.get(keys[at])
            if parent and all(message["role"] != "assistant" for message in messages[at:]):
                self.use(parent)
                return Branch(await self.fork(parent.session), messages[at:], None)
        parent = self._named.get((tenant, name)) if name else None
        parent = parent or self._closest(keys, messages)
        if parent and parent.options == options:
            session = await self.fork(parent.session)
            drift = await session.sync(messages, tools)
            return Branch(session, [], drift)
        session = await self._engine.open(messages, tools, tenant, template_options=options)
        return Branch(session, [], None)

    async def fork(self, session: AsyncSession) -> AsyncSession:
        """A fork that draws the same noise as its parent: the server gives each request a seed of its own."""

        def forked(one: Session) -> AsyncSession:
            child = one.fork()
            child.lineage = ()
            return AsyncSession(self._engine, child)

        return await session.call(forked)

    def keep(self, stored: Stored, *, name: str | None, extends: bool) -> None:
        """Remember the end of a turn.

        extends  whether a history that repeats the reply is what the model saw
        """
        texts = json.dumps([stored.messages, stored.tools, stored.options, stored.body, stored.items])
        stored.weight = stored.tokens + len(texts) // 4 + ENTRY
        recent = self._recent.setdefault(stored.tenant, OrderedDict())
        self.stored[stored.id] = recent[stored.id] = stored
        self._weights[stored.tenant] += stored.weight
        if extends:
            self._ending[stored.keys[-1]] = stored
        self._holding |= dict.fromkeys(stored.keys[1:], stored)
        if name:
            self._named[stored.tenant, name] = stored
        while self._weights[stored.tenant] > self._most_tokens:
            self.forget(next(iter(recent.values())))

    def forget(self, stored: Stored) -> None:
        """Forget the end of a turn. Its session is closed once no turn needs it."""
        if self.stored.pop(stored.id, None) is None:
            return
        del self._recent[stored.tenant][stored.id]
        self._weights[stored.tenant] -= stored.weight
        for index in (self._ending, self._holding):
            for key in stored.keys:
                if index.get(key) is stored:
                    del index[key]
        for key in [key for key, one in self._named.items() if one is stored]:
            del self._named[key]

    def _closest(self, keys: Sequence[bytes], messages: Sequence[Message]) -> Stored | None:
        """A conversation that begins with the same messages, and more of them than the system's."""
        system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        return next((self._holding[key] for key in reversed(keys[system + 1 :]) if key in self._holding), None)

    def use(self, stored: Stored) -> None:
        """Put off the time at which this turn is forgotten: a request continues it."""
        stored.used = time.monotonic()
        if stored.id in self.stored:
            self._recent[stored.tenant].move_to_end(stored.id)

    def _expire(self) -> None:
        oldest = time.monotonic() - self._seconds
        for recent in self._recent.values():
            while recent and (first := next(iter(recent.values()))).used < oldest:
                self.forget(first)
