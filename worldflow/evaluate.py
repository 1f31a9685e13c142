"""Hold imagined futures against real ones: same past, same actions, episodes that were never trained on.

Every measure stands beside a baseline that anybody could write down: the last seen frame, copied, for pictures; the
mean of the training rewards for rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldflow.data import Dataset, gather
from worldflow.index import window_index
from worldflow.metrics import Curve, psnr_curve
from worldflow.types import Clip, Dream

if TYPE_CHECKING:
    from worldflow.world import WorldModel

__all__ = ["RewardError", "RolloutReport", "held_out_clips", "imagine_clips", "rollout_report"]


@dataclass(frozen=True, kw_only=True)
class RewardError:
    """Root-mean-square error of the reward over all rollouts and horizons, in the reward's own units."""

    model: float
    constant: float


@dataclass(frozen=True, kw_only=True)
class RolloutReport:
    """Open-loop rollouts on held-out clips.

    Args:
        clips: The recorded clips.
        past: Transitions of each clip that were given; the rest was imagined.
        dream: What was imagined.
        model, copy_last: PSNR in dB over the horizon, with 95 % bootstrap intervals over clips.
        reward: Error of the expected reward.
    """

    clips: Clip
    past: int
    dream: Dream
    model: Curve
    copy_last: Curve
    reward: RewardError


def held_out_clips(dataset: Dataset, *, past: int, horizon: int, num_clips: int, seed: int = 0) -> Clip:
    """Whole windows of held-out episodes, ends of episodes included, in a random order that `seed` fixes.

    Args:
        dataset: The data set.
        past: Transitions before the last given frame.
        horizon: Transitions after it.
        num_clips: At most so many windows; they may overlap where episodes are few.
        seed: Of the choice.

    Raises:
        ValueError: If no held-out episode is long enough.
    """
    lengths = np.asarray(dataset.lengths, dtype=np.int64)
    length = past + horizon
    episodes = dataset.episodes("held_out")
    long_enough = episodes[lengths[episodes] >= length]
    if len(long_enough) == 0:
        raise ValueError(
            f"no held-out episode has {length} transitions ({past} past, {horizon} ahead); the longest has "
            f"{int(lengths[episodes].max()) if len(episodes) else 0}: shorten the horizon or record longer episodes"
        )
    room = int((lengths[long_enough] - length + 1).sum())
    index = window_index(lengths, length, stride=max(1, room // (2 * num_clips)), episodes=long_enough)
    order = np.random.default_rng(seed).permutation(len(index))[:num_clips]
    return gather(dataset, index[order], length)


def imagine_clips(
    world: WorldModel,
    clips: Clip,
    *,
    past: int,
    num_samples: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Dream:
    """Imagine each clip's transitions from `past` on, under its recorded actions."""
    return world.imagine(
        clips.frames[:, : past + 1],
        clips.actions[:, :past],
        clips.actions[:, past:],
        num_samples=num_samples,
        temperature=temperature,
        generator=generator,
    )


def rollout_report(
    world: WorldModel,
    dataset: Dataset,
    *,
    horizon: int = 16,
    num_clips: int = 64,
    num_samples: int = 1,
    seed: int = 0,
) -> RolloutReport:
    """Measure open-loop rollouts on held-out clips.

    Args:
        world: The world.
        dataset: The data set it was trained on, whose held-out episodes are used, or another one.
        horizon: Transitions to imagine.
        num_clips: Held-out clips.
        num_samples: Futures of each clip; errors are averaged over them, frames never are.
        seed: Of the choice of clips and of the imagination.
    """
    past = world.config.flow.window - 1
    clips = held_out_clips(dataset, past=past, horizon=horizon, num_clips=num_clips, seed=seed)
    dream = imagine_clips(
        world, clips, past=past, num_samples=num_samples, generator=torch.Generator().manual_seed(seed)
    )
    real = clips.frames[:, past + 1 :]
    rewards = clips.rewards[:, past:]
    train = np.concatenate([dataset.episode(int(i)).rewards for i in dataset.episodes("train")])
    error = dream.reward_means.mean(0).cpu() - rewards
    return RolloutReport(
        clips=clips,
        past=past,
        dream=dream,
        model=psnr_curve(real, dream.frames.cpu()),
        copy_last=psnr_curve(real, clips.frames[:, past : past + 1]),
        reward=RewardError(
            model=float(error.square().mean().sqrt()),
            constant=float((rewards - float(train.mean())).square().mean().sqrt()),
        ),
    )
