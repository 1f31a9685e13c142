"""Hold imagined futures against real ones: same past, same actions, episodes that were never trained on.

Every measure stands beside a baseline that anybody could write down: the last seen frame, copied, for pictures; the
mean of the training rewards for rewards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldflow.data import Dataset, gather
from worldflow.frames import picture
from worldflow.metrics import Curve, psnr_curve
from worldflow.types import Clip, Dream

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from worldflow.world import WorldModel

__all__ = [
    "RewardError",
    "RolloutReport",
    "choose_horizon",
    "expected_reward",
    "held_out_clips",
    "imagine_clips",
    "other_actions",
    "rollout_report",
    "whole_clips",
]


@dataclass(frozen=True, kw_only=True)
class RewardError:
    """Root-mean-square error of the reward over all imagined transitions that exist, in the reward's own units."""

    model: float
    constant: float


@dataclass(frozen=True, kw_only=True)
class RolloutReport:
    """Open-loop rollouts on held-out clips.

    Args:
        clips: The recorded clips.
        past: Transitions of each clip that were given; the rest was imagined.
        dream: What was imagined.
        is_whole: Clips whose episode lasts to the last horizon. Pictures are compared on these, so that every horizon
            is an average over the same rollouts; rewards on all transitions that exist, so that an episode's end comes
            at every horizon.
        model, copy_last: PSNR in dB over the horizon, with 95 % bootstrap intervals over clips.
        reward: Error of the expected reward.
    """

    clips: Clip
    past: int
    dream: Dream
    is_whole: Bool[Tensor, " clip"]
    model: Curve
    copy_last: Curve
    reward: RewardError


def held_out_clips(dataset: Dataset, *, past: int, horizon: int, num_clips: int, seed: int = 0) -> Clip:
    """Windows that start anywhere in held-out episodes, in a random order that `seed` fixes.

    A window begins with at least `past` transitions and one more; where its episode ends before the horizon it is
    padded, and `valid` says so.

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
    starts = [(int(e), start) for e in dataset.episodes("held_out") for start in range(int(lengths[e]) - past)]
    if not starts:
        raise ValueError(
            f"no held-out episode has more than the {past} transitions that the world wants to see; "
            "record longer episodes, or train a world with a smaller window"
        )
    order = np.random.default_rng(seed).permutation(len(starts))[:num_clips]
    return gather(dataset, np.array(starts)[order], past + horizon)


def choose_horizon(dataset: Dataset, *, past: int, wanted: int) -> int:
    """The wanted horizon, or the longest one that at least a quarter of the held-out episodes has room for.

    Raises:
        ValueError: If no held-out episode has more than `past` transitions.
    """
    episodes = dataset.episodes("held_out")
    room = np.sort(np.asarray(dataset.lengths)[episodes] - past)[::-1]
    if len(room) == 0:
        raise ValueError(f"{dataset!r} has no held-out episode; record at least two episodes")
    if room[0] < 1:
        raise ValueError(
            f"no held-out episode has more than the {past} transitions that the world wants to see; "
            "record longer episodes, or train a world with a smaller window"
        )
    quarter = int(room[math.ceil(len(room) / 4) - 1])
    return min(wanted, quarter if quarter >= 1 else int(room[0]))


def whole_clips(dataset: Dataset, *, past: int, horizon: int, num_clips: int, seed: int = 0) -> Clip:
    """Held-out windows that last to the horizon, dealt evenly over the episodes that have room for one.

    Raises:
        ValueError: If there is none.
    """
    draw = np.random.default_rng(seed)
    length = past + horizon
    lengths = np.asarray(dataset.lengths)
    starts = {
        int(e): draw.permutation(lengths[e] - length + 1) for e in dataset.episodes("held_out") if lengths[e] >= length
    }
    if not starts:
        raise ValueError(f"no held-out episode lasts {length} steps; shorten the horizon or record longer episodes")
    order = draw.permutation(list(starts))
    rounds = max(len(each) for each in starts.values())
    index = [(e, starts[e][k]) for k in range(rounds) for e in order.tolist() if k < len(starts[e])]
    return gather(dataset, np.array(index[:num_clips]), length)


def other_actions(clips: Clip, *, past: int) -> Tensor | None:
    """Actions with those after `past` from another clip, of another episode where possible; None for a single clip."""
    B = len(clips.actions)
    if B < 2:
        return None
    shifts = [int((clips.episode.roll(k) != clips.episode).sum()) for k in range(1, B)]
    shift = 1 + int(np.argmax(shifts))
    return torch.cat((clips.actions[:, :past], clips.actions[:, past:].roll(shift, 0)), dim=1)


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
    num_clips: int = 96,
    num_samples: int = 1,
    seed: int = 0,
) -> RolloutReport:
    """Measure open-loop rollouts on held-out clips.

    Args:
        world: The world.
        dataset: The data set it was trained on, whose held-out episodes are used, or another one.
        horizon: Transitions to imagine.
        num_clips: Held-out clips.
        num_samples: Futures of each clip. Errors of frames are averaged over them, frames never are; the expected
            reward is.
        seed: Of the choice of clips and of the imagination.

    Raises:
        ValueError: If no held-out episode is long enough.
    """
    past = world.config.flow.window - 1
    clips = held_out_clips(dataset, past=past, horizon=horizon, num_clips=num_clips, seed=seed)
    valid = clips.valid[:, past:]
    is_whole = valid[:, -1]
    if not bool(is_whole.any()):
        raise ValueError(f"no held-out clip lasts {horizon} steps; shorten the horizon or record longer episodes")
    generator = torch.Generator().manual_seed(seed)
    dream = imagine_clips(world, clips, past=past, num_samples=num_samples, generator=generator)
    seen, imagined = picture(clips.frames)[is_whole], picture(dream.frames).cpu()[:, is_whole]
    real = seen[:, past + 1 :]
    train = np.concatenate([dataset.outcomes(int(i))[1] for i in dataset.episodes("train")])
    rewards = clips.rewards[:, past:]
    return RolloutReport(
        clips=clips,
        past=past,
        dream=dream,
        is_whole=is_whole,
        model=psnr_curve(real, imagined),
        copy_last=psnr_curve(real, seen[:, past : past + 1]),
        reward=RewardError(
            model=_rms((expected_reward(dream).cpu() - rewards)[valid]),
            constant=_rms((rewards - float(train.mean()))[valid]),
        ),
    )


def expected_reward(dream: Dream) -> Float[Tensor, "batch time"]:
    """The mean reward of a transition over the futures that get there.

    A recorded transition exists because its episode had not ended before; so futures that drew an end earlier do not
    count. Where all did, all count.
    """
    alive = dream.alive | ~dream.alive.any(0)
    return (dream.reward_means * alive).sum(0) / alive.sum(0)


def _rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())
