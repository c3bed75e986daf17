"""What a replica remembers, and what it finds in the store when another replica has remembered it.

A conversation that comes from another replica gets the log of token ids that the model saw there, not a text that is
tokenised again. Its K/V is computed again with the next turn, as after an eviction, unless that replica has ended in
peace: then it has handed over the K/V of its latest conversations.
"""

import asyncio
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from minstate.engine import Engine
from minstate.errors import OutOfPages, UnreadableSession
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.async_session import AsyncSession
from minstate.serve.conversations import Branch, Conversations, Stored
from minstate.serve.history import Message, keys_of
from minstate.serve.ray.turn_store import Record
from minstate.session import Session

NOBODY = "nobody: of this tenant there is no K/V"
HANDED_OVER = 512 * 2**20  # bytes of K/V that a replica leaves behind when it ends


class Store(Protocol):
    """`TurnStore`, as a replica calls it."""

    async def put(self, record: Record) -> None:
        """As `TurnStore.put`."""

    async def find(self, tenant: str, id_: str) -> bytes | None:
        """As `TurnStore.find`."""

    async def find_ending(self, tenant: str, keys: Sequence[bytes]) -> bytes | None:
        """As `TurnStore.find_ending`."""

    async def forget(self, tenant: str, id_: str) -> None:
        """As `TurnStore.forget`."""


@dataclass(frozen=True)
class Kept:
    """What `Conversations.keep` was called with."""

    stored: dict[str, Any]  # the fields of a `Stored`, but for its session
    session: bytes
    name: str | None
    extends: bool


def pack(session: Session, *, kv: bool = False) -> bytes:
    """In the owner thread: a session as bytes. Its log is small beside its K/V, which is left out unless `kv`."""
    engine = session.engine
    if kv:
        return engine.export(session)
    sequence = engine.new_sequence(NOBODY, session.transcript.tools)
    sequence.log += session.sequence.log
    with engine.new_session(NOBODY, sequence, session.transcript, (session.lineage, session.forks)) as bare:
        return engine.export(bare)


def unpack(engine: Engine, data: bytes, tenant: str) -> Session:
    """In the owner thread: the session that `pack` was called with, in another engine. Raises `UnreadableSession`."""
    session = engine.adopt(data, tenant)
    session.lineage = ()  # as `Conversations.fork` makes them
    return session


class SharedConversations(Conversations):
    """`Conversations` that other replicas can take over."""

    def __init__(self, engine: AsyncEngine, most_tokens: int, seconds: float, store: Store):
        super().__init__(engine, most_tokens, seconds)
        self._store, self._publishing = store, asyncio.Lock()
        self._new: list[tuple[Stored, str | None, bool]] = []  # not in the store yet

    async def branch(
        self, tenant: str, messages: list[Message], tools: Sequence[Mapping], options: Mapping, name: str | None
    ) -> Branch:
        """As `Conversations.branch`. A history that no turn of this replica's ends is looked for in the store."""
        keys = keys_of(tenant, tools, options, messages)[1:-1]
        if keys and not any(key in self._ending for key in keys):
            await self._take(tenant, await self._store.find_ending(tenant, keys[::-1]))
        return await super().branch(tenant, messages, tools, options, name)

    async def fetch(self, tenant: str, id_: str) -> None:
        """Take a response over from another replica, unless it is known here, or nowhere."""
        if not self.get(tenant, id_):
            await self._take(tenant, await self._store.find(tenant, id_))

    def keep(self, stored: Stored, *, name: str | None, extends: bool) -> None:
        """As `Conversations.keep`; `publish` tells the store."""
        super().keep(stored, name=name, extends=extends)
        self._new.append((stored, name, extends))

    async def publish(self) -> None:
        """Wait until the store has all that was kept. A client learns only then that its turn is over."""
        async with self._publishing:  # another request may be about to put what this one has kept
            while self._new:
                await self._put(*self._new.pop(0))

    async def hand_over(self) -> None:
        """Put the latest ends of conversations into the store once more, with their K/V: this replica ends."""
        room = HANDED_OVER
        for stored in sorted(self.stored.values(), key=lambda stored: -stored.used):
            newest = self._holding.get(stored.keys[-1]) is stored  # no later turn goes on from it
            if room > 0 and newest:
                room -= await self._put(stored, None, self._ending.get(stored.keys[-1]) is stored, kv=True)

    async def _put(self, stored: Stored, name: str | None, extends: bool, *, kv: bool = False) -> int:
        """Put one end of a turn into the store. Returns its bytes."""
        session = await stored.session.call(partial(pack, kv=kv))
        fields = {key: value for key, value in vars(stored).items() if key not in ("session", "used")}
        data = pickle.dumps(Kept(fields, session, name, extends))
        await self._store.put(Record(stored.tenant, stored.id, stored.keys[-1] if extends else b"", data))
        return len(data)

    async def drop(self, tenant: str, id_: str) -> None:
        """A client has deleted a response: no replica may find it again."""
        await self._store.forget(tenant, id_)

    async def _take(self, tenant: str, data: bytes | None) -> None:
        if data is None:
            return
        kept: Kept = pickle.loads(data)  # the store's process is as trustworthy as this one
        try:
            session = await self._engine.call(
                lambda engine: AsyncSession(self._engine, unpack(engine, kept.session, tenant))
            )
        except (UnreadableSession, OutOfPages) as error:  # the history, if there is one, is computed from its text
            logging.getLogger(__name__).warning("a turn of another replica's cannot be taken over: %s", error)
            return
        if kept.stored["id"] not in self.stored:  # two requests may have asked at the same time
            super().keep(Stored(session=session, **kept.stored), name=kept.name, extends=kept.extends)
