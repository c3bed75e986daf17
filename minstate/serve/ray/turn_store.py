"""Ends of turns, kept outside the replicas: a conversation outlives the replica that it was on.

Each record is a few kilobytes: messages, and the log of token ids as the model saw it. There are no keys and values,
which another replica computes again. The store is one process. If it dies, the records are gone, and replicas go on
with what they remember themselves.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

NAME, NAMESPACE = "minstate turns", "minstate"
MOST_BYTES = 2 * 2**30


class Record(NamedTuple):
    """The end of one turn."""

    tenant: str
    id: str  # of the response
    key: bytes  # of the whole conversation; empty if a history that repeats the reply is not what the model saw
    data: bytes  # what `SharedConversations` makes a `Stored` of


class TurnStore:
    """The records that were used last. A Ray actor: one call after the other."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes, self._bytes = most_bytes, 0
        self._records: OrderedDict[tuple[str, str], Record] = (
            OrderedDict()
        )  # by tenant and id, least recently used first
        self._ending: dict[
            bytes, tuple[str, str]
        ] = {}  # by the key of the whole conversation, which has the tenant in it

    def put(self, record: Record) -> None:
        """Keep a record, in place of an earlier one with this id."""
        self.forget(record.tenant, record.id)
        self._records[record.tenant, record.id] = record
        if record.key:
            self._ending[record.key] = record.tenant, record.id
        self._bytes += len(record.data)
        while self._bytes > self._most_bytes:
            self.forget(*next(iter(self._records)))

    def find(self, tenant: str, id_: str) -> bytes | None:
        """A tenant's record by its response's id."""
        found = self._records.get((tenant, id_))
        if found:
            self._records.move_to_end((tenant, id_))
        return found.data if found else None

    def find_ending(self, tenant: str, keys: Sequence[bytes]) -> bytes | None:
        """A tenant's record by the first of these keys that ends one."""
        place = next((self._ending[key] for key in keys if key in self._ending), None)
        return self.find(*place) if place and place[0] == tenant else None

    def forget(self, tenant: str, id_: str) -> None:
        """Drop a record, if it is there."""
        found = self._records.pop((tenant, id_), None)
        if found:
            self._bytes -= len(found.data)
            if self._ending.get(found.key) == (tenant, id_):
                del self._ending[found.key]
