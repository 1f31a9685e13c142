"""The measures of an evaluation that are about outcomes and likelihoods: reward, termination, actions, the real future.

Frames are compared on clips that last to the horizon. Outcomes are compared on clips that may end before, wherever in
an episode they start: else no end would ever be seen. A reward counts where its transition exists, and the world is
asked for it given that its future gets there too; an end counts at every horizon after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldflow.data import Dataset
from worldflow.evaluate import expected_reward
from worldflow.fidelity_curves import mean_curve, resampled_curve, weighted_rms_curve
from worldflow.fidelity_measures import Found
from worldflow.fidelity_types import WORLD, Measure, Number
from worldflow.futures import fair_brier
from worldflow.metrics import auroc, bootstrap_interval
from worldflow.types import Clip, Dream
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64
    from torch import Tensor

__all__ = ["Outcomes", "ended_by", "likelihood", "one_step_terminations", "rewards", "survival", "terminations"]

CLIPS_MIN = 5
"""Clips that must last to a horizon for a reward to be compared there."""


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What was imagined and what happened on clips that may end early.

    Args:
        expected: Expected reward, given that the future gets there.
        ended: Whether an imagined future has ended, that transition included.
    """

    expected: Float64[np.ndarray, "clip time"]
    ended: Bool[np.ndarray, "sample clip time"]

    @staticmethod
    def of(dream: Dream) -> Outcomes:
        """From imagined futures."""
        return Outcomes(
            expected=expected_reward(dream).double().cpu().numpy(),
            ended=(dream.terminated.cpu().long().cumsum(-1) > 0).numpy(),
        )

    @staticmethod
    def joined(parts: list[Outcomes]) -> Outcomes:
        """Of several batches of clips."""
        return Outcomes(
            expected=np.concatenate([p.expected for p in parts]),
            ended=np.concatenate([p.ended for p in parts], axis=1),
        )


def rewards(outcomes: Outcomes, clips: Clip, *, past: int, mean_reward: float) -> Found:
    """Error of the expected reward over the horizon, beside the mean of the training rewards."""
    valid, true = clips.valid[:, past:].numpy(), clips.rewards[:, past:].double().numpy()
    last = int((valid.sum(axis=0) >= CLIPS_MIN).sum())
    if last == 0:
        return Found(measures={}, numbers={}, tables={})
    errors = {WORLD: outcomes.expected - true, "mean reward": mean_reward - true}
    weight = valid[:, :last].astype(np.float64)
    measure = Measure(
        title="Reward error",
        unit="reward",
        best="low",
        about="Root-mean-square error of the expected reward of a transition, on clips that may end before the "
        "horizon, beside the mean of the training rewards.",
        horizons=tuple(range(1, last + 1)),
        curves={name: weighted_rms_curve(np.square(e[:, :last]), weight) for name, e in errors.items()},
    )
    return Found(measures={"reward": measure}, numbers={}, tables={})


def ended_by(clips: Clip, *, past: int) -> tuple[Bool[np.ndarray, "clip time"], Bool[np.ndarray, "clip time"]]:
    """Whether each clip's episode had terminated at each horizon, and whether one can know (not cut off before)."""
    valid = clips.valid[:, past:].numpy()
    ended = np.cumsum((clips.terminated[:, past:].numpy() & valid), axis=1) > 0
    return ended, valid | ended


def survival(dataset: Dataset, *, past: int, horizon: int) -> Float64[np.ndarray, " time"]:
    """Share of places in training episodes from which the episode terminates within 1, 2, ... `horizon` steps."""
    ended, known = np.zeros(horizon), np.zeros(horizon)
    steps = np.arange(1, horizon + 1)
    for number in dataset.episodes("train"):
        length = int(dataset.lengths[number])
        if length <= past:
            continue
        left = length - np.arange(past, length)[:, None]
        terminates = bool(dataset.clip(int(number), length - 1, length).terminated[-1])
        hit = (left <= steps) & terminates
        ended += hit.sum(axis=0)
        known += ((left >= steps) | hit).sum(axis=0)
    return ended / np.maximum(known, 1)


