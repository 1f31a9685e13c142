"""A Minari data set that survives whatever stops its recording.

An HDF5 file that is cut off in the middle of a write may be lost as a whole. So each finished episode becomes a
small file of its own, and `main_data.hdf5`, where Minari looks, holds links to them. Files are made in memory and
put in place by renaming, in an order that leaves a readable data set after every step: the episode, the links,
then the count in `metadata.json`. `finish` copies everything into one file, which replaces the links the same way.

    DIR/data/metadata.json       what Minari needs, and under "worldflow" how the data was recorded
    DIR/data/main_data.hdf5      the episodes, or links to them while recording
    DIR/data/episodes/           episodes recorded since the last `finish`

Seed, policy and caption of an episode are attributes of its group, where Minari keeps an episode's metadata.

`minari.load_dataset(NAME)` opens `$MINARI_DATASETS_PATH/NAME/data`, whatever NAME is, and
`minari.MinariDataset(DIR / "data")` needs no variable. Only `minari.list_local_datasets` insists that folders be
called `NAME-vN`; the recorded id always is.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import minari
import numpy as np

from worldflow.atomic import deferring
from worldflow.episodes import CAPTION
from worldflow.frames import Frames
from worldflow.types import Episode

__all__ = ["OnExisting", "Recorder"]

OnExisting = Literal["error", "append", "overwrite"]
"""What to do where a data set already is."""


class Recorder:
    """Writes episodes one by one. Nothing is on disk before the first is finished.

    Args:
        out: Folder of the data set.
        observation_space: As Minari serializes it.
        action_space: As Minari serializes it.
        env_spec: The environment's specification as JSON, or None.
        on_existing: `"error"` refuses to touch a data set that is there, `"append"` continues it,
            `"overwrite"` replaces it when the first new episode is finished.
        metadata: Further entries of `metadata.json`; of a data set that is continued, its own are kept.

    Raises:
        FileExistsError: There is a data set, or something else, in the way.
        ValueError: The data set to continue is damaged, or of another environment.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        observation_space: str,
        action_space: str,
        env_spec: str | None = None,
        on_existing: OnExisting = "error",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if on_existing not in ("error", "append", "overwrite"):
            raise ValueError(f"on_existing must be 'error', 'append' or 'overwrite', got {on_existing!r}")
        self.path = Path(out)
        self._data = self.path / "data"
        self._main = self._data / "main_data.hdf5"
        self._shards = self._data / "episodes"
        self._replace = False
        self.seeds: set[int] = set()
        self.metadata: dict[str, Any] = {
            "dataset_id": _dataset_id(self.path),
            "minari_version": minari.__version__,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": observation_space,
            "action_space": action_space,
            "total_episodes": 0,
            "total_steps": 0,
            **({} if env_spec is None else {"env_spec": env_spec}),
            **(metadata or {}),
        }
        self._meet_existing(on_existing)

    def __len__(self) -> int:
        return self.metadata["total_episodes"]

    def add(self, episode: Episode, *, seed: int, attributes: Mapping[str, Any] | None = None) -> None:
        """Write a finished episode.

        Args:
            episode: The episode; `infos` are arrays, or dicts of them, with `time + 1` rows.
            seed: What the environment was reset with.
            attributes: Further numbers and strings to keep with it.

        Raises:
            OSError: The disk is full or refuses. Episodes written before stay readable.
        """
        number = len(self)
        name = f"episode_{number}"
        image = io.BytesIO()
        with h5py.File(image, "w") as file:
            group = file.create_group(name)
            group.attrs.update({"id": number, "seed": seed, "total_steps": len(episode), **(attributes or {})})
            if episode.caption is not None:
                group.attrs[CAPTION] = episode.caption
            _write_frames(group, "observations", episode.frames)
            group.create_dataset("actions", data=episode.actions)
            group.create_dataset("rewards", data=episode.rewards.astype(np.float64))
            group.create_dataset("terminations", data=episode.terminated)
            group.create_dataset("truncations", data=episode.truncated)
            _write_infos(group.create_group("infos"), episode.infos)
        try:
            self._start()
            shard = self._shards / f"{name}.hdf5"
            _put(shard, image.getbuffer())
            links = io.BytesIO(self._main.read_bytes() if self._main.exists() else b"")
            with h5py.File(links, "r+" if links.getbuffer().nbytes else "w") as file:
                # Left by a recording that was killed between two renames.
                if name in file:
                    del file[name]
                file[name] = h5py.ExternalLink(f"{self._shards.name}/{shard.name}", f"/{name}")
            _put(self._main, links.getbuffer())
            counts = {"total_episodes": number + 1, "total_steps": self.metadata["total_steps"] + len(episode)}
            self.metadata = {**self.metadata, **counts}
            self._put_metadata()
        except OSError as error:
            raise self._refused(error, f"episode {number}") from error
        self.seeds.add(seed)

    def finish(self) -> None:
        """Copy the episodes into one file; where that fails they stay readable as they are.

        Raises:
            OSError: The disk is full or refuses.
        """
        if not self._shards.exists():
            return
        whole = self._main.with_suffix(".tmp")
        try:
            with (
                whole.open("w+b", buffering=0) as stream,
                deferring(stream) as disk,
                h5py.File(self._main, "r") as links,
                h5py.File(disk, "w") as file,
            ):
                for number in range(len(self)):
                    if disk.error is None:
                        links.copy(links[f"episode_{number}"], file, name=f"episode_{number}")
            whole.replace(self._main)
            self.metadata["dataset_size"] = round(self._main.stat().st_size / 1e6, 1)
            self._put_metadata()
        except OSError as error:
            raise self._refused(error, "the episodes as one file") from error
        finally:
            whole.unlink(missing_ok=True)
        shutil.rmtree(self._shards)

    def _meet_existing(self, on_existing: OnExisting) -> None:
        there = self._data / "metadata.json"
        if not there.exists():
            if self.path.is_file() or (self._data.exists() and any(self._data.iterdir())):
                raise FileExistsError(f"{self.path} is in use and holds no data set; choose another folder")
            return
        if on_existing == "overwrite":
            self._replace = True
            return
        try:
            found = json.loads(there.read_text())
        except ValueError as error:
            raise ValueError(f"{there} is damaged ({error}); replace the data set with --overwrite") from error
        if found.get("total_episodes", 0) == 0:  # killed while it wrote its first episode
            self._replace = True
        elif on_existing == "append":
            self._continue(found)
        else:
            raise FileExistsError(
                f"{self.path} already holds a data set of {found['total_episodes']} episodes; choose another folder, "
                "continue it with --append, or replace it with --overwrite"
            )

    def _continue(self, found: dict[str, Any]) -> None:
        for name in ("observation_space", "action_space", "env_spec"):
            if found.get(name) != self.metadata.get(name):
                raise ValueError(
                    f"{self.path} was recorded with another {name.replace('_', ' ')}, {found.get(name)}, "
                    f"than this environment's, {self.metadata.get(name)}; record to another folder"
                )
        if found.get("data_format", "hdf5") != "hdf5" or found.get("jpeg_encoding", True):
            raise ValueError(
                f"{self.path} does not hold raw HDF5 frames, so it cannot be continued; use another folder"
            )
        self.metadata = {**self.metadata, **found}
        with h5py.File(self._main, "r") as file:
            for number in range(len(self)):
                self.seeds.add(int(file[f"episode_{number}"].attrs.get("seed", -1)))

    def _start(self) -> None:
        """Make the folder, and keep what is there: episodes in one file become links to that file."""
        if self._replace:
            for file in (self._data / "metadata.json", self._main):
                file.unlink(missing_ok=True)
            shutil.rmtree(self._shards, ignore_errors=True)
            self._replace = False
        if self._shards.exists():
            return
        self._shards.mkdir(parents=True)
        if len(self) == 0:
            self._put_metadata()
            return
        base = self._shards / "base.hdf5"
        try:
            os.link(self._main, base)
        except OSError:  # a disk without hard links
            shutil.copyfile(self._main, base)
        links = io.BytesIO()
        with h5py.File(links, "w") as file:
            for number in range(len(self)):
                file[f"episode_{number}"] = h5py.ExternalLink(f"{self._shards.name}/base.hdf5", f"/episode_{number}")
        _put(self._main, links.getbuffer())

    def _put_metadata(self) -> None:
        _put(self._data / "metadata.json", json.dumps(self.metadata, indent=1).encode())

    def _refused(self, error: OSError, what: str) -> OSError:
        kept = f"the {len(self)} episodes written before stay readable" if len(self) else "no episode was written"
        return OSError(
            error.errno or errno.EIO,
            f"cannot write {what} to {self.path} ({error.strerror or error}); {kept}. "
            "Free some space and continue with --append",
        )


