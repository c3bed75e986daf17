"""What the page at `/` shows: the latest turns of each conversation, and where each of their tokens came from.

    prompt   reused       had K/V, in this conversation or in the one that it goes on from
             shared       new here, and found in the prefix cache
             recomputed   had K/V once; eviction took it
             new          forwarded for the first time
    reply    forced       the grammar left no alternative
             accepted     drafted from earlier text, and chosen by the model
             sampled      chosen without a draft

These kinds are disjoint, so a turn's counts add up to its prompt and its reply. Only so much is kept that an answer has
a bounded size: `CONVERSATIONS` of a tenant's, `TURNS` of each, and some text of the last reply alone. A tenant is shown
its own conversations; without a key one sees totals, which hold no text.
"""

from bisect import bisect
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any

from minstate.engine import Engine
from minstate.request import Request
from minstate.serve.async_engine import AsyncEngine
from minstate.serve.async_session import AsyncTokenStream
from minstate.serve.history import Message

PROMPT, REPLY = ("reused", "shared", "recomputed", "new"), ("forced", "accepted", "sampled")
CONVERSATIONS, TURNS = 16, 16
TEXT = 600  # characters of a reply
PLACES = 4096  # ends of turns, by which a later one finds its conversation


@dataclass(eq=False)
class Conversation:
    """Turns that go on from each other."""

    number: int
    title: str
    origin: str = ""  # the turn of another conversation that it goes on from
    turns: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=TURNS))
    count: int = 0  # of all turns, those no longer kept included
    text: list[tuple[str, str]] = field(default_factory=list)  # of the last reply, by kind


def kinds_of(request: Request) -> list[str]:
    """The kind of each generated token."""
    kinds = []
    for verdict in request.verdicts:
        kinds += ["accepted"] * verdict.accepted + ["sampled"] * (len(verdict.sampled) - verdict.accepted)
    for place in request.forced[: bisect(request.forced, len(kinds) - 1)]:
        kinds[place] = "forced"
    return kinds


def token_counts(request: Request) -> dict[str, int]:
    """A turn's tokens by kind, as far as it has come. Empty while it waits for its first forward pass."""
    if not request.admitted:
        return {}
    context, reused = max(0, request.log_before - 1), request.reused
    shared = max(0, reused - context)
    prompt = min(reused, context), shared, max(0, context - reused), request.prompt_length - context - shared
    reply = Counter(kinds_of(request))
    return dict(zip(PROMPT, prompt, strict=True)) | {kind: reply[kind] for kind in REPLY}


def pieces_of(request: Request) -> list[tuple[str, str]]:
    """The end of the reply's text, in pieces of one kind: (kind, text)."""
    texts = [token.text for token in request.tokens]
    tokens = list(zip(kinds_of(request), texts, strict=False))
    runs = [(kind, "".join(text for _, text in run)) for kind, run in groupby(tokens[-TEXT:], lambda token: token[0])]
    room, kept = TEXT, []
    for kind, text in reversed(runs):
        if room > 0 and text:
            kept.append((kind, text[-room:]))
            room -= len(text)
    return kept[::-1]


@dataclass(eq=False)
class Shown:
    """The turns of one request, from their beginning on."""

    conversation: Conversation
    tenant: str
    input: str
    streams: Sequence[AsyncTokenStream]


