"""Pages of K/V as files in a folder, which survive the process: each file is complete and ours, or its page is absent.

A file has the bytes of one page, and behind them an HMAC of the folder's format, of the page's name and of these bytes.
It is written under a temporary name and then moved into place, so a process that is killed leaves no half of a page
under a page's name. What a power failure tears, a bad disk changes or a stranger writes does not fit its HMAC.

    format      the model, the dtype and the layout of all pages, as JSON: another engine's folder is refused
    key         the key of the HMACs, readable by this user alone (see `minstate.signing`)
    *.page      pages, by their names in the prefix tree: digests of the tenant and of all tokens to the page's end
    *.writing   left by a process that was killed; removed when the folder is opened

Two engines may share a folder, because files of one name have the same content; each keeps its own part of it bounded.
"""

import hashlib
import hmac
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from minstate.errors import BadValue
from minstate.signing import key_in

MAC_BYTES, BLOCK = 32, 4096
AHEAD_BYTES = 2**29  # at most, of pages that are read ahead
replace = Path.replace  # names of this module, so that a test can put a function here that fails
read = Path.read_bytes
submit = ThreadPoolExecutor(1, "minstate disk").submit


def file_bytes(page_bytes: int) -> int:
    """What the file of a page takes on a disk, in whole blocks."""
    return -(-(page_bytes + MAC_BYTES) // BLOCK) * BLOCK


class DiskStore:
    """Pages by name, in a folder. Raises OSError, and `BadValue` if the folder's pages are of another format."""

    keeps = True  # a page that is read stays: it is there after a restart

    def __init__(self, folder: str | Path, page_bytes: int, format_: str):
        self._folder, self._page_bytes = Path(folder).expanduser(), page_bytes
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._folder.glob("*.writing"):
            left.unlink(missing_ok=True)
        known = self._folder / "format"
        if not known.exists():
            self._write(known, format_.encode())
        if known.read_bytes() != format_.encode():
            raise BadValue(f"{self._folder} holds K/V of another model, dtype or layout: choose another folder")
        self._format, self._key = format_.encode(), key_in(str(self._folder.resolve()))
        self._ahead: dict[bytes, Future[torch.Tensor | None]] = {}

    def names(self) -> list[bytes]:
        """The pages that are there, those that were used first in front. Files of a wrong size are removed."""
        found = []
        for path in self._folder.glob("*.page"):
            with suppress(OSError, ValueError):  # another engine may have removed it
                status, name = path.stat(), bytes.fromhex(path.stem)
                if status.st_size == self._page_bytes + MAC_BYTES and len(name) == hashlib.sha256().digest_size:
                    found.append((status.st_mtime_ns, name))
                else:
                    path.unlink()
        return [name for _, name in sorted(found)]

    def put(self, name: bytes, page: torch.Tensor) -> bool:
        """Write a page's bytes `[page_bytes]`. Returns whether it is there: a disk may be full, or fail."""
        data = page.cpu().numpy().data
        try:
            self._write(self._path(name), data, self._mac(name, data))
        except OSError:
            return False
        return True

    def read_ahead(self, names: Iterable[bytes]) -> None:
        """Begin to read these pages in a thread, for the next `get`; what was read ahead before them is given up."""
        for waiting in self._ahead.values():
            waiting.cancel()
        most = AHEAD_BYTES // self._page_bytes
        self._ahead = {name: submit(self._read, name) for name in list(names)[:most]}

    def get(self, name: bytes) -> torch.Tensor | None:
        """The bytes `[page_bytes]` of a page; None if its file is gone, damaged, or was written by another user."""
        page = ahead.result() if (ahead := self._ahead.pop(name, None)) else self._read(name)
        with suppress(OSError):
            os.utime(self._path(name))  # the next engine evicts the least recently used first, too
        return page

    def _read(self, name: bytes) -> torch.Tensor | None:
        with suppress(OSError):
            whole = memoryview(bytearray(read(self._path(name))))
            data, mac = whole[: self._page_bytes], whole[self._page_bytes :]
            if hmac.compare_digest(mac, self._mac(name, data)):
                return torch.frombuffer(data, dtype=torch.uint8)
        return None

    def drop(self, name: bytes) -> None:
        """Remove a page."""
        with suppress(OSError):
            self._path(name).unlink()

    def check(self, names: set[bytes]) -> bool:  # noqa: ARG002  others may have changed or removed these files
        """Whether no file is half written."""
        return not any(self._folder.glob(f"*.{os.getpid()}.writing"))

    def _path(self, name: bytes) -> Path:
        return self._folder / f"{name.hex()}.page"

    def _mac(self, name: bytes, data: memoryview) -> bytes:
        mac = hmac.new(self._key, self._format + b"\0" + name, "sha256")
        mac.update(data)
        return mac.digest()

    def _write(self, path: Path, *parts: bytes | memoryview) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
            replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