def _write_frames(group: h5py.Group, name: str, frames: np.ndarray | Frames) -> None:
    if isinstance(frames, Frames):
        inner = group.create_group(name)
        for part, values in frames.parts.items():
            _write_frames(inner, part, values)
        return
    # Measured on rendered 64x64 frames: deflate at level 1 over 8 frames stores a ninth of the bytes at
    # 20,000 frames/s, and a random window of 17 frames reads in 0.6 ms, no slower than from one-frame chunks.
    # Vectors are small: more of them go into a chunk, or its overhead would be most of it.
    chunk = (min(8 if frames.ndim == 4 else 256, len(frames)), *frames.shape[1:])
    group.create_dataset(name, data=frames, chunks=chunk, compression="gzip", compression_opts=1)


def _write_infos(group: h5py.Group, infos: Mapping[str, Any]) -> None:
    for name, values in infos.items():
        if isinstance(values, Mapping):
            _write_infos(group.create_group(name), values)
        elif values.dtype.kind == "U":
            group.create_dataset(name, data=values.astype(object), dtype=h5py.string_dtype())
        else:
            group.create_dataset(name, data=values)


def _put(path: Path, content: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _dataset_id(path: Path) -> str:
    name = re.sub(r"[^-\w]", "-", path.resolve().name) or "dataset"
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"
