"""A probe of the physics: reads the simulator's state from frames, so that imagined motion can be held against the law.

The probe is a small network, fitted by least squares on recorded frames and the state recorded with them in
`info["state"]`. It reads the state at time `t` from `view` frames, `t - view + 1 .. t`, because velocities cannot be
seen in one. Its error on real frames is its own; what exceeds it on imagined frames is the imagination's.

Every frame becomes one feature vector, from places as well as contents: soft keypoints (the mean position under a
softmax over the grid) and a small map, flattened. The head sees the last vector, the changes within the view, and
products of them: with the sine and cosine of an angle in each frame, its velocity is bilinear,
`sin(b - a) = sin(b) cos(a) - cos(b) sin(a)`. In training half of the clips are blurred and made noisy
(`worldflow.degrade`), so that slight faults of imagined frames do not count as errors of motion.

Measured on held-out episodes of Reacher (64 x 64 pixels), 100 seconds on one core, in the states' standard deviations:
cosines and sines of the angles 0.04 to 0.06, the target's place 0.05, angular velocities 0.09 and 0.19, 0.08 over all;
the same with noise of 30 dB and with a blur of 0.7 pixels.

Reference:
    Finn et al.: Deep spatial autoencoders for visuomotor learning (2016), arXiv:1509.06113, for soft keypoints.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.checkpoint import from_plain, to_plain
from worldflow.codec import to_float
from worldflow.data import Dataset
from worldflow.degrade import degraded
from worldflow.episodes import recorded_state
from worldflow.excerpts import Excerpts
from worldflow.fingerprint import fingerprint
from worldflow.fit import Stage, fit
from worldflow.log import NoLog
from worldflow.weights import load_weights, read_weights, write_weights

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, UInt8
    from numpy.typing import ArrayLike

__all__ = ["ProbeConfig", "ProbeError", "StateProbe", "fit_probe", "probe_error"]

PROBE = Stage(name="probe", headline="probe/error", rate="probe/frames_per_second")
STEPS = 1600
"""Steps of a fit unless told otherwise: about two minutes on one core."""
LEARNING_RATE = 3e-3
MIN_STD = 1e-6
"""Coordinates of the state that vary less are taken for constants."""
MOST_BYTES = 2**29
"""Bytes of frames that are kept in memory while fitting, about."""
CLIPS, TARGETS = 8, 6
"""Clips of a batch, and consecutive states read from each, which share their frames' features."""
GRID = 16
"""Cells on a side of the finest grid."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Sizes of a probe, saved with its weights."""

    frame_shape: tuple[int, int, int]
    """Row, column, channel."""
    state_dim: int
    """Coordinates of the recorded state, constant ones included."""
    num_kept: int
    """Coordinates that are read."""
    view: int = 3
    """Frames that are seen for each state."""
    width: int = 32
    """Channels of the convolutions."""
    keypoints: int = 32
    """Soft keypoints of a frame."""
    feature_dim: int = 128
    """Length of the vector of the flattened map."""
    hidden_dim: int = 256
    """Width of the head."""

    def __post_init__(self) -> None:
        if self.view < 1:
            raise ValueError(f"view must be at least 1 frame, got {self.view}")
        if not 1 <= self.num_kept <= self.state_dim:
            raise ValueError(f"num_kept must be from 1 to the state's {self.state_dim}, got {self.num_kept}")


