"""The baseline that a world has to beat: a plain convolutional network that predicts the next frame, and no more.

It sees the last `past` frames and the action, and adds a residual to the last frame; it is fitted to the squared error
of one step, and rolls out on its own float frames. What is uncertain it blurs: the squared error asks for the mean of
the futures. So it is hard to beat in PSNR, and says nothing of what may happen.

    next = last + U-Net(frames - mean frame, action)

The network is a U-Net on cells of pixels (at most 8 x 8 of them), three scales deep, with the action in every residual
block as a scale and a shift of its channels (FiLM).

Tried on Reacher (64 x 64 pixels, 50 seconds on one core, one seed, 64 held-out clips; PSNR in dB at horizons 1, 4 and
16; copying gives 20.6, 19.0, 19.1), with 160 channels at the coarsest scale:

    as it is                         24.9  21.7  21.3
    batches of 8 instead of 16       25.1  21.6  21.1
    and noise on the frames it sees  24.9  21.8  21.5
    batch normalization              25.1  21.5  20.9
    and 2.5 times the learning rate  25.2  21.6  20.6

They differ by little; the plainest stayed.

References:
    Ronneberger, Fischer, Brox: U-Net (2015), arXiv:1505.04597.
    Perez et al.: FiLM, visual reasoning with a general conditioning layer (2018), arXiv:1709.07871.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.actions import ActionEncoder
from worldflow.checkpoint import from_plain, to_plain
from worldflow.codec import to_float, to_uint8
from worldflow.data import Dataset
from worldflow.excerpts import Excerpts
from worldflow.fingerprint import fingerprint
from worldflow.fit import Stage, fit
from worldflow.log import NoLog
from worldflow.types import ActionSpec
from worldflow.weights import load_weights, read_weights, write_weights

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped, UInt8

__all__ = ["FramePredictor", "PredictorConfig", "fit_predictor"]

PREDICTOR = Stage(name="predictor", headline="predictor/psnr", rate="predictor/frames_per_second")
GRID = 16
"""Cells on a side of the finest scale, where cells of at most `LARGEST_CELL` pixels allow it."""
LARGEST_CELL = 8
"""Pixels on a side of a cell, at most."""
BATCH = 16
"""Windows of a step."""
LEARNING_RATE = 2e-3


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """Sizes of a predictor, saved with its weights."""

    frame_shape: tuple[int, int, int]
    """Row, column, channel."""
    action: ActionSpec
    """What an action is."""
    past: int = 4
    """Frames that are seen."""
    widths: tuple[int, int, int] = (48, 96, 140)
    """Channels at each scale, from the finest."""

    def __post_init__(self) -> None:
        if self.past < 1:
            raise ValueError(f"past must be at least 1 frame, got {self.past}")
        if min(self.frame_shape[:2]) < 1:
            raise ValueError(f"frame_shape must be (row, column, channel), got {self.frame_shape}")

    @property
    def cell(self) -> int:
        """Pixels on a side of a cell of the finest scale."""
        return min(LARGEST_CELL, math.ceil(max(self.frame_shape[:2]) / GRID))


class _Block(nn.Module):
    """Two convolutions beside the identity, with the action between them."""

    def __init__(self, width: int, condition_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(condition_dim, 2 * width)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        h = self.first(F.relu(x))
        return x + self.last(F.relu(h * (1 + scale) + shift))


class FramePredictor(nn.Module):
    """Predicts the next frame from the last few and the action.

    Args:
        config: Sizes.

    Attributes:
        fingerprint: Of the training episodes it was fitted on (`worldflow.fingerprint`); empty before.
        seconds: How long it was fitted.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.fingerprint, self.seconds = "", 0.0
        rows, columns, channels = config.frame_shape
        fine, middle, coarse = config.widths
        pixels, condition = channels * config.cell**2, 64
        self.actions = ActionEncoder(config.action)
        self.condition = nn.Sequential(
            nn.Linear(config.action.feature_dim, condition), nn.ReLU(), nn.Linear(condition, condition), nn.ReLU()
        )
        self.stem = nn.Conv2d(config.past * pixels, fine, 1)
        self.down = nn.ModuleList(
            (nn.Conv2d(fine, middle, 3, padding=1, stride=2), nn.Conv2d(middle, coarse, 3, padding=1, stride=2))
        )
        self.enter = nn.ModuleList(_Block(width, condition) for width in (fine, middle))
        self.deepest = nn.ModuleList(_Block(coarse, condition) for _ in range(2))
        self.up = nn.ModuleList((nn.Conv2d(middle, 4 * fine, 1), nn.Conv2d(coarse, 4 * middle, 1)))
        self.leave = nn.ModuleList(_Block(width, condition) for width in (fine, middle))
        self.out = nn.Conv2d(fine, pixels, 3, padding=1, bias=False)
        nn.init.zeros_(self.out.weight)  # to begin with, the last frame is copied
        self.register_buffer("mean_frame", torch.zeros(channels, rows, columns))
        self.mean_frame: Tensor

    def forward(
        self, pixels: Float[Tensor, "batch past channel row column"], actions: Shaped[Tensor, "batch *action"]
    ) -> Float[Tensor, "batch channel row column"]:
        """The next frame, in [-1, 1] but not held to it, from float frames and the action at the last of them."""
        condition = self.condition(self.actions(actions))
        last = pixels[:, -1]
        rows, columns = last.shape[-2:]
        side = 4 * self.config.cell  # the coarsest scale halves the grid twice
        x = F.pad(2 * (pixels - self.mean_frame).flatten(1, 2), (0, -columns % side, 0, -rows % side))
        x = self.stem(F.pixel_unshuffle(x, self.config.cell).contiguous(memory_format=torch.channels_last))
        passed = []
        for enter, down in zip(self.enter, self.down, strict=True):
            x = enter(x, condition)
            passed.append(x)
            x = down(F.relu(x))
        for block in self.deepest:
            x = block(x, condition)
        for leave, up, beside in zip(reversed(self.leave), reversed(self.up), reversed(passed), strict=True):
            x = leave(beside + F.pixel_shuffle(up(F.relu(x)), 2), condition)
        change = F.pixel_shuffle(self.out(F.relu(x)).float(), self.config.cell)
        return last + change[..., :rows, :columns]

    @torch.no_grad()
    def rollout(
        self,
        frames: UInt8[Tensor, "batch past+1 row column channel"],
        past_actions: Shaped[Tensor, "batch past *action"],
        actions: Shaped[Tensor, "batch future *action"],
        *,
        chunk: int = 64,
    ) -> UInt8[Tensor, "batch future row column channel"]:
        """Predict under given actions, each frame from the predictor's own frames before it, which stay floats.

        Args:
            frames: Recorded frames, at least one; the last few are used, and where they are too few the first is
                repeated.
            past_actions: Those between the recorded frames. The predictor does not use them; they are there, as in
                `WorldModel.imagine`, so that all predictors are asked in one way.
            actions: One for each frame to predict.
            chunk: Rollouts in one go.

        Raises:
            TypeError: If frames are not `uint8`.
            ValueError: If shapes do not fit.
        """
        shape, kind = self.config.frame_shape, self.config.action.shape
        if frames.dim() != 5 or 0 in frames.shape[:2] or tuple(frames.shape[2:]) != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"frames must have shape (batch, past + 1, {expected}), got {tuple(frames.shape)}")
        if tuple(past_actions.shape) != (len(frames), frames.shape[1] - 1, *kind):
            expected = ", ".join(map(str, (len(frames), frames.shape[1] - 1, *kind)))
            raise ValueError(f"past_actions must have shape ({expected}), got {tuple(past_actions.shape)}")
        if actions.dim() < 2 or actions.shape[1] < 1 or tuple(actions.shape) != (len(frames), actions.shape[1], *kind):
            expected = ", ".join(map(str, (len(frames), "future", *kind)))
            raise ValueError(f"actions must have shape ({expected}) with a future, got {tuple(actions.shape)}")
        device, past = self.mean_frame.device, self.config.past
        parts = []
        for part, todo in zip(frames.split(chunk), actions.split(chunk), strict=True):
            seen = to_float(part[:, -past:].to(device))
            seen = torch.cat((seen[:, :1].expand(-1, past - seen.shape[1], -1, -1, -1), seen), dim=1)
            predicted = []
            for action in todo.to(device).unbind(1):
                following = self(seen, action).clamp(-1, 1)
                predicted.append(to_uint8(following))
                seen = torch.cat((seen[:, 1:], following[:, None]), dim=1)
            parts.append(torch.stack(predicted, dim=1))
        return torch.cat(parts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the predictor to one safetensors file, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        header = {"config": to_plain(self.config), "fingerprint": self.fingerprint, "seconds": self.seconds}
        return write_weights(path, self, kind="frame predictor", header=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> FramePredictor:
        """Read a predictor that `save` wrote. Compare its `fingerprint` with the data set's before trusting it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged or something else.
        """
        header, tensors = read_weights(path, kind="frame predictor")
        predictor = FramePredictor(from_plain(PredictorConfig, header["config"]))
        load_weights(predictor, tensors, path=path)
        predictor.fingerprint, predictor.seconds = header["fingerprint"], header["seconds"]
        return predictor.requires_grad_(False).eval()


def fit_predictor(
    dataset: Dataset,
    *,
    minutes: float,
    seed: int = 0,
    progress: bool = True,
    clock: Callable[[], float] = time.monotonic,
    device: torch.device | str = "cpu",
) -> FramePredictor:
    """Fit a predictor to the training episodes of a data set.

    Args:
        dataset: The data set.
        minutes: Minutes to take, counted as those of a world's training: by the same loop (`worldflow.fit`), without
            the reading of the data before it.
        seed: Of the weights and of the choice of frames.
        progress: Show a progress bar.
        clock: Tells seconds, from any beginning.
        device: Where to compute.

    Returns:
        The predictor, on `device`, with the data set's fingerprint.

    Raises:
        ValueError: If `minutes` is not above 0.
    """
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}; give as many as the world was trained for")
    generator = torch.Generator().manual_seed(seed)
    excerpts = Excerpts.read(dataset, generator=generator)
    config = PredictorConfig(frame_shape=dataset.spec.image_shape, action=dataset.spec.action)
    with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
        torch.manual_seed(seed)
        predictor = FramePredictor(config)
    some = excerpts.frames[torch.randperm(len(excerpts.frames), generator=generator)[:2048]]
    predictor.mean_frame.copy_(to_float(some).mean(0))
    if not config.action.is_discrete:
        taken = excerpts.actions.double().flatten(1)
        predictor.actions.mean.copy_(taken.mean(0))
        predictor.actions.std.copy_(taken.std(0, correction=0).clamp(min=1e-6))
    predictor.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def batch_loss() -> tuple[Tensor, dict[str, Tensor]]:
        index, _ = excerpts.sample(BATCH, past=config.past - 1, future=2, generator=generator)
        pixels = to_float(excerpts.frames[index].to(device))
        actions = excerpts.actions[index[:, config.past - 1]].to(device)
        error = (predictor(pixels[:, :-1], actions) - pixels[:, -1]).square().mean()
        return error, {"predictor/psnr": 10 * torch.log10(4 / error.detach())}

    begin = clock()
    fit(
        predictor.train(),
        batch_loss,
        NoLog(),
        stage=PREDICTOR,
        steps=0,
        minutes=minutes,
        learning_rate=LEARNING_RATE,
        weight_decay=1e-3,
        clip_norm=1.0,
        items=BATCH,
        device=torch.device(device),
        start=None,
        look=None,
        look_every=float("inf"),
        save=lambda state: None,
        save_every=float("inf"),
        progress=progress,
        clock=clock,
    )
    predictor.seconds = clock() - begin
    predictor.fingerprint = fingerprint(dataset, "train")
    return predictor.requires_grad_(False).eval()
