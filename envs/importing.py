"""Recordings of other people's in, a Minari data set out: `worldflow import SOURCE --out DIR`.

    a folder of videos with a table of actions beside each            worldflow.envs.video_source
    HDF5: robomimic, robosuite, ALOHA, D4RL, most people's own        worldflow.envs.hdf5_source
    LeRobot, versions 2 and 3                                         worldflow.envs.lerobot_source

Minari's own data sets need no import. Nothing is made up: rewards that were not kept are zeros, and said to be;
pictures keep their size unless another is asked for; the space of actions is what was recorded, number by number from
the least to the greatest, unless its limits are given. Episodes without a transition are left out, and counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from worldflow import __version__
from worldflow.envs.hdf5_source import HDF5, Hdf5Source
from worldflow.envs.lerobot_source import LeRobotSource, is_lerobot
from worldflow.envs.making import Observed, serialized
from worldflow.envs.recorder import OnExisting, Recorder
from worldflow.envs.recordings import Source, Wanted, as_recorded_episode
from worldflow.envs.video_source import VIDEOS, VideoSource
from worldflow.frames import Frames
from worldflow.index import SplitRule

__all__ = ["Imported", "import_recordings", "source_of"]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What came of an import."""

    path: Path
    """The data set's folder."""
    kind: str
    """The format that was read."""
    episodes: int
    transitions: int
    has_rewards: bool
    """Whether rewards were recorded; if not, they are zeros."""
    left_out: int
    """Episodes without a transition."""
    last_actions: int
    """Actions that were left out at the end of episodes, as what they led to was not kept."""


def import_recordings(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    observation: Observed = "pixels",
    frames: str | None = None,
    vector: str | None = None,
    actions: str | None = None,
    size: int | None = None,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    action_space: gym.Space[Any] | None = None,
    episodes: int | None = None,
    split: SplitRule | None = None,
    on_existing: OnExisting = "error",
    progress: bool = True,
) -> Imported:
    """Bring recordings into a Minari data set.

    Args:
        source: File or folder of the recordings; see the module.
        out: Folder of the data set.
        observation: What is seen: `pixels`, a `vector`, or both as a `dict`.
        frames: The camera, or the vector where only that is seen, where there are several.
        vector: The vector beside the pictures, where there are several.
        actions: What the actions are called, where not as usual.
        size: Rows and columns that pictures are brought to: their middle square, averaged.
        low: Least value of an action, one for all numbers or one each; by default the least that was recorded.
        high: Greatest, likewise.
        action_space: The space of actions, which all of them must lie in, where it is known; in place of limits.
        episodes: The first so many only.
        split: Which episodes are held out, to be written down with the data.
        on_existing: What to do where a data set is: `"error"`, `"append"` or `"overwrite"`.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If no format fits, or a recording is damaged or not as it should be.
        FileExistsError: If there is a data set and `on_existing` is `"error"`.
        ImportError: If a format needs a package that is not installed.
    """
    if episodes is not None and episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if size is not None and observation == "vector":
        raise ValueError("size is that of pictures; leave it out with observation 'vector'")
    if vector is not None and observation != "dict":
        raise ValueError("vector names what is seen beside pictures; it needs observation 'dict'")
    wanted = Wanted(observed=observation, frames=frames, vector=vector, actions=actions, size=size)
    found = source_of(Path(source), wanted)
    numbers = range(len(found) if episodes is None else min(episodes, len(found)))
    if isinstance(action_space, spaces.Box):
        low, high = action_space.low.reshape(-1).tolist(), action_space.high.reshape(-1).tolist()
    space, kept = _action_space(found, numbers, low, high, progress=progress)
    if action_space is not None:
        _check_alike(space, action_space)
        space = action_space
    recorder, first, observed = None, 0, None
    report = {"has_rewards": False, "left_out": len(numbers) - len(kept), "last_actions": 0, "transitions": 0}
    try:
        for number in tqdm(kept, desc="import", unit="episode", disable=not progress):
            recorded = found.read(number)
            if len(recorded.frames) < 2:
                report["left_out"] += 1
                continue
            episode, dropped = as_recorded_episode(recorded)
            actual = np.asarray(episode.actions).astype(space.dtype).reshape(len(episode), *(space.shape or ()))
            episode, seen = replace(episode, actions=actual), _observation_space(episode.frames, recorded.name)
            if recorder is None:
                observed = seen
                recorder = Recorder(
                    out,
                    observation_space=serialized(seen),
                    action_space=serialized(space),
                    on_existing=on_existing,
                    metadata={
                        "description": f"imported from {found.kind} by worldflow {__version__}",
                        "worldflow": {"split": asdict(split or SplitRule())},
                    },
                )
                first = len(recorder)
            elif seen != observed:
                raise ValueError(
                    f"{recorded.name}: observations of {observed} are expected, as before it, got {seen}; give --size, "
                    "or import it to another folder"
                )
            recorder.add(episode, seed=len(recorder), attributes={"source": recorded.name})
            report["has_rewards"] = report["has_rewards"] or recorded.rewards is not None
            report["last_actions"] += dropped
            report["transitions"] += len(episode)
    except (KeyboardInterrupt, ValueError) as error:
        if recorder is None:
            raise
        recorder.finish()
        kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ValueError
        raise kind(
            f"{str(error) or 'interrupted'}; the {len(recorder)} episodes in {recorder.path} are kept"
        ) from error
    if recorder is None:
        raise ValueError(f"no episode of {source} holds a transition: that takes 2 frames and the action between them")
    recorder.finish()
    return Imported(path=Path(out), kind=found.kind, episodes=len(recorder) - first, **report)


