"""Do long rollouts stay where real frames are?

Distance of a frame from the recorded ones: frames are shrunk to at most 16 by 16 pixels by averaging, so that the
distance is about what is where and not about single pixels; then the root-mean-square difference, in gray levels, to
each of the `k` nearest frames of a bank of training frames, averaged over the `k`. Held-out real frames are not in the
bank either, so their distance is what a perfect model would reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from worldflow.data import Dataset
from worldflow.types import Clip

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Shaped, UInt8

    from worldflow.world import WorldModel

__all__ = ["FrameBank", "long_actions", "roll_long", "training_frames"]

SIDE = 16


class FrameBank:
    """Training frames to be near to.

    Args:
        frames: `uint8 (frame, row, column, channel)`.
        num_nearest: `k`.

    Raises:
        ValueError: If there are fewer frames than `num_nearest`.
    """

    def __init__(self, frames: UInt8[np.ndarray, "frame row column channel"], *, num_nearest: int = 3) -> None:
        if len(frames) < num_nearest:
            raise ValueError(f"a bank needs at least {num_nearest} frames, got {len(frames)}")
        self.num_nearest = num_nearest
        self._bank = _shrink(torch.from_numpy(frames))

    def __len__(self) -> int:
        return len(self._bank)

    @staticmethod
    def of(dataset: Dataset, *, num_frames: int = 4000, seed: int = 0, num_nearest: int = 3) -> FrameBank:
        """A bank of at most so many training frames, spread over all episodes in pairs of neighbors."""
        generator = torch.Generator().manual_seed(seed)
        return FrameBank(training_frames(dataset, num_frames, generator=generator), num_nearest=num_nearest)

    def distance(
        self, frames: UInt8[Tensor, "*batch row column channel"], *, chunk: int = 1024
    ) -> Float64[np.ndarray, "*batch"]:
        """Distance of frames from the bank, in gray levels."""
        flat = _shrink(frames.reshape(-1, *frames.shape[-3:]))
        parts = [
            torch.cdist(part, self._bank).topk(self.num_nearest, dim=1, largest=False).values.mean(1)
            for part in flat.split(chunk)
        ]
        return (torch.cat(parts) / flat.shape[1] ** 0.5).reshape(frames.shape[:-3]).double().numpy()


def training_frames(
    dataset: Dataset, num_frames: int, *, generator: torch.Generator
) -> UInt8[np.ndarray, "frame row column channel"]:
    """At most so many frames of training episodes, in pairs of neighbors at random places, or all there are.

    Args:
        dataset: The data set.
        num_frames: How many.
        generator: Where the places come from.
    """
    episodes = dataset.episodes("train")
    pairs = [(int(e), at) for e in episodes for at in range(0, int(dataset.lengths[e]), 2)]
    chosen = torch.randperm(len(pairs), generator=generator)[: max(1, num_frames // 2)].tolist()
    return np.concatenate([dataset.frames(e, at, at + 2) for e, at in (pairs[k] for k in sorted(chosen))])


def long_actions(
    dataset: Dataset, *, num_rollouts: int, num_steps: int, seed: int = 0
) -> Shaped[Tensor, "rollout step *action"]:
    """Actions for rollouts longer than episodes: recorded held-out ones, episode behind episode, in random order."""
    episodes = dataset.episodes("held_out")
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rollouts):
        parts, num = [], 0
        while num < num_steps:
            actions, _, _ = dataset.outcomes(int(draw.choice(episodes)))
            parts.append(actions)
            num += len(actions)
        rows.append(np.concatenate(parts)[:num_steps])
    return torch.from_numpy(np.stack(rows))


def roll_long(
    world: WorldModel,
    clips: Clip,
    actions: Shaped[Tensor, "rollout step *action"],
    bank: FrameBank,
    *,
    past: int,
    generator: torch.Generator,
    keep_every: int = 5,
    progress: bool = True,
) -> tuple[
    Float64[np.ndarray, "rollout step"],
    Bool[np.ndarray, "rollout step"],
    UInt8[np.ndarray, "rollout kept row column channel"],
]:
    """Step a world for long and measure every frame.

    Args:
        world: The world.
        clips: Whose first `past + 1` frames are the past, one clip a rollout.
        actions: What is done.
        bank: Measures.
        past: Transitions before the last given frame.
        generator: Draws the futures.
        keep_every: Every so-manieth frame is returned, to be looked at.
        progress: Show a progress bar where it takes more than two seconds.

    Returns:
        Distances in gray levels; whether no earlier transition had terminated (the world imagines on, but nothing says
        that recorded episodes go where it then goes); and some frames.
    """
    state = world.start(clips.frames[:, : past + 1], clips.actions[:, :past], generator=generator)
    distances, alive, kept = [], [], []
    is_alive = torch.ones(len(actions), dtype=torch.bool)
    bar = tqdm(range(actions.shape[1]), desc="long", unit="step", delay=2, disable=not progress)
    for step in bar:
        transition, state = world.step(state, actions[:, step], generator=generator)
        assert transition.frame is not None
        frame = transition.frame.cpu()
        distances.append(bank.distance(frame))
        alive.append(is_alive.numpy())
        is_alive = is_alive & ~transition.terminated.cpu()
        if (step + 1) % keep_every == 0:
            kept.append(frame.numpy())
    frames = np.stack(kept, axis=1) if kept else np.zeros((len(actions), 0, *clips.frames.shape[2:]), np.uint8)
    return np.stack(distances, axis=1), np.stack(alive, axis=1), frames


def _shrink(frames: Tensor) -> Tensor:
    """Frames as rows of at most `SIDE * SIDE * channel` gray levels."""
    pixels = frames.cpu().float().permute(0, 3, 1, 2)
    rows, columns = pixels.shape[-2:]
    if max(rows, columns) > SIDE:
        scale = SIDE / max(rows, columns)
        pixels = F.adaptive_avg_pool2d(pixels, (max(1, round(scale * rows)), max(1, round(scale * columns))))
    return pixels.flatten(1)
