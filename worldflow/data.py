"""Recorded episodes in, training windows out, straight from Minari's files.

A Minari data set is a folder `DIR/data` with `metadata.json` and `main_data.hdf5`, which holds one group
`episode_0, episode_1, ...` per episode. They are read here with h5py alone, a window at a time: frames are
never loaded as a whole, and a training node needs neither Minari nor a simulator. Time is aligned as in
`worldflow.types`: frames `start .. start + length` and what happened between them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
import torch

from worldflow.episodes import CAPTION, as_episode, checked_episode, shared_caption
from worldflow.frames import as_tensors, blank_frames, mapped
from worldflow.index import SplitRule, sample_index, window_index
from worldflow.spaces import check_compatible, data_spec
from worldflow.stored_frames import DAMAGED, check_stored, read_frames, stored_parts
from worldflow.types import Clip, DataSpec, Episode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64, Shaped, UInt8

__all__ = [
    "Dataset",
    "Split",
    "SplitRule",
    "as_episode",
    "check_compatible",
    "gather",
    "read_episodes",
    "sample_index",
    "window_index",
    "windows",
]

Split = Literal["train", "held_out", "all"]
"""Which episodes: those to learn from, those kept aside by `Dataset.held_out`, or both."""


class Dataset:
    """A Minari data set on disk, of episodes that are seen as images, as vectors, or as both under their names.

    Only the spaces and the length of each episode are kept in memory. The file is opened at first use and
    once more in every process that reads, so a data set can be pickled and passed to workers.

    Args:
        path: The folder that holds `data/main_data.hdf5`, or that `data` folder itself.

    Raises:
        FileNotFoundError: There is no data set.
        ValueError: It is empty, damaged, cut off, or holds neither images nor vectors nor dictionaries of both.

    Example:
        >>> dataset = Dataset("data/pendulum")           # doctest: +SKIP
        >>> dataset.frames(0, 0, 17).shape               # doctest: +SKIP
        (17, 64, 64, 3)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._folder = _folder(self.path)
        self._file: tuple[int, h5py.File] | None = None
        self.metadata: Mapping[str, Any] = _metadata(self._folder)
        self.spec = _spec(self.metadata)
        own = self.metadata.get("worldflow", {})
        self.held_out = SplitRule(**own.get("split", {}))
        num_episodes = int(self.metadata.get("total_episodes", 0))
        if num_episodes < 1:
            raise ValueError(f"the data set {self.path} is empty; record at least one episode")
        self.lengths: Int64[np.ndarray, " episode"] = np.array(
            [self._checked_length(number) for number in range(num_episodes)], dtype=np.int64
        )

    @property
    def file(self) -> Path:
        """The HDF5 file of the episodes."""
        return self._folder / "main_data.hdf5"

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Episode:
        return self.episode(number)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(number) for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}: {len(self)} episodes, {int(self.lengths.sum())} transitions)"

    def close(self) -> None:
        """Close the file; it opens again at the next use."""
        if self._file is not None and self._file[0] == os.getpid():
            self._file[1].close()
        self._file = None

    def episodes(self, split: Split = "all") -> Int64[np.ndarray, " some"]:
        """Numbers of the episodes on one side of the split."""
        held_out = self.held_out.held_out(len(self))
        match split:
            case "train":
                return np.flatnonzero(~held_out)
            case "held_out":
                return np.flatnonzero(held_out)
            case "all":
                return np.arange(len(self))
            case _:
                raise ValueError(f"split must be 'train', 'held_out' or 'all', got {split!r}")

    def episode(self, number: int) -> Episode:
        """Read one whole episode.

        Args:
            number: Its number; negative ones count from the end.
        """
        number = self._number(number)
        with self._reading(number) as group:
            return checked_episode(
                self.spec.action,
                frames=read_frames(group["observations"], 0, int(self.lengths[number]) + 1, spec=self.spec),
                actions=group["actions"][()],
                rewards=group["rewards"][()],
                terminated=group["terminations"][()],
                truncated=group["truncations"][()],
                infos=_tree(group["infos"]) if "infos" in group else {},
                where=f"episode {number} of {self.path}",
                caption=_caption(group),
            )

    def caption(self, number: int) -> str | None:
        """Read what an episode shows, in words, and leave everything else of it on disk.

        Args:
            number: The episode's number; negative ones count from the end.

        Returns:
            Its caption, from its metadata, or from its infos where all steps say the same; None if it has none. See
            `worldflow.captions` for how to give captions to a data set.
        """
        with self._reading(self._number(number)) as group:
            return _caption(group)

    def outcomes(
        self, number: int
    ) -> tuple[Shaped[np.ndarray, "time *action"], Float32[np.ndarray, " time"], Bool[np.ndarray, " time"]]:
        """Read an episode's actions, rewards and terminations, checked, and leave its frames on disk."""
        length, nothing = int(self.lengths[number]), blank_frames(self.spec, ())
        with self._reading(number) as group:
            episode = checked_episode(
                self.spec.action,
                frames=mapped(lambda part: np.broadcast_to(part, (length + 1, *part.shape)), nothing),
                actions=group["actions"][()],
                rewards=group["rewards"][()],
                terminated=group["terminations"][()],
                truncated=group["truncations"][()],
                infos={},
                where=f"episode {number} of {self.path}",
            )
        return episode.actions, episode.rewards, episode.terminated

    def info(self, number: int, name: str) -> np.ndarray | None:
        """Read one entry of an episode's infos, a row a frame; None where it has none of this name."""
        with self._reading(self._number(number)) as group:
            if "infos" not in group or name not in group["infos"]:
                return None
            return np.asarray(_tree(group["infos"][name]))

    def frames(self, number: int, start: int, stop: int) -> UInt8[np.ndarray, "time row column channel"]:
        """Read frames `start .. stop - 1` of an episode, which has one frame more than transitions."""
        if not 0 <= start < stop <= self.lengths[number] + 1:
            raise ValueError(
                f"episode {number} has frames 0 to {self.lengths[number]}, got start {start} and stop {stop}"
            )
        with self._reading(number) as group:
            return read_frames(group["observations"], start, stop, spec=self.spec)

    def clip(self, number: int, start: int, stop: int) -> Episode:
        """Read transitions `start .. stop - 1` of an episode and the frames around them, without infos or caption."""
        if not 0 <= start < stop <= self.lengths[number]:
            raise ValueError(
                f"episode {number} has {self.lengths[number]} transitions, got start {start} and stop {stop}"
            )
        with self._reading(number) as group:
            return checked_episode(
                self.spec.action,
                frames=read_frames(group["observations"], start, stop + 1, spec=self.spec),
                actions=group["actions"][start:stop],
                rewards=group["rewards"][start:stop],
                terminated=group["terminations"][start:stop],
                truncated=group["truncations"][start:stop],
                infos={},
                where=f"episode {number} of {self.path}",
            )

    def _number(self, number: int) -> int:
        if not -len(self) <= number < len(self):
            raise IndexError(f"episode must be a number below {len(self)}, got {number}")
        return int(number) % len(self)

    def _handle(self) -> h5py.File:
        if self._file is None or self._file[0] != os.getpid():
            try:
                # A lock some network disks refuse is not needed: recording replaces files, never edits them.
                self._file = os.getpid(), h5py.File(self.file, "r", locking="best-effort")
            except FileNotFoundError:
                raise
            except OSError as error:
                raise ValueError(f"{self.file} cannot be read ({error}); {DAMAGED}") from error
        return self._file[1]

    def _reading(self, number: int) -> _Reading:
        return _Reading(self._handle(), int(number), self.path)

    def _checked_length(self, number: int) -> int:
        with self._reading(number) as group:
            shapes = {name: group[name].shape for name in _OUTCOMES}
            stored = stored_parts(group["observations"], self.spec)
        length = shapes["rewards"][0]
        expected = {
            "actions": (length, *self.spec.action.shape),
            "rewards": (length,),
            "terminations": (length,),
            "truncations": (length,),
        }
        where = f"episode {number} of {self.path}"
        if length < 1:
            raise ValueError(f"{where} has no transition; {DAMAGED}")
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise ValueError(f"{where}: {name} must have shape {shape}, got {shapes[name]}; {DAMAGED}")
        check_stored(stored, self.spec, num_frames=length + 1, where=where)
        return int(length)


