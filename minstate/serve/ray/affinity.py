"""Which conversation a request belongs to, as far as HTTP tells: requests with one key go to one replica.

    x-session-id                     the client's own name for the conversation
    previous_response_id, or a path  the key that the response's id carries
    messages, or input               the history up to the first message of the user's, which stays as a history grows

The key is part of the ids of responses, `resp_KEY…`, so a response is found by its id alone. It tells nothing of API
keys, and gives no access: replicas compare tenants.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

DIGITS = 16  # of a key, hexadecimal
ID = re.compile(rf"resp_([0-9a-f]{{{DIGITS}}})")


def routing_key(path: str, headers: Mapping[str, str], body: bytes) -> str | None:
    """The key of a request; None for one that any replica may answer. Nothing is refused here: replicas do that.

    headers  names in lower case
    """
    if name := headers.get("x-session-id"):
        return _key("name", name)
    if found := ID.search(path):
        return found[1]
    try:
        asked = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    if found := ID.match(str(asked.get("previous_response_id"))):
        return found[1]
    history = asked.get("messages", asked.get("input"))
    return _key("history", asked.get("tools"), asked.get("instructions"), _beginning(history))


def _beginning(history: Any) -> Any:
    """The history up to the first message of the user's."""
    if not isinstance(history, list):
        return history
    users = (i for i, message in enumerate(history) if isinstance(message, dict) and message.get("role") == "user")
    return history[: next(users, len(history)) + 1]


def _key(*parts: Any) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:DIGITS]