def terminations(outcomes: Outcomes, clips: Clip, base: Float64[np.ndarray, " time"], *, past: int) -> Found:
    """Brier score of having terminated by each horizon, beside the base rate of training; AUROC at the last."""
    ended, known = ended_by(clips, past=past)
    if not ended.any() or len(outcomes.ended) < 2:
        return Found(measures={}, numbers={}, tables={})
    last = int((known.sum(axis=0) >= CLIPS_MIN).sum())
    scores = {
        WORLD: fair_brier(outcomes.ended.astype(np.float64), ended.astype(np.float64)),
        "base rate": np.square(base - ended),
    }

    def mean(rows: np.ndarray) -> np.ndarray:
        top, bottom = rows.sum(axis=0)
        return top / np.maximum(bottom, 1)

    def curve(values: np.ndarray) -> np.ndarray:
        return np.stack((values * known, known), axis=1)[..., :last]

    measure = Measure(
        title="Termination error",
        unit="Brier score",
        best="low",
        about="Squared error of the chance, over futures, that the episode has terminated by the horizon (corrected "
        "for their number), beside the share of training episodes that have.",
        horizons=tuple(range(1, last + 1)),
        curves={name: resampled_curve(curve(values), mean) for name, values in scores.items()},
    )
    numbers = {}
    at = last - 1
    chance, happened = outcomes.ended.mean(axis=0)[:, at], ended[:, at]
    rows = known[:, at]
    if happened[rows].any() and not happened[rows].all():
        numbers["termination_auroc"] = Number(
            title=f"AUROC of terminating within {last} steps",
            value=auroc(chance[rows & ~happened], chance[rows & happened]),
            about="Chance that a clip that ended had more futures that ended than one that went on.",
        )
    return Found(measures={"termination": measure}, numbers=numbers, tables={})


def one_step_terminations(log_prob: Tensor, clips: Clip, *, past: int, base_rate: float) -> dict[str, Number]:
    """Log-loss and AUROC of termination one step ahead, given the real past."""
    valid = clips.valid[:, past:].numpy()
    happened = clips.terminated[:, past:].numpy()[valid]
    loss = -log_prob.double().cpu().numpy()[valid]
    chance = np.where(happened, np.exp(-loss), 1 - np.exp(-loss))
    base_rate = min(max(base_rate, 1e-6), 1 - 1e-6)
    base = np.where(happened, -np.log(base_rate), -np.log(1 - base_rate))
    low, high = bootstrap_interval(loss)
    numbers = {
        "termination_log_loss": Number(
            title="log-loss of termination, one step",
            value=float(loss.mean()),
            unit="nats",
            low=float(low),
            high=float(high),
            about=f"Given the real past; always saying the training rate costs {base.mean():.4f} nats.",
        ),
        "termination_log_loss_base_rate": Number(
            title="log-loss of the training rate", value=float(base.mean()), unit="nats"
        ),
    }
    if happened.any() and not happened.all():
        numbers["termination_auroc_one_step"] = Number(
            title="AUROC of termination, one step", value=auroc(chance[~happened], chance[happened])
        )
    return numbers


def likelihood(
    world: WorldModel,
    clips: Clip,
    shuffled: Tensor | None,
    *,
    past: int,
    seed: int,
    batch: int = 16,
    tick: Callable[[int], object] = lambda _: None,
) -> Found:
    """How likely the real future is given the real past, and how much less so under another clip's actions.

    Args:
        world: The world.
        clips: Whole clips.
        shuffled: Actions as `clips.actions`, with those after `past` from other clips; None leaves them out.
        past: Transitions before the first one that counts.
        seed: Of the codes' noise; the same for both actions.
        batch: Clips at a time.
        tick: Called with the number of transitions done.
    """
    above = {}
    for name, actions in (("own actions", clips.actions), ("other clip's actions", shuffled)):
        if actions is None:
            continue
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for at in range(0, len(actions), batch):
            rows = slice(at, at + batch)
            frame = world.log_prob(clips.frames[rows], actions[rows], generator=generator).frame[:, past:]
            parts.append(world.above_floor(frame).double().cpu())
            tick(frame.numel())
        above[name] = torch.cat(parts).numpy()
    own = above["own actions"]
    low, high = bootstrap_interval(own.mean(axis=1))
    about = "Given the real frames before it, in nats per dimension of the code, above what the codes' noise costs."
    numbers = {
        "nll": Number(
            title="NLL of a real frame above the floor",
            value=float(own.mean()),
            unit="nats / dim",
            low=float(low),
            high=float(high),
            about=about,
        )
    }
    if shuffled is not None:
        gap = (above["other clip's actions"] - own).mean(axis=1)
        low, high = bootstrap_interval(gap)
        numbers["action_gap"] = Number(
            title="action gap",
            value=float(gap.mean()),
            unit="nats / dim",
            low=float(low),
            high=float(high),
            about="NLL under another clip's actions minus NLL under the true ones; 0 ignores actions.",
        )
    measure = Measure(
        title="NLL of the real frame",
        unit="nats / dim above floor",
        best="low",
        about=about,
        horizons=tuple(range(1, own.shape[1] + 1)),
        curves={name: mean_curve(each) for name, each in above.items()},
    )
    return Found(measures={"nll": measure}, numbers=numbers, tables={})
