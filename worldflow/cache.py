"""Bytes kept on disk between runs, to be computed again whenever they are not there.

One file an entry, in 4096 folders: `folder/3fa/9c0b...`, named by the hash of its key, so that a million entries make a
few hundred in each. A file is `blake2b(payload, keyed by the entry's key)`, 16 bytes, and then the payload: a file that
was cut short, changed, or renamed onto another key is found out when it is read, and counts as missing.

Entries appear whole or not at all (`worldflow.atomic`), and an entry's payload is a function of its key, so processes
that write the same one at once do no harm. There is no limit to the size: what is no longer wanted may be deleted, as
files or as folders, at any time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from worldflow.atomic import replacing

__all__ = ["DiskCache", "user_cache_folder"]

DIGEST_SIZE = 16
"""Bytes: among a million damaged files the chance that any passes is 3e-33."""


class DiskCache:
    """Entries of bytes below a folder, by key.

    Args:
        folder: Where they lie; made when the first one is written.

    Example:
        >>> cache = DiskCache(folder)
        >>> cache.read("a key") is None
        True
        >>> cache.write("a key", b"some bytes")
        >>> cache.read("a key")
        b'some bytes'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, key: str) -> Path:
        """The file of an entry, whether or not it is there."""
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / name[:3] / name[3:]

    def read(self, key: str) -> bytes | None:
        """What was written under a key.

        Args:
            key: The key, any text.

        Returns:
            The bytes, or None where there are none, they are damaged, or they cannot be read.
        """
        try:
            stored = self.path(key).read_bytes()
        except OSError:  # no such file, most of the time; what is wrong otherwise shows when it is written again
            return None
        payload = stored[DIGEST_SIZE:]
        return payload if stored[:DIGEST_SIZE] == _digest(key, payload) else None

    def write(self, key: str, payload: bytes) -> None:
        """Keep bytes under a key, in place of what was there.

        Nothing is forced onto the disk: an entry lost to a crash of the machine is damaged or missing, and `read` sees
        that.

        Args:
            key: The key.
            payload: The bytes.

        Raises:
            OSError: If they cannot be written: no room, or no permission.
        """
        with replacing(self.path(key)) as temporary:
            temporary.write_bytes(_digest(key, payload) + payload)


def user_cache_folder() -> Path:
    """The folder for all that worldflow keeps for a user between runs.

    Returns:
        `$WORLDFLOW_CACHE` where it is set, else `$XDG_CACHE_HOME/worldflow`, else `~/.cache/worldflow`.

    Raises:
        RuntimeError: If no variable is set and the user has no home folder.
    """
    if chosen := os.environ.get("WORLDFLOW_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the specification has relative ones ignored
        return base / "worldflow"
    try:
        return Path.home() / ".cache" / "worldflow"
    except RuntimeError as error:
        raise RuntimeError("no home folder to keep a cache in; set WORLDFLOW_CACHE to a folder, or give one") from error


def _digest(key: str, payload: bytes) -> bytes:
    name = hashlib.blake2b(key.encode()).digest()
    return hashlib.blake2b(payload, key=name, digest_size=DIGEST_SIZE).digest()