def read_episodes(source: str | os.PathLike[str] | Iterable[object]) -> Iterator[Episode]:
    """Read episodes one by one, wherever they are.

    Args:
        source: The folder of a data set, a `Dataset`, a Minari data set, or a sequence of episodes.
    """
    if isinstance(source, (str, os.PathLike)):
        source = Dataset(source)
    if isinstance(source, Episode) or not hasattr(source, "__iter__"):
        raise TypeError(
            "episodes must be the folder of a data set, a data set, or a sequence of episodes, "
            f"got {type(source).__name__}"
        )
    return (as_episode(episode) for episode in source)


def gather(dataset: Dataset, index: Int64[np.ndarray, "batch 2"], length: int) -> Clip:
    """Read windows from disk.

    Args:
        dataset: The data set.
        index: `(episode, start)` of each window, as `window_index` and `sample_index` give them.
        length: Transitions of a window.

    Returns:
        A batch of windows. Where an episode ends before its window does, its last frame is repeated, actions
        are those of its last transition, rewards are zero, and `valid` is False.
    """
    index = np.asarray(index, dtype=np.int64)
    if index.ndim != 2 or index.shape[1] != 2 or len(index) == 0:
        raise ValueError(f"index must have shape (batch, 2) with at least one window, got {index.shape}")
    if length < 1:
        raise ValueError(f"length must be at least 1 transition, got {length}")
    num = len(index)
    action = dataset.spec.action
    frames = blank_frames(dataset.spec, (num, length + 1))
    actions = np.empty((num, length, *action.shape), dtype=action.dtype)
    rewards = np.zeros((num, length), dtype=np.float32)
    terminated, truncated, valid = (np.zeros((num, length), dtype=bool) for _ in range(3))
    for row, (number, start) in enumerate(index.tolist()):
        if not 0 <= number < len(dataset) or not 0 <= start < dataset.lengths[number]:
            raise ValueError(f"window {row} starts at {start} of episode {number}, which {dataset!r} does not have")
        count = min(length, int(dataset.lengths[number]) - start)
        part = dataset.clip(number, start, start + count)
        frames[row, : count + 1], frames[row, count + 1 :] = part.frames, part.frames[-1]
        actions[row, :count], actions[row, count:] = part.actions, part.actions[-1]
        rewards[row, :count] = part.rewards
        terminated[row, :count], truncated[row, :count] = part.terminated, part.truncated
        valid[row, :count] = True
    return Clip(
        frames=as_tensors(frames),
        actions=torch.from_numpy(actions),
        rewards=torch.from_numpy(rewards),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        valid=torch.from_numpy(valid),
        episode=torch.from_numpy(index[:, 0].copy()),
        start=torch.from_numpy(index[:, 1].copy()),
    )


