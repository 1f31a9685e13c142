"""What alarms may rest on: statistics of a transition, and their averages over the transitions that came last.

A single transition shows a picture that is wrong; changed dynamics show in many that are each a little off. So every
statistic is watched by itself and averaged over the last 8 and 50 transitions. Two rules make averages honest: where an
episode is younger, what is off is divided by the root of how much there is, so that early averages are as wild as late
ones and no wilder; and no transition counts for more than the most unusual normal one did, so that an outlier rings
once, not for fifty steps.

    mean_n(t) = m + sum_{last min(t, n)} (v - m) / sqrt(n min(t, n)),    the plain mean from n transitions on

What was foreseen wrongly (`worldflow.foresight`) is a vector `r`, and is read in two ways. Where it points the same way
again and again, its average is far from usual. Where it points now here and now there, as with a gravity that pulls a
pole to whichever side it leans, averages tell nothing, but `r` is larger than usual: so the average of

    log(1 + (r - m)' S^-1 (r - m)) / 2,    S the covariance of single ones

is watched, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from worldflow.score_types import EpisodeScores

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "PARTS",
    "STATISTICS",
    "UNFORESEEN",
    "WINDOWS",
    "Averages",
    "Past",
    "left_out",
    "single_names",
    "statistic_matrix",
    "statistic_values",
    "watched_names",
]

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
    "still": "change of the frame's code, negative logarithm: the frame hardly differs from the one before",
    "score_norm": "norm of the denoiser's score: the frame lies off what it learned",
    "foresight": "distance of the frame from what was foreseen of it eight transitions ago",
}
"""What an alarm may rest on; averages over `n` transitions are called `<name>_<n>`."""
UNFORESEEN = "unforeseen"
"""What else is watched of `foresight`: how large it is, wherever it points."""
PARTS: Mapping[str, Sequence[str]] = {
    "frame": (
        *("frame_unlikely", "frame_too_likely", "atypical_unlikely", "atypical_too_likely", "unsure"),
        *("normality", "noise_spatial", "noise_temporal", "reconstruction", "pixels", "score_norm"),
    ),
    "action": ("action", "gain_low", "gain_high"),
    "motion": ("context", "still", "foresight"),
    "reward": ("reward",),
    "terminated": ("terminated",),
}
"""Which part of a transition each of them is about, for what combines them. `unforeseen` is watched by itself: as one
of the motion it helps little where gravity is off (0.60 for 0.57), and costs 0.02 where pictures freeze or blur."""
WINDOWS = (1, 8, 50)
"""Transitions that statistics are averaged over."""
STILL = 1e-4
"""Change of a code that is none: above what rounding makes of it, and far below what the codes' noise hides."""
SHRINKAGE = 0.3
"""How far covariances of averages, which few independent ones are known of, are drawn to their diagonal."""
FOLDS = 8
"""Parts that usual episodes are told apart in."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """What is remembered of an episode.

    Args:
        values: Of each row on the transitions that came last; the usual mean stands for those before the episode.
        count: Transitions of the episode so far.
    """

    values: Float[np.ndarray, "row past"]
    count: int


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Averages statistics over the last transitions.

    The last rows may be a vector's: of these the distance of each average from the usual one is watched, in the metric
    of its covariance `S` over usual transitions, drawn to the diagonal: `sqrt((v - mean)' S^-1 (v - mean))`, and before
    it the average of its size, see the module.

    Args:
        mean, low, high: Of each row on usual transitions.
        precision: `S^-1` of the vector's averages over each window; `(window, 0, 0)` without one.
        size: Mean size of the vector on usual transitions.
    """

    mean: Float[np.ndarray, " row"]
    low: Float[np.ndarray, " row"]
    high: Float[np.ndarray, " row"]
    precision: Float[np.ndarray, "window direction direction"]
    size: float = 0.0

    @staticmethod
    def of(usual: Sequence[Float[np.ndarray, "row time"]], *, directions: int = 0) -> Averages:
        """Learn from usual episodes.

        Args:
            usual: Values on each.
            directions: How many of the last rows are a vector's.
        """
        joined = np.concatenate(usual, axis=1)
        nothing = np.zeros((len(WINDOWS), 0, 0))
        found = Averages(mean=joined.mean(1), low=joined.min(1), high=joined.max(1), precision=nothing)
        if not directions:
            return found
        each = [found.averages(values)[0] for values in usual]
        vectors = [np.concatenate([rows[w][-directions:] for rows in each], axis=1) for w in range(len(WINDOWS))]
        precision = np.stack([_precision(v - found.mean[-directions:, None]) for v in vectors])
        known = vectors[0][:, vectors[0].any(0)]
        found = replace(found, precision=precision)
        return replace(found, size=float(found._sizes(known).mean()) if known.size else 0.0)

    def averages(
        self, values: Float[np.ndarray, "row time"], past: Past | None = None
    ) -> tuple[list[Float[np.ndarray, "row time"]], Past]:
        """Each row alone and averaged over each window, a vector's size before it, and what is to be remembered."""
        past = self.begin() if past is None else past
        clipped = np.clip(values, self.low[:, None], self.high[:, None])
        joined = np.concatenate((past.values, clipped), axis=1)
        time, before = values.shape[1], past.values.shape[1]
        count = past.count + np.arange(1, time + 1)
        mean = self.mean
        if directions := self.precision.shape[-1]:
            mean = np.insert(mean, len(mean) - directions, self.size)
        held = self._sized(joined) - mean[:, None]
        held[:, : max(0, before - past.count)] = 0.0  # before the episode

        def average(n: int) -> np.ndarray:
            # Summed in the order of time, whatever the parts that an episode comes in: ties stay ties.
            sums = sum((held[:, before - k : before - k + time] for k in reversed(range(n))), start=np.zeros(()))
            return mean[:, None] + sums / np.sqrt(n * np.minimum(count, n))

        kept = joined[:, time:]
        return [self._sized(values) if n == 1 else average(n) for n in WINDOWS], Past(values=kept, count=int(count[-1]))

    def _sized(self, rows: Float[np.ndarray, "row time"]) -> Float[np.ndarray, "row time"]:
        """Rows, with a vector's size before it."""
        directions = self.precision.shape[-1]
        if not directions:
            return rows
        return np.insert(rows, len(rows) - directions, self._sizes(rows[-directions:]), axis=0)

    def _sizes(self, vectors: Float[np.ndarray, "direction time"]) -> Float[np.ndarray, " time"]:
        """Of single vectors; the usual one of those that are 0, where nothing was foreseen yet."""
        off = vectors - self.mean[-len(vectors) :, None]
        sizes = np.log1p(np.einsum("it,ij,jt->t", off, self.precision[0], off)) / 2
        return np.where(vectors.any(0), sizes, self.size)

    def begin(self) -> Past:
        """What is remembered when an episode begins."""
        return Past(values=np.repeat(self.mean[:, None], max(WINDOWS) - 1, axis=1), count=0)

    def __call__(
        self, values: Float[np.ndarray, "row time"], past: Past | None = None
    ) -> tuple[Float[np.ndarray, "watched time"], Past]:
        """What is watched, and what is to be remembered.

        Args:
            values: Of the next transitions.
            past: What was remembered; None at the beginning of an episode.
        """
        rows, past = self.averages(values, past)
        directions = self.precision.shape[-1]
        if directions:
            off = [row[-directions:] - self.mean[-directions:, None] for row in rows]
            square = [np.einsum("it,ij,jt->t", v, p, v) for v, p in zip(off, self.precision, strict=True)]
            rows = [np.concatenate((r[:-directions], np.sqrt(q)[None])) for r, q in zip(rows, square, strict=True)]
        return np.concatenate(rows), past


