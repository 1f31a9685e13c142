"""What is common to recordings of other people's: sources of episodes, and how their frames and counts are put right.

A source knows how many episodes there are and reads one at a time; their actions can be read alone, since the space of
actions has to be known before the first episode is written. Readers are in `worldflow.envs.hdf5_source`,
`lerobot_source` and `video_source`, the command in `worldflow.envs.importing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from worldflow.envs.making import Observed
from worldflow.frames import Frames
from worldflow.types import Episode

if TYPE_CHECKING:
    from jaxtyping import Shaped, UInt8

__all__ = ["Recorded", "Source", "Wanted", "as_pictures", "as_recorded_episode", "squared"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to take of a recording."""

    observed: Observed = "pixels"
    """Pictures, vectors, or both."""
    frames: str | None = None
    """Name of the camera, or of the vector where only that is seen; None where there is but one."""
    vector: str | None = None
    """Name of the vector beside the pictures; None where there is but one."""
    actions: str | None = None
    """Name of the actions; None takes what is usual."""
    size: int | None = None
    """Rows and columns that pictures are brought to: the middle square of each, averaged; None leaves them."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An episode as it was found.

    Args:
        name: What to call it in an error.
        frames: `time + 1` of them, or `time` where the one after the last action was not kept.
        vector: What is seen beside the pictures, as many.
        actions: `time` of them.
        rewards: One for each action; None: none were kept.
        terminated: Likewise: whether the task ended with the action.
        state: The simulator's or robot's state at every frame; None: none was kept.
        caption: What is done, in words.
    """

    name: str
    frames: np.ndarray
    actions: np.ndarray
    vector: np.ndarray | None = None
    rewards: np.ndarray | None = None
    terminated: np.ndarray | None = None
    state: np.ndarray | None = None
    caption: str | None = None


class Source(ABC):
    """Recordings in a format of others."""

    kind: str
    """Name of the format."""

    @abstractmethod
    def __len__(self) -> int:
        """Episodes."""

    @abstractmethod
    def actions(self, number: int) -> Shaped[np.ndarray, "time *action"]:
        """The actions of an episode."""

    @abstractmethod
    def read(self, number: int) -> Recorded:
        """An episode.

        Raises:
            ValueError: If it is damaged, or holds something else than was wanted.
        """

    def __iter__(self) -> Iterator[Recorded]:
        return (self.read(number) for number in range(len(self)))


def as_recorded_episode(found: Recorded) -> tuple[Episode, int]:
    """An episode as the project has them: one more frame than actions, and marked where it ends.

    Where there is a frame, or a vector beside it, for each action and no more, what the last action led to was not
    kept: it is left out.

    Returns:
        The episode, and how many actions were left out.

    Raises:
        ValueError: If counts do not fit, or nothing is left.
    """
    name, given = found.name, len(found.actions)
    num_frames = min(len(found.frames), len(found.frames if found.vector is None else found.vector))
    if num_frames not in (given, given + 1):
        raise ValueError(
            f"{name}: {given} actions need as many frames or one more, got {num_frames}; "
            "cut the recording, or name other frames or actions"
        )
    length = num_frames - 1
    if length < 1:
        raise ValueError(f"{name}: an episode needs at least 2 frames and the action between them, got {num_frames}")
    for what, values in (("rewards", found.rewards), ("ends", found.terminated)):
        if values is not None and len(values) < length:
            raise ValueError(f"{name}: {length} actions need as many {what}, got {len(values)}")
    if found.state is not None and len(found.state) < num_frames:
        raise ValueError(f"{name}: {num_frames} frames need as many states, got {len(found.state)}")
    rewards = np.zeros(length) if found.rewards is None else np.asarray(found.rewards, np.float64)[:length]
    terminated = np.zeros(length, bool) if found.terminated is None else np.asarray(found.terminated)[:length] > 0
    truncated = np.zeros(length, bool)
    truncated[-1] = not terminated[-1]
    infos: dict[str, Any] = {} if found.state is None else {"state": np.asarray(found.state)[:num_frames]}
    frames: Any = found.frames[:num_frames]
    if found.vector is not None:
        frames = Frames({"pixels": frames, "state": np.asarray(found.vector[:num_frames], np.float32)})
    elif frames.dtype != np.uint8:
        frames = np.asarray(frames, np.float32)
    episode = Episode(
        frames=frames,
        actions=found.actions[:length],
        rewards=rewards.reshape(length),
        terminated=terminated.reshape(length),
        truncated=truncated,
        infos=infos,
        caption=found.caption,
    )
    return episode, given - length


def as_pictures(frames: Iterable[np.ndarray], wanted: Wanted, *, name: str) -> UInt8[np.ndarray, "time row column 3"]:
    """Pictures as `uint8 (time, row, column, channel)`, from what people keep them as.

    Args:
        frames: One after the other: `uint8`, or floats from 0 to 1; channels last, or first; 1, 3 or 4 of them.
        wanted: To what size.
        name: What to call the episode in an error.

    Raises:
        ValueError: If they are no pictures, or there is none.
    """
    made = [squared(_picture(np.asarray(frame), name), wanted.size) for frame in frames]
    if not made:
        raise ValueError(f"{name}: there is no frame")
    if len(shapes := {frame.shape for frame in made}) > 1:
        raise ValueError(f"{name}: frames must be of one size, got {sorted(shapes)}; give --size")
    return np.stack(made)


def squared(frame: UInt8[np.ndarray, "row column channel"], size: int | None) -> UInt8[np.ndarray, "size size channel"]:
    """The middle square of a picture, averaged to `size` rows and columns; None leaves it as it is."""
    if size is None or frame.shape[:2] == (size, size):
        return frame
    rows, columns, channels = frame.shape
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    middle = frame[top : top + side, left : left + side]
    image = Image.fromarray(middle[..., 0] if channels == 1 else middle)
    scaled = np.asarray(image.resize((size, size), Image.Resampling.BOX if side >= size else Image.Resampling.BICUBIC))
    return scaled.reshape(size, size, channels)


def _picture(frame: np.ndarray, name: str) -> np.ndarray:
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.ndim == 3 and frame.shape[-1] not in (1, 3, 4) and frame.shape[0] in (1, 3, 4):
        frame = np.moveaxis(frame, 0, -1)
    if frame.ndim != 3 or frame.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name}: a picture must be (row, column, channel) with 1 or 3 channels, got {frame.shape}")
    frame = frame[..., :3]
    if frame.dtype.kind == "f":
        if not (np.isfinite(frame).all() and frame.min() >= 0 and frame.max() <= 1):
            raise ValueError(
                f"{name}: pictures of floats must lie from 0 to 1, got {np.nanmin(frame):g} to {np.nanmax(frame):g}; "
                "store them as uint8"
            )
        frame = np.rint(frame * 255)
    elif frame.dtype != np.uint8:
        raise ValueError(f"{name}: pictures must be uint8, or floats from 0 to 1, got {frame.dtype}")
    return np.ascontiguousarray(frame, np.uint8)
