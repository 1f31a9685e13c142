"""Entries come back as they were written or not at all, whoever else writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worldflow.cache import DiskCache, user_cache_folder


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache")


@pytest.mark.parametrize("payload", [b"", b"some bytes", bytes(range(256)) * 100])
@pytest.mark.parametrize("key", ["", "a key", "Schlüssel\n\x00/../"])
def test_what_was_written_is_read(cache: DiskCache, key: str, payload: bytes) -> None:
    assert cache.read(key) is None
    assert not cache.folder.exists()  # reading makes nothing
    cache.write(key, b"other")
    cache.write(key, payload)
    assert cache.read(key) == payload
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == [cache.path(key)]
    assert cache.read(key + " ") is None
    cache.write(key + " ", b"another's")
    assert cache.read(key) == payload


def test_a_file_is_the_documented_bytes_at_the_documented_place(cache: DiskCache) -> None:
    cache.write("a key", b"some bytes")
    name = hashlib.blake2b(b"a key", digest_size=16).hexdigest()
    check = hashlib.blake2b(b"some bytes", key=hashlib.blake2b(b"a key").digest(), digest_size=16).digest()
    assert (cache.folder / name[:3] / name[3:]).read_bytes() == check + b"some bytes"


def test_entries_are_spread_over_folders(cache: DiskCache) -> None:
    count = 40_000
    folders = [cache.path(str(i)).parent.name for i in range(count)]
    sizes = [folders.count(name) for name in sorted(set(folders))[:20]]
    # 9.8 entries a folder; more than 40 in any has probability 1e-12 (Poisson), a folder without one 5e-5
    assert len(set(folders)) > 4000
    assert max(sizes) <= 40


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda stored: stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip(0), flip(15), flip(16), flip(25), lambda s: s[:-1], lambda s: s[:16], lambda s: s[:7], lambda s: b"",
     lambda s: s + b"\0", lambda s: bytes(len(s))],
)  # fmt: skip
def test_damage_counts_as_missing_and_is_repaired(cache: DiskCache, damage: Callable[[bytes], bytes]) -> None:
    cache.write("a key", b"some bytes")
    path = cache.path("a key")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read("a key") is None
    cache.write("a key", b"some bytes")
    assert cache.read("a key") == b"some bytes"


def test_a_file_moved_onto_another_key_counts_as_missing(cache: DiskCache) -> None:
    cache.write("a key", b"some bytes")
    other = cache.path("another key")
    other.parent.mkdir(parents=True)
    cache.path("a key").rename(other)
    assert cache.read("another key") is None


def test_what_cannot_be_read_counts_as_missing_and_what_cannot_be_written_is_named(cache: DiskCache) -> None:
    cache.path("a key").mkdir(parents=True)
    assert cache.read("a key") is None
    with pytest.raises(IsADirectoryError):
        cache.write("a key", b"some bytes")
    (cache.folder / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*; free some space or choose another folder"):
        DiskCache(cache.folder / "file").write("a key", b"some bytes")


def test_writers_at_once_do_no_harm(cache: DiskCache) -> None:
    payloads = {f"key {i}": bytes([i]) * 200_000 for i in range(4)}

    def work(number: int) -> None:
        for turn in range(25):
            key = f"key {(turn + number) % 4}"
            cache.write(key, payloads[key])
            assert cache.read(key) == payloads[key]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert {path for path in cache.folder.rglob("*") if path.is_file()} == {cache.path(key) for key in payloads}


def test_the_users_folder_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WORLDFLOW_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache_folder() == tmp_path / ".cache" / "worldflow"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache_folder() == tmp_path / ".cache" / "worldflow"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache_folder() == tmp_path / "xdg" / "worldflow"
    monkeypatch.setenv("WORLDFLOW_CACHE", "~/mine")
    assert user_cache_folder() == tmp_path / "mine"
    assert DiskCache("~/mine").folder == tmp_path / "mine"
    monkeypatch.setenv("WORLDFLOW_CACHE", "")
    assert user_cache_folder() == tmp_path / "xdg" / "worldflow"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WORLDFLOW_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(RuntimeError, match="set WORLDFLOW_CACHE"):
        user_cache_folder()
