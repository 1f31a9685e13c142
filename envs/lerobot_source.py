"""LeRobot data sets, versions 2.0, 2.1 and 3.0: tables in Parquet, cameras in MP4 or as pictures in the tables.

`meta/info.json` says where things are. In version 2 every episode has a table and a video of its own; in version 3 many
share a file, and the tables in `meta/episodes` say which rows and which seconds are whose. Row `t` holds what was seen
and then done, so that an episode of `n` rows has `n - 1` transitions. Parquet is read with pyarrow (the extra
`lerobot`).

Reference: Cadene et al., LeRobot (2024).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worldflow.envs.recordings import Recorded, Source, Wanted, as_pictures
from worldflow.hints import did_you_mean
from worldflow.video import frames_from

__all__ = ["LeRobotSource", "is_lerobot"]

STATE = "observation.state"


def is_lerobot(path: Path) -> bool:
    """Whether a folder is a LeRobot data set."""
    return (path / "meta" / "info.json").is_file()


class LeRobotSource(Source):
    """See the module.

    Args:
        path: Its folder, with `meta/info.json`.
        wanted: What to take; `frames` names a camera (`observation.images.top`, or `top`).

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If the data set is damaged, of another version, or has not what is wanted.
    """

    kind = "LeRobot"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path, self._wanted = path, wanted
        try:
            self._info = json.loads((path / "meta" / "info.json").read_text())
            self._features, self._fps = dict(self._info["features"]), float(self._info["fps"])
            self._version = int(str(self._info["codebase_version"]).lstrip("v").split(".")[0])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path / 'meta' / 'info.json'} is damaged: {error}; fetch the data set again") from error
        if self._version not in (2, 3):
            raise ValueError(f"{path} is of LeRobot's version {self._info['codebase_version']}, known are 2 and 3")
        self._actions = self._named(wanted.actions or "action", "actions", list(self._features))
        self._seen = self._chosen()
        self._vector = None
        if wanted.observed == "dict":
            self._vector = self._named(wanted.vector or STATE, "vector", list(self._features))
        self._episodes = self._read_episodes()
        self._table: tuple[Path, Any] | None = None

    def __len__(self) -> int:
        return len(self._episodes)

    def actions(self, number: int) -> np.ndarray:
        """The actions of an episode."""
        return _array(self._rows(number), self._actions)

    def read(self, number: int) -> Recorded:
        """An episode."""
        rows, name = self._rows(number), f"{self._path.name}, episode {number}"
        columns = rows.column_names
        state = _array(rows, STATE) if STATE in columns and self._wanted.observed == "pixels" else None
        return Recorded(
            name=name,
            frames=self._frames(number, rows, name),
            actions=_array(rows, self._actions),
            vector=None if self._vector is None else _array(rows, self._vector),
            rewards=_array(rows, "next.reward").reshape(-1) if "next.reward" in columns else None,
            terminated=_array(rows, "next.done").reshape(-1) if "next.done" in columns else None,
            state=state if state is None or state.ndim == 2 else None,
            caption=self._episodes[number].get("caption"),
        )

    def _chosen(self) -> str:
        """The feature that is observed."""
        if self._wanted.observed == "vector":
            return self._named(self._wanted.frames or STATE, "vector", list(self._features))
        cameras = [name for name, one in self._features.items() if one.get("dtype") in ("video", "image")]
        if not cameras:
            raise ValueError(f"{self._path} has no camera; import its vectors with --observation vector")
        if self._wanted.frames is None:
            if len(cameras) > 1:
                raise ValueError(f"{self._path} has several cameras, {', '.join(cameras)}; choose one with --frames")
            return cameras[0]
        return self._named(self._wanted.frames, "camera", cameras)

    def _named(self, name: str, what: str, known: list[str]) -> str:
        found = [full for full in known if full == name or full.endswith("." + name)]
        if len(found) != 1:
            raise ValueError(f"{self._path} has no {what} {name!r}{did_you_mean(name, known)}")
        return found[0]

    def _read_episodes(self) -> list[dict[str, Any]]:
        """For each episode its file, its rows in it, and where its camera's frames are."""
        if self._version == 2:
            return [self._episode_of_2(number) for number in range(int(self._info["total_episodes"]))]
        found = []
        for path in sorted((self._path / "meta" / "episodes").rglob("*.parquet")):
            found += _read(path).to_pylist()
        if not found:
            raise ValueError(f"{self._path} says nothing of its episodes in meta/episodes; fetch the data set again")
        return [self._episode_of_3(row) for row in sorted(found, key=lambda row: row["episode_index"])]

    def _episode_of_2(self, number: int) -> dict[str, Any]:
        places = {"episode_chunk": number // int(self._info.get("chunks_size", 1000)), "episode_index": number}
        video = self._info.get("video_path")
        return {
            "index": number,
            "table": self._path / self._info["data_path"].format(**places),
            "video": None if video is None else self._path / video.format(**places, video_key=self._seen),
            "second": 0.0,
            "caption": self._captions().get(number),
        }

    def _episode_of_3(self, row: dict[str, Any]) -> dict[str, Any]:
        def places(prefix: str) -> dict[str, int]:
            return {key: int(row[f"{prefix}/{key}"]) for key in ("chunk_index", "file_index")}

        camera = f"videos/{self._seen}"
        video = None
        if f"{camera}/file_index" in row:
            video = self._path / self._info["video_path"].format(**places(camera), video_key=self._seen)
        tasks = row.get("tasks") or []
        return {
            "index": int(row["episode_index"]),
            "table": self._path / self._info["data_path"].format(**places("data")),
            "video": video,
            "second": float(row.get(f"{camera}/from_timestamp") or 0.0),
            "caption": tasks[0] if len(tasks) == 1 else None,
        }

    def _captions(self) -> dict[int, str]:
        path = self._path / "meta" / "episodes.jsonl"
        if not hasattr(self, "_said"):
            lines = [json.loads(line) for line in path.read_text().splitlines() if line] if path.is_file() else []
            self._said = {
                int(line["episode_index"]): line["tasks"][0] for line in lines if len(line.get("tasks") or []) == 1
            }
        return self._said

    def _rows(self, number: int) -> Any:
        """The rows of an episode, in order."""
        import pyarrow

        episode = self._episodes[number]
        if self._table is None or self._table[0] != episode["table"]:
            self._table = (episode["table"], _read(episode["table"]))
        table = self._table[1]
        if "episode_index" in table.column_names:
            table = table.filter(pyarrow.array(table["episode_index"].to_numpy() == episode["index"]))
        if not len(table):
            raise ValueError(f"{episode['table']} has no row of episode {episode['index']}; fetch the data set again")
        return table.sort_by("frame_index") if "frame_index" in table.column_names else table

    def _frames(self, number: int, rows: Any, name: str) -> np.ndarray:
        if self._wanted.observed == "vector":
            return _array(rows, self._seen)
        video = self._episodes[number]["video"]
        if self._features[self._seen]["dtype"] == "image" or video is None:
            return as_pictures(_pictures(rows[self._seen].to_pylist(), self._path, name), self._wanted, name=name)
        second = self._episodes[number]["second"]
        frames = frames_from(video, second=second, count=len(rows), fps=self._fps)
        return as_pictures(frames, self._wanted, name=name)


def _pictures(cells: list[Any], folder: Path, name: str) -> Iterator[np.ndarray]:
    for cell in cells:
        if not isinstance(cell, dict):
            yield np.asarray(cell)
        elif cell.get("bytes") is not None:
            yield np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
        elif cell.get("path"):
            yield np.asarray(Image.open(folder / cell["path"]).convert("RGB"))
        else:
            raise ValueError(f"{name}: a picture is missing")


def _array(rows: Any, name: str) -> np.ndarray:
    return np.array(rows[name].to_pylist())


def _read(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'LeRobot data sets are read with pyarrow, which is not installed: pip install "worldflow[lerobot]"'
        ) from error
    if not path.is_file():
        raise ValueError(f"{path} is missing; fetch the data set again")
    try:
        return pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}); fetch the data set again") from error
