"""Files that appear whole or not at all.

What is written goes to a temporary name in the same folder and is renamed onto the final one, which file systems do in
one step. A crash, a full disk or an interrupt leaves the old file, or none, never half of the new one.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["deferring", "replacing", "write_bytes"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, with the same suffix; it becomes `path` if the block ends well.

    Missing parent folders are made. If the block raises, the temporary file is removed and `path` stays as it was.

    Args:
        path: The file to make or replace.

    Yields:
        Where to write.

    Raises:
        IsADirectoryError: If `path` is a folder.
        OSError: If it cannot be written: no room, no permission, or the block wrote nothing.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"expected a file to write, got the folder {target}; add a file name")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            error.errno, f"cannot write {target}: {reason}; free some space or choose another folder"
        ) from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path`, whole or not at all.

    Args:
        path: The file to make or replace; missing parent folders are made.
        data: Its content.

    Returns:
        `path` as a `Path`.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else a crash after the rename may leave an empty file under the final name
    return Path(path)


@contextmanager
def deferring(stream: BinaryIO) -> Iterator[_Deferring]:
    """Give a file over `stream` that takes every write, and raise what was refused at the end of the block.

    HDF5 may end the process over a full disk: with this file it goes on, and what it wrote is given up afterwards.

    Args:
        stream: The file, open for reading and writing without a buffer.

    Yields:
        The file to hand to `h5py.File`. Once its `error` is not None, there is no use in writing more.

    Raises:
        OSError: The first refusal.
    """
    file = _Deferring(stream)
    yield file
    if file.error is not None:
        raise file.error


class _Deferring(io.RawIOBase):
    """A file that remembers the first refused write in `error` instead of failing."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, content: Any) -> int:
        def write_all() -> None:
            rest = memoryview(content)
            while len(rest) > 0:  # a disk that is nearly full takes the first part
                rest = rest[self._stream.write(rest) :]

        self._try(write_all)
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        self._try(lambda: self._stream.truncate(size))
        return self._stream.tell() if size is None else size

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
            except OSError as error:
                self.error = error