def left_out(
    usual: Sequence[Float[np.ndarray, "row time"]], *, directions: int = 0
) -> list[Float[np.ndarray, "watched time"]]:
    """What is watched of usual episodes by averages that were learned from other ones.

    Distances are lower where their metric was learned than on what is new; these are not. The episodes are told apart
    in `FOLDS` parts; a single one is all there is.

    Args:
        usual: Values on each episode, at least one.
        directions: As in `Averages.of`.
    """
    folds = min(FOLDS, len(usual))
    found: list[np.ndarray] = [np.empty(0)] * len(usual)
    for fold in range(folds):
        others = [values for i, values in enumerate(usual) if i % folds != fold or folds == 1]
        averages = Averages.of(others, directions=directions)
        for i in range(fold, len(usual), folds):
            found[i] = averages(usual[i])[0]
    return found


def _precision(vectors: Float[np.ndarray, "direction time"]) -> Float[np.ndarray, "direction direction"]:
    covariance = vectors @ vectors.T / vectors.shape[1]
    diagonal = np.maximum(np.diag(covariance), 1e-12 * max(1.0, float(np.diag(covariance).max())))
    return np.linalg.inv((1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(diagonal))


def single_names(statistics: Sequence[str]) -> tuple[str, ...]:
    """Names of what `Averages` makes of single transitions, in order."""
    return (*statistics[:-1], UNFORESEEN, "foresight") if statistics[-1] == "foresight" else tuple(statistics)


def watched_names(statistics: Sequence[str]) -> tuple[str, ...]:
    """Names of what `Averages` makes, in order."""
    return tuple(name if n == 1 else f"{name}_{n}" for n in WINDOWS for name in single_names(statistics))


def statistic_values(scores: EpisodeScores) -> dict[str, Float[np.ndarray, "*direction time"]]:
    """Those of `STATISTICS` that scores have, each higher for more anomalous; `foresight` is a vector with a sign.

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
    if scores.change is not None:
        values["still"] = -np.log(scores.change + STILL)
    foresight = None if scores.foresight is None or not scores.foresight.shape[1] else scores.foresight.T
    for name, value in (("pixels", scores.pixel_bits), ("score_norm", scores.score_norm), ("foresight", foresight)):
        if value is not None:
            values[name] = value
    return values


def statistic_matrix(scores: EpisodeScores, names: Sequence[str]) -> Float[np.ndarray, "row time"]:
    """Named statistics, row by row, a vector's last; as `statistic_values`.

    Raises:
        ValueError: If the scores lack one.
    """
    values = statistic_values(scores)
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"these scores lack {', '.join(missing)}, which the detector rests on; score with pixels=True")
    return np.concatenate([np.atleast_2d(values[name]) for name in names])
