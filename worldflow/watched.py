"""What alarms may rest on: statistics of a transition, and their averages over the transitions that came last.

A single transition shows a picture that is wrong; changed dynamics show in many that are each a little off. So every
statistic is watched by itself and averaged over the last 8 and 50 transitions. Two rules make averages honest: what
would lie before an episode counts as usual, so that early averages are no wilder than late ones; and no transition
counts for more than the most unusual normal one did, so that an outlier rings once, not for fifty steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.score_types import EpisodeScores

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["STATISTICS", "WINDOWS", "Averages", "statistic_matrix", "statistic_values", "watched_names"]

STATISTICS = {
    "frame_unlikely": "NLL of the frame: it is nowhere where the world expected it",
    "frame_too_likely": "log-likelihood of the frame: it holds less than the world expected",
    "atypical_unlikely": "typicality: eight transitions were less likely than the world's own samples are",
    "atypical_too_likely": "typicality, negative: they were more likely than those",
    "action": "log p(x | past) - log p(x | past, a): the frame does not follow from the action",
    "gain_low": "action gain, negative: less came of the action than should have",
    "gain_high": "action gain: more came of it",
    "context": "log p(x | last frame, a) - log p(x | past, a): the frame does not follow from the motion before",
    "unsure": "predicted entropy: the world does not know what comes",
    "normality": "the frame's noise is not white and Gaussian",
    "noise_spatial": "the frame's noise is correlated in space, either way",
    "noise_temporal": "the frame's noise is correlated with that of the frame before, either way",
    "reward": "NLL of the reward",
    "terminated": "NLL of the termination, or of its absence",
    "reconstruction": "error of the codec's round trip: the frame does not look like one",
    "pixels": "bound of the frame's bits: what codes leave out counts, too",
    "score_norm": "norm of the denoiser's score: the frame lies off what it learned",
}
"""What an alarm may rest on; averages over `n` transitions are called `<name>_<n>`."""
WINDOWS = (1, 8, 50)
"""Transitions that statistics are averaged over."""


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Averages statistics over the last transitions.

    Args:
        mean, low, high: Of each statistic on usual transitions.
    """

    mean: Float[np.ndarray, " statistic"]
    low: Float[np.ndarray, " statistic"]
    high: Float[np.ndarray, " statistic"]

    @staticmethod
    def of(usual: Float[np.ndarray, "statistic transition"]) -> Averages:
        """Learn from usual values."""
        return Averages(mean=usual.mean(1), low=usual.min(1), high=usual.max(1))

    @property
    def past(self) -> Float[np.ndarray, "statistic past"]:
        """What is remembered when an episode begins."""
        return np.repeat(self.mean[:, None], max(WINDOWS) - 1, axis=1)

    def __call__(
        self, values: Float[np.ndarray, "statistic time"], past: Float[np.ndarray, "statistic past"] | None = None
    ) -> tuple[Float[np.ndarray, "watched time"], Float[np.ndarray, "statistic past"]]:
        """Each statistic alone and averaged, and what is to be remembered.

        Args:
            values: Of the next transitions.
            past: What was remembered; None at the beginning of an episode.
        """
        past = self.past if past is None else past
        held = np.concatenate((past, np.clip(values, self.low[:, None], self.high[:, None])), axis=1)
        time, before = values.shape[1], past.shape[1]

        def average(n: int) -> np.ndarray:
            # Summed in the order of time, whatever the parts that an episode comes in: ties stay ties.
            return sum((held[:, before - k : before - k + time] for k in reversed(range(n))), start=np.zeros(())) / n

        rows = [values if n == 1 else average(n) for n in WINDOWS]
        return np.concatenate(rows), held[:, held.shape[1] - past.shape[1] :]


def watched_names(statistics: Sequence[str]) -> tuple[str, ...]:
    """Names of what `Averages` makes, in order."""
    return tuple(name if n == 1 else f"{name}_{n}" for n in WINDOWS for name in statistics)


def statistic_values(scores: EpisodeScores) -> dict[str, Float[np.ndarray, " time"]]:
    """Those of `STATISTICS` that scores have, each higher for more anomalous.

    Args:
        scores: Scores of an episode, or of a part of one.
    """
    values = {
        "frame_unlikely": scores.above_floor,
        "frame_too_likely": -scores.above_floor,
        "atypical_unlikely": scores.typicality,
        "atypical_too_likely": -scores.typicality,
        "action": -scores.action_ratio,
        "context": -scores.context_ratio,
        "unsure": scores.entropy,
        "normality": scores.normality,
        "noise_spatial": np.abs(scores.z_spatial),
        "noise_temporal": np.abs(scores.z_temporal),
        "reward": -scores.reward,
        "terminated": -scores.terminated,
        "reconstruction": scores.reconstruction,
    }
    if scores.action_gain is not None:
        values |= {"gain_low": -scores.action_gain, "gain_high": scores.action_gain}
    for name, value in (("pixels", scores.pixel_bits), ("score_norm", scores.score_norm)):
        if value is not None:
            values[name] = value
    return values


def statistic_matrix(scores: EpisodeScores, names: Sequence[str]) -> Float[np.ndarray, "statistic time"]:
    """Named statistics, row by row; as `statistic_values`.

    Raises:
        ValueError: If the scores lack one.
    """
    values = statistic_values(scores)
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"these scores lack {', '.join(missing)}, which the detector rests on; score with pixels=True")
    return np.stack([values[name] for name in names])
