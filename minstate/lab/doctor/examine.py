"""Examine a log: what each request had to compute again, why, and what it would have cost elsewhere.

    tokens = old + lost + new
    old    an engine that keeps everything has K/V of these
    lost   the session had computed these, but something in front of them has changed
    new    nobody had them

Counts are exact for the tokenizer and the template that are named, and for an engine whose memory is unlimited. For a
model whose tokenizer is not public they are an estimate.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from minstate.chat.content import common_prefix
from minstate.chat.conversation import Chat
from minstate.errors import MinstateError
from minstate.lab.doctor.causes import changed_part, messages_cause, tools_cause
from minstate.lab.doctor.findings import BLOCKS, Examination, Examined
from minstate.lab.doctor.sessions import Session, Sessions
from minstate.lab.doctor.tokens import Pieces, Prompts, Seen, length, parting, shared, shared_anywhere, shared_end
from minstate.lab.logs.requests import LoggedRequest, Source, read_requests
from minstate.prompt_lookup import NgramIndex
from minstate.weights import find_model, read_eos, read_tokenizer

LEAST_LOST = 16  # tokens; fewer are counted as new
DRAFT = 8  # tokens that prompt lookup guesses at once
INDEXED = 64  # sessions whose n-grams are kept, some 200 bytes a token
OPENINGS = 16  # openings of sessions that a new one is compared with
WHOLE = ("tools_order", "tools_form", "calls")  # causes by which a changed piece holds what it held before


def examine(
    log: Source | Iterable[LoggedRequest],
    tokenizer=None,
    *,
    chat: Chat | None = None,
    strict: bool = False,
    lookup: bool = True,
    limit: int | None = None,
    progress: bool = False,
) -> Examination:
    """Examine a file, a folder, or the records themselves. Nothing leaves this machine.

    tokenizer  a folder, or a tokenizer with a chat template; by default, that of the default model
    chat       in place of a tokenizer
    lookup     whether to count what prompt lookup would have saved
    limit      positions of the model: longer requests are marked

    Raises `TraceError` if the log cannot be read (`strict`: if any record cannot), `UnsupportedModel`, and OSError.
    """
    name = str(tokenizer or "default")
    if chat is None:
        chat, name = _chat(tokenizer)
    result = Examination(tokenizer=name, limit=limit)
    doctor = _Doctor(Prompts(chat), lookup, limit)
    requests = read_requests(log, strict=strict, reading=result.reading)
    for request in tqdm(requests, unit="request", disable=not progress, mininterval=1):
        try:
            result.requests.append(doctor.examine(request))
        except MinstateError as error:
            if strict:
                raise
            result.reading.skip(f"{request.place}: the template cannot write it: {error}")
    result.sessions = doctor.sessions.count
    return result


def _chat(tokenizer) -> tuple[Chat, str]:
    if tokenizer is not None and not isinstance(tokenizer, str) and hasattr(tokenizer, "encode"):
        return Chat(tokenizer), type(tokenizer).__name__
    folder = find_model(tokenizer) if tokenizer else find_model()
    found = read_tokenizer(folder)
    found.model_max_length = 10**9  # a log may have longer prompts than the model takes; nothing is run
    return Chat(found, frozenset(read_eos(folder, found, len(found)))), folder.name


class _Doctor:
    """What an engine would have by now."""

    def __init__(self, prompts: Prompts, lookup: bool, limit: int | None):
        self.prompts, self.lookup, self.limit = prompts, lookup, limit
        self.sessions, self.seen = Sessions(), Seen()
        self.indexed: OrderedDict[int, Session] = OrderedDict()
        self.openings: deque[tuple[str, tuple, Pieces]] = deque(maxlen=OPENINGS)

    def examine(self, request: LoggedRequest) -> Examined:
        text = self.prompts.text(request.messages, request.tools)
        pieces = self.prompts.pieces(text)
        session, fork_of = self.sessions.find(request)
        if session is not None and session.requests and not session.has_reply:
            self._fill_in_reply(session, request)
        tokens, old = length(pieces), min(self.seen.match(pieces), length(pieces) - 1)
        cause, lost, message, words = "", 0, None, ("", "")
        if session is not None and session.requests:
            cause, lost, message, words = self._compare(session, request, pieces, old)
            fork_of = None if cause or self._extends(session, request) else session.number
        if session is None or fork_of is not None:
            if session is None and not cause:
                cause, lost, words = self._compare_opening(request, pieces, old)
                message = None if not cause or cause.startswith("tools") else 0
            session = self.sessions.begin()
        saved, replied = self._remember(session, request, text, pieces)
        return Examined(
            request.place, session.number, fork_of, tokens, old, lost, tokens - old - lost,
            {b: max(1, tokens - old // b * b) for b in BLOCKS}, cause, message, *words, replied, saved,
            request.at_s, request.reported, self.limit is not None and tokens > self.limit, request.model,
        )  # fmt: skip

    @staticmethod
    def _extends(session: Session, request: LoggedRequest) -> bool:
        return len(request.messages) >= len(session.messages) or request.session is not None

    def _fill_in_reply(self, session: Session, request: LoggedRequest) -> None:
        """A log of requests alone shows a reply in the next request."""
        at = len(session.messages)
        if at < len(request.messages) and request.messages[at]["role"] == "assistant":
            reply = request.messages[at]
            session.messages, session.has_reply = [*session.messages, reply], True
            session.pieces = self.prompts.pieces(session.prompt + self.prompts.reply_text(reply, session.prompt))
            self.seen.add(session.pieces)

    def _compare(self, session: Session, request: LoggedRequest, pieces: Pieces, old: int):
        """The cause by which a request parts from its session, and how much is lost by it."""
        at, same = parting(session.pieces, pieces)
        if at >= len(session.pieces) or same >= length(session.pieces) - 1:
            return "", 0, None, ("", "")
        cause, message = self._cause(session, request, same)
        whole = cause in WHOLE or tools_cause(session.tools, request.tools) in WHOLE
        lost = _lost(session.pieces[at:], pieces, old, whole, same_text=cause == "retokenised")
        if lost < LEAST_LOST:
            return "", 0, None, ("", "")
        words = ("", "")
        if message is not None and message < min(len(session.messages), len(request.messages)):
            words = changed_part(session.messages[message]["content"], request.messages[message]["content"])
        return cause, lost, message, tuple(_short(each) for each in words)

    def _cause(self, session: Session, request: LoggedRequest, same: int) -> tuple[str, int | None]:
        tools = tools_cause(session.tools, request.tools)
        cause, message = messages_cause(session.messages, request.messages)
        if tools and cause:  # the first difference counts: undo one, and see whether the prompts part later
            text = self.prompts.text(request.messages, session.tools)
            if parting(session.pieces, self.prompts.pieces(text))[1] <= same:
                return cause, message
        if tools or cause:
            return (tools, None) if tools else (cause, message)
        index = next((i for i, m in enumerate(session.messages) if m["role"] == "assistant"), None)
        text = self.prompts.text(request.messages, request.tools)
        decoded = self.prompts.chat.tokenizer.decode(np.frombuffer(b"".join(session.pieces), "<i4").tolist())
        if text.startswith(decoded):
            return "retokenised", len(session.messages) - 1
        return "template", index

    def _compare_opening(self, request: LoggedRequest, pieces: Pieces, old: int):
        """Whether a new session could have shared its system prompt or its tools with others, but for a detail."""
        system = request.messages[0]["content"] if request.messages[0]["role"] == "system" else ""
        found = ("", 0, ("", ""))
        for content, tools, theirs in self.openings:
            cause = tools_cause(tools, request.tools)
            if not cause and content != system:
                cause, _ = messages_cause(
                    [{"role": "system", "content": content}], [{"role": "system", "content": system}]
                )
            lost = _lost(theirs[parting(theirs, pieces)[0] :], pieces, old, cause in WHOLE) if cause else 0
            variants = len({each for each, _, _ in self.openings} | {system})
            if cause in ("tools", "system") and (cause == "tools" or variants < 3 or 2 * lost < length(pieces[:4])):
                continue
            if lost >= LEAST_LOST and lost > found[1]:
                found = (cause, lost, tuple(_short(each) for each in changed_part(content, system)))
        entry = (system, request.tools, pieces[:4])
        if entry not in self.openings:
            self.openings.append(entry)
        return found

    def _remember(self, session: Session, request: LoggedRequest, text: str, pieces: Pieces) -> tuple[int, int]:
        """The engine has computed request and reply. Returns saved forward passes, and tokens of the reply."""
        begins, log = length(pieces), pieces
        if request.reply is not None:
            if request.reply_ids is not None:
                ids = np.frombuffer(b"".join(pieces), "<i4").tolist() + list(request.reply_ids)
                log = self.prompts.cut(ids)
            else:
                log = self.prompts.pieces(text + self.prompts.reply_text(request.reply, text))
        saved = self._look_up(session, log, begins) if self.lookup and request.reply is not None else 0
        self.seen.add(log)
        session.pieces, session.prompt, session.tools = log, text, request.tools
        self.sessions.update(session, request)
        return saved, max(0, length(log) - begins)

    def _look_up(self, session: Session, log: Pieces, begins: int) -> int:
        """How many forward passes drafts of prompt lookup would have saved in this reply."""
        self.indexed.pop(session.number, None)
        self.indexed[session.number] = session
        if len(self.indexed) > INDEXED:  # what comes back later is indexed anew
            _, oldest = self.indexed.popitem(last=False)
            oldest.tokens, oldest.index = [], NgramIndex()
        now, tokens = np.frombuffer(b"".join(log), "<i4"), session.tokens
        ids, same = now.tolist(), shared(np.array(tokens, "<i4").tobytes(), now.tobytes())
        if same < len(tokens) // 2:
            same, session.index = 0, NgramIndex()  # quicker than to undo most of it
        index, saved, at = session.index, 0, begins
        index.truncate(tokens, same)
        tokens[same:] = ids[same:begins]
        while at < len(ids):
            index.extend(tokens)
            match = index.find(tokens, tokens)
            draft = tokens[match.position : match.position + DRAFT] if match.length else []
            rest = ids[at : at + len(draft)]
            right = min(common_prefix(draft, rest), len(ids) - at - 1)  # one token more comes from the model
            tokens += ids[at : at + right + 1]
            at, saved = at + right + 1, saved + right
        return saved


def _lost(log: Pieces, pieces: Pieces, old: int, whole: bool, same_text: bool = False) -> int:
    """Tokens of a request behind its first `old` ones that the session had, but in another place or behind others."""
    had, start, lost, after = Counter(piece for piece in log if len(piece) >= 16), 0, 0, False
    changed = []
    for piece in pieces:
        size = len(piece) // 4
        beyond = min(size, start + size - old)
        start += size
        if beyond <= 0:
            had[piece] -= had[piece] > 0
            continue
        if had[piece] > 0:
            had[piece] -= 1
            lost, after = lost + beyond, True
        elif size == 1 and after:
            lost += 1  # a control token behind what was lost
        else:
            after = False
            if size >= 4:
                changed.append((piece, beyond))
    left = [piece for piece in log if had[piece] > 0]
    for theirs, (piece, beyond) in zip(left, changed, strict=False):
        common = len(piece) // 4 if same_text else (shared_anywhere if whole else shared_end)(theirs, piece)
        end = min(beyond, common)
        lost += end if end >= 4 else 0
    return lost


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
