"""Videos with their actions: a folder in which every video has a table of the same name beside it.

    DIR/run_1.mp4    DIR/run_1.csv     mp4, gif, avi, mkv, mov or webm; csv, npy or npz

A csv has a line of names on top: columns called `reward` and `terminated` (or `done`) are these, `state` and whatever
begins with `state` is the state, all others are the action, or those that begin with `action` where some do. An npy
holds the actions, `(time, number)` or `(time,)`; an npz any of `actions`, `rewards`, `terminated` and `state`.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from worldflow.envs.recordings import Recorded, Source, Wanted, as_pictures
from worldflow.hints import did_you_mean
from worldflow.video import read_video

__all__ = ["VIDEOS", "VideoSource"]

VIDEOS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
TABLES = (".npz", ".npy", ".csv")


class VideoSource(Source):
    """See the module.

    Args:
        path: The folder, or one video.
        wanted: What to take; `actions` names the columns' common beginning, or the array of an npz.

    Raises:
        ValueError: If a video has no table, or vectors are wanted.
    """

    kind = "videos"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._wanted = wanted
        if wanted.observed == "vector":
            raise ValueError(f"videos are pictures, but only vectors are wanted of {path}; leave --observation out")
        if wanted.vector is not None:
            raise ValueError(f"the vector beside a video is its state: leave --vector out, got {wanted.vector!r}")
        if wanted.frames is not None:
            raise ValueError(f"a video holds one picture at a time: leave --frames out, got {wanted.frames!r}")
        videos = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS)
        self._files = [(video, _table_of(video)) for video in videos]

    def __len__(self) -> int:
        return len(self._files)

    def actions(self, number: int) -> np.ndarray:
        """The actions of an episode."""
        return self._table(number)["actions"]

    def read(self, number: int) -> Recorded:
        """An episode."""
        video, path = self._files[number]
        table = self._table(number)
        if self._wanted.observed == "dict":
            if "state" not in table:
                raise ValueError(f"{path} has no state to see beside the pictures; leave --observation dict out")
            table["vector"] = table.pop("state")
        frames = as_pictures(read_video(video), self._wanted, name=video.name)
        return Recorded(name=video.name, frames=frames, **table)

    def _table(self, number: int) -> dict[str, Any]:
        path = self._files[number][1]
        name = self._wanted.actions
        try:
            if path.suffix == ".npy":
                return {"actions": np.load(path, allow_pickle=False)}
            if path.suffix == ".csv":
                return _columns(path, name)
            with np.load(path, allow_pickle=False) as arrays:
                found = {key: arrays[key] for key in ("rewards", "terminated", "state") if key in arrays.files}
                key = name or "actions"
                if key not in arrays.files:
                    raise ValueError(f"there is no array {key!r}{did_you_mean(key, arrays.files)}")
                return {"actions": arrays[key], **found}
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} is of no use: {error}") from error


def _table_of(video: Path) -> Path:
    for suffix in TABLES:
        if (path := video.with_suffix(suffix)).is_file():
            return path
    raise ValueError(f"{video} has no actions: put {video.stem}.csv, .npy or .npz beside it, one row an action")


def _columns(path: Path, prefix: str | None) -> dict[str, Any]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2:
        raise ValueError("it has no rows below the line of names")
    names, lines = [name.strip() for name in rows[0]], [row for row in rows[1:] if row]
    if _is_number(names[0]):
        raise ValueError("its first line must name the columns")
    try:
        values = np.array(lines, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"every row must hold {len(names)} numbers ({error})") from error
    if values.shape[1] != len(names):
        raise ValueError(f"it names {len(names)} columns, its rows hold {values.shape[1]} numbers")
    own = {"reward": "rewards", "rewards": "rewards", "terminated": "terminated", "done": "terminated"}
    found: dict[str, Any] = {own[name]: values[:, k] for k, name in enumerate(names) if name in own}
    state = [k for k, name in enumerate(names) if name.startswith("state")]
    if state:
        found["state"] = values[:, state]
    left = [k for k, name in enumerate(names) if name not in own and k not in state]
    begins = prefix or "action"
    chosen = [k for k in left if names[k].startswith(begins)]
    if prefix is not None and not chosen:
        raise ValueError(f"no column begins with {prefix!r}{did_you_mean(prefix, names)}")
    chosen = chosen or left
    if not chosen:
        raise ValueError("no column is left for the actions")
    actions = values[:, chosen]
    if len(chosen) == 1 and all(_is_whole(row[chosen[0]]) for row in lines):  # a choice among some
        return {"actions": actions[:, 0].astype(np.int64), **found}
    return {"actions": actions, **found}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_whole(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()
