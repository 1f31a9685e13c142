"""Captions: kept with episodes, read without frames, added to what is there as a whole or not at all."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from builders import tiny_spec, write_dataset

from worldflow.captions import add_captions
from worldflow.data import Dataset
from worldflow.envs.recorder import Recorder
from worldflow.types import Episode

CAPTIONS = ["a hand opens a door", "une main lève une tasse ☕", "nothing happens"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "some", lengths=(3, 5, 4))


def read(path: Path) -> list[str | None]:
    dataset = Dataset(path)
    return [dataset.caption(number) for number in range(len(dataset))]


def contents(path: Path) -> list[Any]:
    return [[e.frames.tolist(), e.actions.tolist(), e.rewards.tolist(), e.terminated.tolist()] for e in Dataset(path)]


def test_every_reader_sees_them(path: Path) -> None:
    before = contents(path)
    assert read(path) == [None] * 3
    add_captions(path, CAPTIONS)
    assert read(path) == CAPTIONS
    assert [episode.caption for episode in Dataset(path)] == CAPTIONS
    assert contents(path) == before
    found = minari.MinariDataset(path / "data")
    assert [metadata["caption"] for metadata in found.storage.get_episode_metadata(range(3))] == CAPTIONS
    assert len(list(found)) == 3
    assert sorted(file.name for file in (path / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]


def test_an_open_data_set_sees_them_and_other_readers_keep_the_old_file(path: Path) -> None:
    ours, theirs = Dataset(path), Dataset(path)
    assert ours.caption(0) is theirs.caption(0) is None
    add_captions(ours, CAPTIONS)
    assert ours.caption(0) == CAPTIONS[0]
    assert theirs.caption(0) is None
    np.testing.assert_array_equal(theirs[0].frames, ours[0].frames)


def test_none_leaves_an_episode_alone_and_text_replaces(path: Path) -> None:
    add_captions(path, [None, "first", None])
    assert read(path) == [None, "first", None]
    add_captions(path, ["new", "second", None])
    assert read(path) == ["new", "second", None]
    add_captions(path, [None] * 3)
    assert read(path) == ["new", "second", None]


def test_minaris_own_way_is_read(path: Path) -> None:
    minari.MinariDataset(path / "data").storage.update_episode_metadata([{"caption": c} for c in CAPTIONS])
    assert read(path) == CAPTIONS


@pytest.mark.parametrize(
    ("captions", "error", "match"),
    [
        (CAPTIONS[:2], ValueError, "one caption for each of 3 episodes, got 2; None leaves"),
        ([], ValueError, "got 0"),
        (["a", " ", "b"], ValueError, "caption 1 is empty"),
        (["a", 2, "b"], TypeError, "caption 1 must be text or None, got int"),
        ("abc", TypeError, "must be a sequence of texts"),
    ],
)
def test_refuses(path: Path, captions: Sequence[Any], error: type[Exception], match: str) -> None:
    before = (path / "data" / "main_data.hdf5").read_bytes()
    with pytest.raises(error, match=match):
        add_captions(path, captions)
    assert (path / "data" / "main_data.hdf5").read_bytes() == before


def test_what_is_still_recorded_is_refused(tmp_path: Path) -> None:
    spec = tiny_spec()
    recorder = Recorder(tmp_path, observation_space=spec.observation_space, action_space=spec.action_space)
    episode = Episode(
        frames=np.zeros((3, 16, 16, 3), np.uint8),
        actions=np.zeros((2, 2), np.float32),
        rewards=np.zeros(2),
        terminated=np.zeros(2, bool),
        truncated=np.zeros(2, bool),
        caption="a gray wall",
    )
    recorder.add(episode, seed=0)
    assert Dataset(tmp_path).caption(0) == "a gray wall"  # through the links
    with pytest.raises(ValueError, match="still being recorded"):
        add_captions(tmp_path, ["a wall"])
    recorder.finish()
    add_captions(tmp_path, ["a wall"])
    assert read(tmp_path) == ["a wall"]


def test_full_disk_leaves_everything_as_it_was(path: Path) -> None:
    before = (path / "data" / "main_data.hdf5").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (len(before) // 2, len(before) + 100):  # no room for the copy; none for what is added to it
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match=r"cannot write .*main_data.hdf5.*free some space"):
                add_captions(path, [text * 500 for text in CAPTIONS])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (path / "data" / "main_data.hdf5").read_bytes() == before
        assert sorted(file.name for file in (path / "data").iterdir()) == ["main_data.hdf5", "metadata.json"]


class TestReading:
    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            (["a door"] * 4, "a door"),
            (["", "a door", "a door", "a door"], "a door"),
            (["a door", "a cup", "a cup", "a cup"], None),
            ([""] * 4, None),
        ],
    )
    def test_infos_of_minaris_own_recordings(self, path: Path, rows: list[str], expected: str | None) -> None:
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            file.create_dataset("episode_0/infos/caption", data=rows, dtype=h5py.string_dtype())
        dataset = Dataset(path)
        assert dataset.caption(0) == dataset[0].caption == expected
        assert dataset[0].infos["caption"].tolist() == rows
        add_captions(dataset, ["of the whole", None, None])
        assert dataset.caption(0) == "of the whole"

    def test_what_is_no_text_is_no_caption(self, path: Path) -> None:
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            file["episode_0/infos/caption"] = np.full(4, 3.0)
            file["episode_1"].attrs["caption"] = 7
            file["episode_2"].attrs["caption"] = np.bytes_("fixed length")
        assert read(path) == [None, None, "fixed length"]

    def test_numbers_count_from_the_end_and_stop_there(self, path: Path) -> None:
        add_captions(path, CAPTIONS)
        dataset = Dataset(path)
        assert dataset.caption(-1) == CAPTIONS[-1]
        with pytest.raises(IndexError, match="below 3"):
            dataset.caption(3)

    def test_frames_are_not_read(self, path: Path) -> None:
        add_captions(path, CAPTIONS)
        dataset = Dataset(path)
        dataset.close()
        with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
            del file["episode_1/observations"]
        assert dataset.caption(1) == CAPTIONS[1]

    def test_metadata_stays_as_it_was(self, path: Path) -> None:
        before = json.loads((path / "data" / "metadata.json").read_text())
        add_captions(path, CAPTIONS)
        assert json.loads((path / "data" / "metadata.json").read_text()) == before
