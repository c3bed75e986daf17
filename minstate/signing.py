"""Which files this user has written: each carries an HMAC, whose key is in a file that only this user can read.

A checksum finds damage, but whoever changes a file can compute its checksum again. Nobody can compute the HMAC
([RFC 2104](https://www.rfc-editor.org/rfc/rfc2104)) without the key.
"""

import hmac
import os
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

KEY_BYTES = 32


def user_key() -> bytes:
    """This user's key, for files that may be moved to any folder."""
    return key_in("~/.cache/minstate")


@cache
def key_in(folder: str) -> bytes:
    """The 32 bytes in the folder's file `key`, which is made with mode 0600 if it is not there.

    If it cannot be made or read, or others may read it, the key is a random one that lasts as long as this process.
    """
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        path = Path(folder).expanduser() / "key"
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(made, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
        if len(key) == KEY_BYTES and not path.stat().st_mode & 0o077:
            return key
    return secrets.token_bytes(KEY_BYTES)


def sign(key: bytes, text: str) -> str:
    """The HMAC of a text, as hexadecimal digits."""
    return hmac.new(key, text.encode(), "sha256").hexdigest()
