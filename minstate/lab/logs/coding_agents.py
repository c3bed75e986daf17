"""The session files of two coding agents, in which many lines make one conversation.

*Claude Code* writes `~/.claude/projects/<project>/<session>.jsonl`
([where](https://code.claude.com/docs/en/sessions)). Its lines wrap messages in Anthropic's form. A reply takes a line
for each block, all with the same message id. *Codex* writes `~/.codex/sessions/…/rollout-….jsonl`
([source](https://github.com/openai/codex)): its `response_item` lines are items of the Responses API.

Neither promises that its format stays. Both leave out the tools, and Claude Code its system prompt, so the tokens of
these are missing from every count.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from minstate.lab.logs.formats import Parts, seconds

CLAUDE, CODEX = "Claude Code", "Codex"
ENVELOPES = ("session_meta", "response_item", "event_msg", "turn_context", "compacted", "world_state")
BOOKKEEPING = ("summary", "custom-title", "ai-title", "queue-operation", "file-history-snapshot", "last-prompt", "mode",
               "progress", "agent-name", "permission-mode", "attachment", "pr-link")  # fmt: skip


def session_format(value: Any) -> str | None:
    """Whose session file a line belongs to; None for other records."""
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        return None
    if value["type"] in ENVELOPES and "payload" in value:
        return CODEX
    chained = "uuid" in value and "parentUuid" in value and ("sessionId" in value or "isSidechain" in value)
    return CLAUDE if chained or (value["type"] in BOOKKEEPING and "messages" not in value) else None


class CodexSession:
    """The items so far of one rollout."""

    def __init__(self):
        self.items: list[dict] = []
        self.model = ""
        self._asked = False  # whether the request for the items at the end is known already

    def read(self, value: Mapping) -> Iterator[Parts]:
        """Take the next line. Yields a request where a reply begins."""
        payload = value.get("payload")
        if not isinstance(payload, Mapping):
            return
        kind = value["type"]
        if kind == "session_meta" and not self.items:
            given = payload.get("base_instructions") or payload.get("instructions")
            text = given.get("text") if isinstance(given, Mapping) else given
            self.items += [{"role": "system", "content": text}] if text else []
        elif kind == "turn_context":
            self.model = payload.get("model") or self.model
        elif kind == "compacted" and isinstance(payload.get("replacement_history"), list):
            self.items, self._asked = self.items[:1] + list(payload["replacement_history"]), False
        elif kind == "response_item":
            written = payload.get("role") == "assistant" or str(payload.get("type")).endswith(("_call", "reasoning"))
            if written and not self._asked:
                yield Parts(CODEX, list(self.items), at_s=seconds(value.get("timestamp")), model=self.model)
            self._asked = written
            self.items.append(dict(payload))


class ClaudeSession:
    """The messages so far of one session file: of its main thread, and of each sub-agent."""

    def __init__(self):
        self._threads: dict[str, list[dict]] = {}
        self._after: dict[str, int] = {}  # how many messages there were after each line

    def read(self, value: Mapping) -> Iterator[Parts]:
        """Take the next line. Yields a request where a reply begins."""
        message = value.get("message")
        name = str(value.get("agentId") or "side") if value.get("isSidechain") else ""
        thread = self._threads.setdefault(name, [])
        if not isinstance(message, Mapping) or value["type"] not in ("user", "assistant"):
            self._after[str(value.get("uuid"))] = len(thread)
            return
        blocks, parent = message.get("content"), value.get("parentUuid")
        blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else list(blocks or ())
        result = any(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in blocks)
        if value["type"] == "user" and not result:
            # A compacted conversation begins anew; a person may also have gone back to an earlier message.
            del thread[self._after.get(str(parent), len(thread)) if parent else 0 :]
        number = message.get("id")
        if value["type"] == "assistant" and thread and number and thread[-1].get("id") == number:
            thread[-1]["content"] += blocks
        else:
            if value["type"] == "assistant" and thread and thread[-1]["role"] == "user":
                yield Parts(
                    CLAUDE, _copies(thread), at_s=seconds(value.get("timestamp")), model=message.get("model") or ""
                )
            thread.append({"role": value["type"], "content": blocks, "id": number})
        self._after[str(value.get("uuid"))] = len(thread)


def _copies(thread: list[dict]) -> list[dict]:
    return [{**message, "content": list(message["content"])} for message in thread]
