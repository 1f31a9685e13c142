"""Object permanence: what stands still while an episode lasts must stand where it stood.

A goal, a target, a wall's color: some of a scene differs between episodes and never changes within one. It is found
without being told what it is, once in the recorded state and once in the pixels:

- coordinates of the state that are constant within every episode and differ between episodes;
- pixels of an episode that hardly change over its time, and differ from the same pixels of most other episodes.

The pixels are the *still object* of that episode, `e` on a mask `M`, against the background `b`, which is the median of
episodes. In a frame `x`, two numbers say what has become of it:

    presence     = <x - b, e - b>_M / <e - b, e - b>_M          1 while it stands there, 0 where it has vanished
    displacement = argmin_d |x(. + d) - e|^2_M                  in pixels, how far it is where it is seen best

Real frames are measured the same way and stand beside the imagined ones: something may pass in front of the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from worldflow.data import Dataset

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Float64, UInt8
    from torch import Tensor

__all__ = ["Permanence", "StillObject", "find_background", "find_object", "permanent_coordinates"]

STILL = 10
"""Gray levels within which a pixel stays, for the middle 80 % of an episode's frames, to count as still."""
DISTINCT = 24
"""Gray levels by which it must differ from the background."""
NUM_PIXELS_MIN = 4
REACH = 8
"""Pixels around its place in which a displaced object is looked for."""


@dataclass(frozen=True, kw_only=True)
class StillObject:
    """What is still in one episode and differs from other episodes.

    Args:
        frame: The episode's median frame.
        mask: The object's pixels.
    """

    frame: Float32[np.ndarray, "row column channel"]
    mask: Bool[np.ndarray, "row column"]


@dataclass(frozen=True, kw_only=True)
class Permanence:
    """What became of the still object in each frame.

    Args:
        presence: 1 where the object is as it was, 0 where the background is seen instead.
        displacement: Pixels from where it stood to where it is seen best.
    """

    presence: Float64[np.ndarray, "clip time"]
    displacement: Float64[np.ndarray, "clip time"]


def find_background(dataset: Dataset, *, num_episodes: int = 48, num_frames: int = 24) -> np.ndarray:
    """The median, over training episodes spread evenly, of their median frames `float32 (row, column, channel)`."""
    episodes = dataset.episodes("train")
    chosen = episodes[np.unique(np.linspace(0, len(episodes) - 1, num_episodes).round().astype(int))]
    medians = []
    for number in chosen:
        frames = dataset.frames(int(number), 0, int(dataset.lengths[number]) + 1)
        medians.append(np.median(frames[:: max(1, len(frames) // num_frames)], axis=0))
    return np.median(np.stack(medians), axis=0).astype(np.float32)


def find_object(frames: UInt8[np.ndarray, "time row column channel"], background: np.ndarray) -> StillObject | None:
    """The still object of an episode, or None if it has none.

    Args:
        frames: All frames of the episode.
        background: As `find_background` gives it.
    """
    frame = np.median(frames, axis=0).astype(np.float32)
    low, high = np.quantile(frames, [0.1, 0.9], axis=0)
    is_still = ((high - low) <= STILL).all(axis=-1)
    mask = is_still & (np.abs(frame - background) > DISTINCT).any(axis=-1)
    if mask.sum() < NUM_PIXELS_MIN:
        return None
    return StillObject(frame=frame, mask=mask)


def follow_object(
    found: StillObject, frames: UInt8[Tensor, "time row column channel"], background: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Presence and displacement of one episode's still object in frames of any number.

    Returns:
        Presence `(time,)`; displacement in pixels `(time,)`, at most `REACH` in each direction, to a fraction of a
        pixel.
    """
    x = frames.cpu().float()
    delta = torch.from_numpy((found.frame - background) * found.mask[..., None])
    presence = ((x - torch.from_numpy(background)) * delta).sum((1, 2, 3)) / delta.square().sum()
    # A ring of background around the object says where it ends.
    mask = F.max_pool2d(torch.from_numpy(found.mask).float()[None, None], 3, 1, 1)[0, 0]
    rows, columns = (torch.nonzero(mask.sum(axis)).flatten() for axis in (1, 0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    weight = mask[top:bottom, left:right].expand(x.shape[-1], -1, -1)[None]
    template = torch.from_numpy(found.frame).permute(2, 0, 1)[None, :, top:bottom, left:right] * weight
    padded = F.pad(x.permute(0, 3, 1, 2), (REACH,) * 4, mode="replicate")
    window = padded[:, :, top : bottom + 2 * REACH, left : right + 2 * REACH]
    # |x - e|^2 on the mask at every displacement, up to the constant |e|^2
    error = F.conv2d(window.square(), weight) - 2 * F.conv2d(window, template)
    return presence.double().numpy(), _lowest(error[:, 0].double().numpy())


def permanent_coordinates(
    states: list[Float64[np.ndarray, "time state"]], *, tolerance: float = 1e-6
) -> Bool[np.ndarray, " state"]:
    """Which coordinates of the state are constant within every episode and differ between episodes.

    Args:
        states: Recorded states of several episodes.
        tolerance: Share of the standard deviation over all episodes that counts as no change.
    """
    std = np.concatenate(states).std(axis=0)
    within = np.max([np.ptp(state, axis=0) for state in states], axis=0)
    return (std > 1e-9) & (within <= tolerance * std)


def _lowest(error: Float64[np.ndarray, "time row column"]) -> Float64[np.ndarray, " time"]:
    """Distance from the middle of each table to its lowest entry, refined by a parabola along both axes."""
    T, R, C = error.shape
    # Of equally good places the nearest: nothing is farther than it must be.
    row, column = np.meshgrid(np.arange(R) - R // 2, np.arange(C) - C // 2, indexing="ij")
    order = np.argsort(row.ravel() ** 2 + column.ravel() ** 2, kind="stable")
    best = order[np.argmin(error.reshape(T, -1)[:, order], axis=1)]
    i, j = np.divmod(best, C)
    time = np.arange(T)
    places = []
    for at, size, pick in ((i, R, lambda k: error[time, k, j]), (j, C, lambda k: error[time, i, k])):
        before, here, after = pick(np.maximum(at - 1, 0)), pick(at), pick(np.minimum(at + 1, size - 1))
        curvature = before - 2 * here + after
        is_inside = (at > 0) & (at < size - 1) & (curvature > 0)
        step = np.divide(0.5 * (before - after), curvature, out=np.zeros(T), where=is_inside)
        places.append(at - size // 2 + np.clip(step, -0.5, 0.5))
    return np.hypot(*places)