def windows(
    dataset: Dataset,
    length: int,
    *,
    batch_size: int = 1,
    split: Split = "train",
    shuffle: bool = True,
    stride: int = 1,
    generator: torch.Generator | None = None,
) -> Iterator[Clip]:
    """Go once through every window of a data set, in batches read from disk as they are asked for.

    Args:
        dataset: The data set.
        length: Transitions of a window; it has `length + 1` frames.
        batch_size: Windows of a batch; the last batch may be smaller.
        split: Which episodes.
        shuffle: Whether to go in a random order, or episode by episode.
        stride: Transitions from one window to the next; see `window_index`.
        generator: Where the order comes from; torch's own by default.

    Yields:
        Batches of aligned windows; see `gather` for the padding of episodes shorter than `length`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chosen = dataset.episodes(split)
    if len(chosen) == 0:
        raise ValueError(f"{dataset!r} has no episode on the side {split!r}; record at least two episodes")
    index = window_index(dataset.lengths, length, stride=stride, episodes=chosen)
    if shuffle:
        index = index[torch.randperm(len(index), generator=generator).numpy()]
    return (gather(dataset, index[at : at + batch_size], length) for at in range(0, len(index), batch_size))


_OUTCOMES = ("actions", "rewards", "terminations", "truncations")


class _Reading:
    """The group of one episode, with every way that a broken file fails turned into one error."""

    def __init__(self, file: h5py.File, number: int, path: Path) -> None:
        self._file, self._number, self._path = file, number, path

    def __enter__(self) -> Any:
        try:
            return self._file[f"episode_{self._number}"]
        except (KeyError, OSError) as error:
            raise ValueError(f"episode {self._number} of {self._path} cannot be opened ({error}); {DAMAGED}") from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KeyError, OSError)):
            raise ValueError(f"episode {self._number} of {self._path} cannot be read ({error}); {DAMAGED}") from error


def _folder(path: Path) -> Path:
    for folder in (path / "data", path):
        if (folder / "metadata.json").is_file() or (folder / "main_data.hdf5").is_file():
            return folder
    what = "is no Minari data set: it has no data/metadata.json" if path.is_dir() else "does not exist"
    raise FileNotFoundError(f"{path} {what}; give the folder that `worldflow collect ENV --out DIR` wrote")


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; {DAMAGED}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {DAMAGED}") from error
    missing = [name for name in ("observation_space", "action_space") if name not in metadata]
    if missing:
        raise ValueError(f"{path} does not tell {' and '.join(missing)}; record it again with Minari 0.5 or later")
    if metadata.get("data_format", "hdf5") != "hdf5":
        raise ValueError(f"{folder} is stored as {metadata['data_format']}; convert it to Minari's 'hdf5' format")
    return metadata


def _spec(metadata: Mapping[str, Any]) -> DataSpec:
    return data_spec(
        metadata["observation_space"],
        metadata["action_space"],
        env_spec=metadata.get("env_spec"),
        dataset_id=metadata.get("dataset_id", ""),
    )


def _tree(stored: Any) -> Any:
    if isinstance(stored, h5py.Group):
        return {name: _tree(value) for name, value in stored.items()}
    return stored.asstr()[()] if h5py.check_string_dtype(stored.dtype) else stored[()]


def _caption(group: Any) -> str | None:
    said = group.attrs.get(CAPTION)
    if isinstance(said, (str, bytes)):
        return shared_caption([said])
    return shared_caption(group[f"infos/{CAPTION}"][()]) if f"infos/{CAPTION}" in group else None