class Activity:
    """The latest turns. Of the event loop alone."""

    def __init__(self) -> None:
        self.totals = dict.fromkeys((*PROMPT, *REPLY), 0)  # of all tenants, since the server began
        self.left = 0  # turns that ended without a whole reply
        self._numbers = count(1)
        self._kept: dict[str, OrderedDict[int, Conversation]] = {}  # by tenant, and number; the latest last
        self._places: OrderedDict[str, tuple[Conversation, int]] = OrderedDict()  # by the id of a turn's end
        self._under_way: set[Shown] = set()

    def begin(
        self, tenant: str, messages: Sequence[Message], parent: str | None, streams: Sequence[AsyncTokenStream]
    ) -> Shown:
        """A request's turns are under way.

        parent  id of the turn's end that they go on from, if any
        """
        conversation, place = self._places.get(parent or "", (None, 0))
        if conversation is None or place != conversation.count:
            origin = f"goes on from turn {place} of conversation {conversation.number}" if conversation else ""
            first = next((message for message in messages if message["role"] != "system"), messages[0])
            conversation = Conversation(next(self._numbers), excerpt(first), origin)
        kept = self._kept.setdefault(tenant, OrderedDict())
        kept[conversation.number] = conversation
        kept.move_to_end(conversation.number)
        while len(kept) > CONVERSATIONS:
            kept.popitem(last=False)
        shown = Shown(conversation, tenant, excerpt(messages[-1]), streams)
        self._under_way.add(shown)
        return shown

    def end(self, shown: Shown, stream: AsyncTokenStream, id_: str, reason: str, drift: Any) -> None:
        """One of the turns is over, for this reason. `id_` is what it is remembered by."""
        conversation, request = shown.conversation, stream.request
        assert request  # it has ended
        counts = token_counts(request)
        for kind, tokens in counts.items():
            self.totals[kind] += tokens
        conversation.count += 1
        turn = {"turn": conversation.count, "input": shown.input, "tokens": counts, "state": reason, "drift": drift}
        conversation.turns.append(turn)
        conversation.text = pieces_of(request)
        self._places[id_] = conversation, conversation.count
        if len(self._places) > PLACES:
            self._places.popitem(last=False)

    def forget(self, tenant: str, id_: str) -> None:
        """A client has deleted the end of a turn: its conversation is not shown until it goes on."""
        conversation, _ = self._places.pop(id_, (None, 0))
        if conversation:
            self._kept[tenant].pop(conversation.number, None)

    def leave(self, shown: Shown) -> None:
        """The request is over, however it has ended."""
        self._under_way.discard(shown)
        self.left += sum(stream.turn is None for stream in shown.streams)

    async def snapshot(self, engine: AsyncEngine, tenant: str | None) -> dict[str, Any]:
        """The pool, the totals, and a tenant's conversations. Without a tenant there are no conversations."""
        under_way = [shown for shown in self._under_way if shown.tenant == tenant]
        streams = {shown: [each for each in shown.streams if not each.turn] for shown in under_way}

        def look(engine: Engine) -> tuple[dict[str, int], list[tuple[Conversation, dict]]]:
            requests = [(shown, stream.request) for shown, mine in streams.items() for stream in mine]
            live = [(shown.conversation, live_turn(shown, request)) for shown, request in requests if request]
            return engine_counts(engine), live

        counts, live = await engine.call(look)
        conversations = [
            {
                "number": one.number, "title": one.title, "origin": one.origin, "count": one.count,
                "turns": list(one.turns), "text": one.text,
                "live": [turn for where, turn in live if where is one][:TURNS],
            }
            for one in reversed(self._kept.get(tenant, {}).values() if tenant is not None else [])
        ]  # fmt: skip
        return {"tenant": tenant, **counts, "totals": self.totals, "left": self.left, "conversations": conversations}


def engine_counts(engine: Engine) -> dict[str, Any]:
    """In the owner thread: the pool's pages by what holds them, and how many turns run and wait."""
    allocator, scheduler, available = engine.pool.allocator, engine.scheduler, engine.cache.num_available
    pool = {"pages": allocator.num_pages, "page_size": engine.pool.page_size, "free": allocator.num_free}
    pool |= {"idle": available - allocator.num_free, "in use": allocator.num_pages - available}
    return {
        "pool": pool,
        "running": len(scheduler.running),
        "waiting": len(scheduler.requests) - len(scheduler.running),
    }


def live_turn(shown: Shown, request: Request) -> dict[str, Any]:
    """In the owner thread: how far a turn has come."""
    state = "decoding" if request.generated else f"{request.remaining:,} tokens to prefill"
    counts = token_counts(request)
    return {"input": shown.input, "tokens": counts, "state": state if counts else "waiting", "text": pieces_of(request)}


def excerpt(message: Message, most: int = 80) -> str:
    """Who says it, and how it begins."""
    text = " ".join(str(message.get("content") or "")[: 4 * most].split())
    return f"{message['role']}: {text if len(text) <= most else text[: most - 1] + '…'}"