def source_of(path: Path, wanted: Wanted) -> Source:
    """The reader that fits.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If none fits.
    """
    if not path.exists():
        raise FileNotFoundError(f"nothing to import at {path}")
    if is_lerobot(path):
        return LeRobotSource(path, wanted)
    suffixes = {path.suffix.lower()} if path.is_file() else {p.suffix.lower() for p in path.iterdir()}
    if (path / "data" / "main_data.hdf5").is_file():
        raise ValueError(f"{path} is a Minari data set already: train on it, or score it, as it is")
    if suffixes & set(VIDEOS):
        return VideoSource(path, wanted)
    if suffixes & set(HDF5):
        return Hdf5Source(path, wanted)
    raise ValueError(
        f"{path} holds nothing known: a LeRobot data set (meta/info.json), HDF5 files ({', '.join(HDF5)}), or videos "
        f"({', '.join(VIDEOS)}) with a csv, npy or npz of actions beside each"
    )


def _action_space(
    found: Source,
    numbers: range,
    low: Sequence[float] | None,
    high: Sequence[float] | None,
    *,
    progress: bool,
) -> tuple[gym.Space[Any], list[int]]:
    """The space of what was done, and the episodes that hold a transition."""
    least: Any = None
    greatest: Any = None
    shape, kind, kept = None, "", []
    for number in tqdm(numbers, desc="actions", unit="episode", disable=not progress or len(numbers) < 100):
        actions = np.asarray(found.actions(number))
        if not len(actions):
            continue
        if actions.dtype.kind not in "fiub" or (actions.dtype.kind == "f" and not np.isfinite(actions).all()):
            raise ValueError(f"actions of episode {number} must be finite numbers, got {actions.dtype}")
        if shape is not None and actions.shape[1:] != shape:
            raise ValueError(
                f"actions of episode {number} must have shape (time, {shape}) as before, got {actions.shape}"
            )
        shape, kind = actions.shape[1:], "f" if "f" in (kind, actions.dtype.kind) else "i"
        ends = actions.min(0), actions.max(0)
        least = ends[0] if least is None else np.minimum(least, ends[0])
        greatest = ends[1] if greatest is None else np.maximum(greatest, ends[1])
        kept.append(number)
    if not kept:
        return spaces.Discrete(1), []
    if kind == "i" and int(np.prod(shape or (1,))) == 1:
        if low is not None or high is not None:
            raise ValueError("low and high are limits of continuous actions, these are choices")
        first = min(int(np.min(least)), 0)
        return spaces.Discrete(int(np.max(greatest)) - first + 1, start=first), kept
    shape = shape or (1,)
    bounds = [
        np.asarray(seen if given is None else given, np.float32).reshape(-1)
        for given, seen in ((low, least), (high, greatest))
    ]
    size = int(np.prod(shape))
    if any(len(bound) not in (1, size) for bound in bounds):
        raise ValueError(f"low and high must be 1 number or {size}, got {[len(bound) for bound in bounds]}")
    bottom, top = (np.broadcast_to(bound, (size,)).copy() for bound in bounds)
    if low is None and high is None:
        top[top == bottom] += 1  # a number that never changed: a space needs room
    if not (bottom < top).all():
        raise ValueError(f"low must be below high, got {bottom.tolist()} and {top.tolist()}")
    if low is not None or high is not None:
        outside = (np.reshape(least, -1) < bottom - 1e-6) | (np.reshape(greatest, -1) > top + 1e-6)
        if outside.any():
            raise ValueError(
                f"recorded actions lie beyond the limits: number {int(np.flatnonzero(outside)[0])} goes from "
                f"{np.reshape(least, -1)[outside][0]:g} to {np.reshape(greatest, -1)[outside][0]:g}"
            )
    return spaces.Box(bottom.reshape(shape), top.reshape(shape), dtype=np.float32), kept


def _check_alike(found: gym.Space[Any], wanted: gym.Space[Any]) -> None:
    """Refuse recorded actions of another kind than those of a space, or choices that it does not have."""
    is_alike = isinstance(found, spaces.Box) and isinstance(wanted, spaces.Box) and found.shape == wanted.shape
    if isinstance(found, spaces.Discrete) and isinstance(wanted, spaces.Discrete):
        is_alike = found.start >= wanted.start and found.start + found.n <= wanted.start + wanted.n
    if not is_alike:
        raise ValueError(f"recorded actions must lie in {wanted}, those that were found are of {found}")


def _observation_space(frames: Any, name: str) -> spaces.Space[Any]:
    if isinstance(frames, Frames):
        return spaces.Dict({key: _observation_space(part, name) for key, part in frames.parts.items()})
    if frames.dtype == np.uint8:
        return spaces.Box(0, 255, frames.shape[1:], np.uint8)
    if frames.ndim != 2:
        raise ValueError(f"{name}: vectors must be (time, number), got {frames.dtype} of shape {frames.shape}")
    return spaces.Box(-np.inf, np.inf, frames.shape[1:], np.float32)