class StateProbe(nn.Module):
    """Reads the simulator's state from frames.

    Args:
        config: Sizes.

    Attributes:
        mean, std: Of the training episodes' state, `(state,)`, constant coordinates included.
        kept: Which coordinates are read, `(kept,)`, ascending.
        fingerprint: Of the training episodes it was fitted on (`worldflow.fingerprint`); empty before.
    """

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.fingerprint = ""
        rows, columns, channels = config.frame_shape
        # Whatever the frame's size, convolutions work on at most 16 x 16 cells; pixels inside a cell are its channels.
        self.cell = math.ceil(max(rows, columns) / GRID)
        grid = [2 * math.ceil(side / (2 * self.cell)) for side in (rows, columns)]  # even, as it is halved once
        width = config.width
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(self.cell),
            nn.Conv2d(channels * self.cell**2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.heat = nn.Conv2d(width, config.keypoints, 1)
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
        )
        self.flat = nn.Linear(width * grid[0] * grid[1] // 4, config.feature_dim)
        self.frame = nn.Sequential(
            nn.Linear(2 * config.keypoints + config.feature_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, config.feature_dim),
        )
        seen = config.view * config.feature_dim
        self.left, self.right = (nn.Linear(seen, config.hidden_dim) for _ in range(2))
        self.head = nn.Sequential(
            nn.Linear(seen + config.hidden_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, config.num_kept),
        )
        self.register_buffer("mean", torch.zeros(config.state_dim, dtype=torch.float64))
        self.register_buffer("std", torch.ones(config.state_dim, dtype=torch.float64))
        self.register_buffer("kept", torch.arange(config.num_kept))
        self.register_buffer("mean_frame", torch.zeros(channels, rows, columns))
        rows_at, columns_at = (torch.linspace(-1, 1, size) for size in grid)
        place = torch.stack(torch.meshgrid(rows_at, columns_at, indexing="ij"), dim=-1).reshape(-1, 2)
        self.register_buffer("place", place, persistent=False)
        self._grid = grid
        self.mean: Tensor
        self.std: Tensor
        self.kept: Tensor
        self.mean_frame: Tensor
        self.place: Tensor

    @property
    def view(self) -> int:
        """Frames that are seen for each state."""
        return self.config.view

    @torch.no_grad()
    def read(
        self, frames: UInt8[Tensor, "batch time row column channel"], *, chunk: int = 512
    ) -> Float32[Tensor, "batch time kept"]:
        """The state at each frame, from it and the `view - 1` frames before it.

        Frames before the first are taken to be copies of it. So to read imagined frames, put the last `view - 1` real
        ones in front of them and drop what is read there.

        Args:
            frames: At least one frame a row.
            chunk: Frames to look at in one go.

        Returns:
            The kept coordinates in the units they were recorded in, on the probe's device.

        Raises:
            TypeError: If frames are not `uint8`.
            ValueError: If their shape does not fit.
        """
        shape = self.config.frame_shape
        if frames.dim() != 5 or 0 in frames.shape[:2] or tuple(frames.shape[2:]) != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"frames must have shape (batch, time, {expected}), got {tuple(frames.shape)}")
        flat = frames.reshape(-1, *shape)
        parts = [self.features(to_float(part.to(self.mean_frame.device))) for part in flat.split(chunk)]
        features = torch.cat(parts).reshape(*frames.shape[:2], -1)
        past = features[:, :1].expand(-1, self.view - 1, -1)
        read = self.states(torch.cat((past, features), dim=1)).double()
        return (self.mean[self.kept] + self.std[self.kept] * read).float()

    def features(self, pixels: Tensor) -> Tensor:
        """Feature vectors `(frame, feature)` of float frames `(frame, channel, row, column)`."""
        x = 2 * (pixels - self.mean_frame)
        rows, columns = (side * self.cell for side in self._grid)
        x = F.pad(x, (0, columns - x.shape[-1], 0, rows - x.shape[-2]), mode="constant")
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        weight = self.heat(x).flatten(2).to(self.place.dtype).softmax(dim=-1)
        flat = F.relu(self.flat(self.coarse(x))).to(self.place.dtype)
        with torch.autocast(pixels.device.type, enabled=False):  # places need more than the eight bits of bf16
            return self.frame(torch.cat(((weight @ self.place).flatten(1), flat), dim=-1))

    def states(self, features: Tensor) -> Tensor:
        """Standardized states `(batch, time - view + 1, kept)` of `(batch, time, feature)`."""
        num = features.shape[1] - self.view + 1
        seen = [features[:, k : k + num] for k in range(self.view)]
        moved = [b - a for a, b in pairwise(seen)]
        x = torch.cat((*moved, seen[-1]), dim=-1)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(torch.cat((x, self.left(x) * self.right(x)), dim=-1))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the probe to one safetensors file, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        header = {"config": to_plain(self.config), "fingerprint": self.fingerprint}
        return write_weights(path, self, kind="state probe", header=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> StateProbe:
        """Read a probe that `save` wrote. Compare its `fingerprint` with the data set's before trusting it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or something else.
        """
        header, tensors = read_weights(path, kind="state probe")
        probe = StateProbe(from_plain(ProbeConfig, header["config"]))
        load_weights(probe, tensors, path=path)
        probe.fingerprint = header["fingerprint"]
        return probe.requires_grad_(False).eval()


@dataclass(frozen=True, kw_only=True)
class ProbeError:
    """How far states read from frames lie from the true ones, in units of each coordinate's standard deviation.

    Args:
        squared: Squared error of every rollout, time and kept coordinate. Average it, then take the root; `overall` is
            its mean over coordinates, ready to be resampled over rollouts.
    """

    squared: Float64[np.ndarray, "rollout time kept"]

    @property
    def overall(self) -> Float64[np.ndarray, "rollout time"]:
        """Squared error, averaged over coordinates."""
        return self.squared.mean(axis=-1)

    @property
    def rms(self) -> float:
        """Root of the mean squared error over rollouts, times and coordinates."""
        return float(np.sqrt(self.squared.mean()))

    @property
    def coordinates(self) -> Float64[np.ndarray, " kept"]:
        """Root-mean-square error of each kept coordinate, over rollouts and times."""
        return np.sqrt(self.squared.mean(axis=(0, 1)))


def probe_error(
    probe: StateProbe,
    frames: UInt8[Tensor, "rollout time row column channel"],
    states: ArrayLike | Tensor,
    *,
    chunk: int = 512,
) -> ProbeError:
    """Read states from frames and compare them with the true ones.

    Args:
        probe: The probe.
        frames: Real or imagined frames; see `StateProbe.read` for the frames before the first.
        states: The recorded state at each of these frames, `(rollout, time, state)`, constant coordinates included.
        chunk: Frames to look at in one go.

    Raises:
        ValueError: If shapes do not fit, or a state is not finite.
    """
    true = np.asarray(states.cpu() if isinstance(states, Tensor) else states, dtype=np.float64)
    expected = (*frames.shape[:2], probe.config.state_dim)
    if true.shape != expected:
        raise ValueError(
            f"states must have shape (rollout, time, state) = {expected} for these frames, got {true.shape}"
        )
    kept = probe.kept.cpu().numpy()
    true = true[..., kept]
    if not np.isfinite(true).all():
        raise ValueError("states hold NaN or infinite numbers in coordinates the probe reads; leave these rollouts out")
    error = (probe.read(frames, chunk=chunk).cpu().double().numpy() - true) / probe.std.cpu().numpy()[kept]
    return ProbeError(squared=np.square(error))


def fit_probe(
    dataset: Dataset,
    *,
    steps: int = STEPS,
    minutes: float | None = None,
    view: int = 3,
    seed: int = 0,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
    device: torch.device | str = "cpu",
) -> StateProbe:
    """Fit a probe to the training episodes of a data set.

    Args:
        dataset: The data set, with `info["state"]` recorded.
        steps: Steps to take, unless `minutes` is given.
        minutes: Minutes to take.
        view: Frames seen for each state.
        seed: Of the weights, the choice of frames and the noise. The same seed and steps give the same probe.
        progress: Show a progress bar.
        clock: Tells seconds, from any beginning.
        device: Where to compute.

    Returns:
        The probe, on `device`, with the data set's fingerprint.

    Raises:
        ValueError: If the state was not recorded, changes its width, or is constant; or if there is no time to fit.
    """
    if steps < 1 or (minutes is not None and not minutes > 0):
        raise ValueError(f"steps must be at least 1, and minutes above 0 or None, got {steps} and {minutes}")
    generator = torch.Generator().manual_seed(seed)
    excerpts = Excerpts.read(
        dataset,
        generator=generator,
        state_of=lambda episode, number: recorded_state(episode, where=f"episode {number} of {dataset.path}"),
        most_bytes=MOST_BYTES,
    )
    states = excerpts.states
    mean, std = states.mean(0), states.std(0)
    kept = np.flatnonzero(np.isfinite(states).all(0) & (std > MIN_STD))
    if len(kept) == 0:
        raise ValueError(
            f'no coordinate of info["state"] in {dataset.path} varies and is finite, so there is nothing to read; '
            "record the state of a simulator that moves"
        )
    config = ProbeConfig(frame_shape=dataset.spec.image_shape, state_dim=states.shape[1], num_kept=len(kept), view=view)
    with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
        torch.manual_seed(seed)
        probe = StateProbe(config)
    probe.mean.copy_(torch.from_numpy(np.where(np.isfinite(mean), mean, 0.0)))
    probe.std.copy_(torch.from_numpy(np.where(np.isfinite(std), std, 0.0)))
    probe.kept.copy_(torch.from_numpy(kept))
    some = excerpts.frames[torch.randperm(len(excerpts.frames), generator=generator)[:2048]]
    probe.mean_frame.copy_(to_float(some).mean(0))
    probe.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    target = torch.from_numpy(((states - mean) / np.where(std > 0, std, 1.0))[:, kept]).float()

    def batch_loss() -> tuple[Tensor, dict[str, Tensor]]:
        index, is_real = excerpts.sample(CLIPS, past=view - 1, future=TARGETS, generator=generator)
        pixels = degraded(to_float(excerpts.frames[index].to(device)), generator=generator)
        features = probe.features(pixels.flatten(0, 1)).reshape(*index.shape, -1)
        error = (probe.states(features) - target[index[:, view - 1 :]].to(device)).square().mean(-1)
        loss = (error * is_real.to(device)).sum() / is_real.sum()
        return loss, {"probe/error": loss.detach().sqrt()}

    fit(
        probe.train(),
        batch_loss,
        NoLog(),
        stage=PROBE,
        steps=steps,
        minutes=minutes,
        learning_rate=LEARNING_RATE,
        weight_decay=1e-4,
        clip_norm=1.0,
        items=CLIPS * (TARGETS + view - 1),
        device=torch.device(device),
        start=None,
        look=None,
        look_every=float("inf"),
        save=lambda state: None,
        save_every=float("inf"),
        progress=progress,
        clock=clock,
    )
    probe.fingerprint = fingerprint(dataset, "train")
    return probe.requires_grad_(False).eval()
