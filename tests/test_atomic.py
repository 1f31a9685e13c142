from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from worldflow.atomic import deferring, replacing, write_bytes


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a" / "b" / "file.bin", b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "file", b"old")
    with path.open("rb", buffering=0) as reader:
        write_bytes(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = write_bytes(tmp_path / "file.txt", b"old")
    with pytest.raises(error), replacing(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*below: .*free some space or choose another folder"):
        write_bytes(tmp_path / "file" / "below", b"x")
    with pytest.raises(IsADirectoryError, match="add a file name"):
        write_bytes(tmp_path, b"x")
    with pytest.raises(OSError, match="cannot write"), replacing(tmp_path / "nothing"):
        pass


class Full(io.BytesIO):
    """A disk with room for eight bytes."""

    def write(self, content: Any) -> int:
        if self.tell() + len(content) > 8:
            raise OSError(errno.ENOSPC, "no room")
        return super().write(content)


def test_refused_writes_are_told_at_the_end() -> None:
    disk, done = Full(), []
    with pytest.raises(OSError, match="no room"), deferring(disk) as file:
        for part in (b"1234", b"56789", b"abcd"):
            assert file.write(part) == len(part)
            done.append(file.error is None)
    assert done == [True, False, False]
    assert disk.getvalue() == b"1234"  # nothing more is tried after the first refusal
    with deferring(Full()) as file:
        file.write(b"12345678")
        file.seek(2)
        assert file.read(3) == b"345"


def test_an_error_in_the_block_comes_before_what_was_refused() -> None:
    with pytest.raises(KeyError), deferring(Full()) as file:
        file.write(b"123456789")
        raise KeyError
