"""Rollouts much longer than the clips: how far from real frames do they go, and do they go on going?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldflow.data import Dataset
from worldflow.fidelity_curves import resampled_curve
from worldflow.fidelity_measures import Found
from worldflow.fidelity_types import COPY, DETERMINISTIC, REAL, WORLD, Measure, Number
from worldflow.manifold import FrameBank, long_actions, roll_long
from worldflow.metrics import Curve, bootstrap_interval
from worldflow.types import Clip
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

    from worldflow.predictor import FramePredictor

__all__ = ["LongRollouts", "roll"]

BLOCK = 10
"""Steps that a point of the curve averages over."""
SETTLED = 50
"""Steps after which the distance should be flat."""


@dataclass(frozen=True, kw_only=True)
class LongRollouts:
    """Measures of long rollouts, what was left out, and some of their frames."""

    found: Found
    left_out: Mapping[str, str]
    frames: UInt8[np.ndarray, "rollout kept row column channel"]
    every: int


def roll(
    world: WorldModel,
    dataset: Dataset,
    clips: Clip,
    *,
    predictor: FramePredictor | None,
    past: int,
    num_steps: int,
    seed: int,
    progress: bool = True,
) -> LongRollouts:
    """Imagine for long under recorded held-out actions, and measure the distance to real frames.

    Args:
        world: The world.
        dataset: Whose training frames are the real ones to be near to.
        clips: Their beginnings are the rollouts'.
        predictor: The deterministic baseline, or None.
        past: Transitions before the last given frame.
        num_steps: Steps to imagine.
        seed: Of actions and futures.
        progress: Show a progress bar.
    """
    bank = FrameBank.of(dataset, seed=seed)
    actions = long_actions(dataset, num_rollouts=len(clips.frames), num_steps=num_steps, seed=seed)
    every = max(1, num_steps // 100)
    distance, alive, frames = roll_long(
        world,
        clips,
        actions,
        bank,
        past=past,
        generator=torch.Generator().manual_seed(seed),
        keep_every=every,
        progress=progress,
    )
    left_out = {}
    blocks = _blocks(distance, alive)
    steps = BLOCK * np.arange(1, blocks.shape[2] + 1)
    enough = blocks[:, 1].astype(bool).sum(axis=0) >= max(1, -(-len(distance) // 4))
    last = int(np.argmin(enough)) if not enough.all() else len(enough)
    if last < len(enough):
        left_out["long rollouts to the end"] = (
            f"after {steps[last - 1] if last else 0} steps three quarters of the rollouts had terminated; what the "
            "world imagines beyond an end, no recording shows"
        )
    if last == 0:
        return LongRollouts(
            found=Found(measures={}, numbers={}, tables={}), left_out=left_out, frames=frames, every=every
        )
    blocks, steps = blocks[..., :last], steps[:last]
    curves = {WORLD: resampled_curve(blocks, _alive_mean)}
    if predictor is not None:
        predicted = predictor.rollout(clips.frames[:, : past + 1], clips.actions[:, :past], actions).cpu()
        theirs = bank.distance(predicted)
        curves[DETERMINISTIC] = resampled_curve(_blocks(theirs, np.ones_like(alive))[..., :last], _alive_mean)
    copied = bank.distance(clips.frames[:, past : past + 1]).repeat(num_steps, axis=1)
    curves[COPY] = resampled_curve(_blocks(copied, np.ones_like(alive))[..., :last], _alive_mean)
    curves[REAL] = _floor(dataset, bank, num=last)
    measure = Measure(
        title="Distance to real frames, long rollouts",
        unit="gray levels",
        best="low",
        about=f"Of frames shrunk to 16 by 16 pixels, to the {bank.num_nearest} nearest of {len(bank)} training frames, "
        f"averaged over {BLOCK} steps; actions are recorded ones, episode behind episode. `{REAL}`: held-out frames. "
        "Rollouts count until they draw a termination.",
        horizons=tuple(int(s) for s in steps),
        curves=curves,
    )
    numbers = {}
    settled, end = steps > SETTLED, steps > SETTLED + 0.8 * (steps[-1] - SETTLED)
    start = settled & (steps <= SETTLED + 0.2 * (steps[-1] - SETTLED) + BLOCK)
    if settled.sum() >= 3:

        def drift(rows: np.ndarray) -> float:
            means = _alive_mean(rows)
            return float(means[end].mean() - means[start].mean())

        low, high = bootstrap_interval(blocks, statistic=drift)
        numbers["long_drift"] = Number(
            title=f"drift away from real frames after {SETTLED} steps",
            value=drift(blocks),
            unit="gray levels",
            low=float(low),
            high=float(high),
            about="Distance in the last fifth minus distance in the first fifth of what follows; 0 stays where it is.",
        )
    return LongRollouts(
        found=Found(measures={"long": measure}, numbers=numbers, tables={}),
        left_out=left_out,
        frames=frames[:4],
        every=every,
    )


def _blocks(distance: np.ndarray, alive: np.ndarray) -> Float64[np.ndarray, "rollout 2 block"]:
    """Sums of distances and numbers of steps, over the steps of each block that count."""
    num = max(1, distance.shape[1] // BLOCK)
    size = min(BLOCK, distance.shape[1])
    shape = (len(distance), num, size)
    distance, alive = distance[:, : num * size].reshape(shape), alive[:, : num * size].reshape(shape)
    return np.stack(((distance * alive).sum(-1), alive.sum(-1)), axis=1).astype(np.float64)


def _alive_mean(rows: np.ndarray) -> np.ndarray:
    """Mean over the rollouts alive; where a resample has none, the last one it had."""
    total, count = rows.sum(axis=0)
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    known = np.maximum.accumulate(np.where(count > 0, np.arange(len(mean)), 0))
    mean = mean[known]
    return np.where(np.isfinite(mean), mean, np.nanmean(mean) if np.isfinite(mean).any() else 0.0)


def _floor(dataset: Dataset, bank: FrameBank, *, num: int) -> Curve:
    """The distance of held-out frames, the same at every step, with an interval over episodes."""
    means = []
    for number in dataset.episodes("held_out")[:64]:
        frames = dataset.frames(int(number), 0, int(dataset.lengths[number]) + 1)
        means.append(bank.distance(torch.from_numpy(frames[:: max(1, len(frames) // 50)])).mean())
    low, high = bootstrap_interval(np.array(means))
    flat = np.ones(num)
    return Curve(mean=float(np.mean(means)) * flat, low=float(low) * flat, high=float(high) * flat)
