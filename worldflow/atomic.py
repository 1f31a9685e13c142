"""Files that appear whole or not at all.

What is written goes to a temporary name in the same folder and is renamed onto the final one, which file systems do in
one step. A crash, a full disk or an interrupt leaves the old file, or none, never half of the new one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_bytes"]


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
