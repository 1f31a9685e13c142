"""Detectors: what scores are held against, and the alarms that come of it.

Made by `worldflow.calibrate`, which says what is promised; stored in one file, with the fingerprint of the world whose
scores they are about.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from worldflow.atomic import replacing
from worldflow.combination import CombinationName
from worldflow.conformal import Ranks, peaks
from worldflow.drift import cusum
from worldflow.fingerprint import world_fingerprint
from worldflow.score_types import EpisodeScores
from worldflow.surprise import normal_score
from worldflow.usual import Usual, by_episode
from worldflow.watched import WINDOWS, Past, statistic_matrix
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

__all__ = ["Alarms", "Detector", "Thresholds", "Watch"]

FORMAT = 3
ARRAYS = ("usual", "usual_lengths", "normal", "normal_lengths")


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """What a detector says about one episode, or about one part of it, given what came before.

    Args:
        transition: Whether each transition rings.
        p_value: Of each transition, all statistics together: uniform or higher under normal conditions.
        window_p_value: The same of averages alone, over so many transitions or more, one row for each of
            `worldflow.watched.WINDOWS`; the first is `p_value`. What lasts shows in the last, whatever else is unusual
            about a transition.
        recent_p_value: The same of the last so many transitions, in which one alone or all together may be odd. It
            stays low for as long as what was odd is among them.
        parts: Names of the parts of a transition, see `worldflow.watched.PARTS`.
        part_p_value: Of the statistics about each part.
        statistic: Index in `names` of the one that is the most surprising.
        names: The statistics and their averages, in order.
        surprise: Of each statistic, nats.
        statistic_p_value: Of each statistic by itself; it rings alone at or below the promised rate.
        drift: Whether the drift up to each transition rings.
        drift_p_value: Of the drift, among the peaks of normal episodes.
        peak_p_value: Of each transition, among the oddest ones of normal episodes: where it falls to the promised rate
            of false alarms per episode, the episode rings.
        episode: Whether the episode has rung as a whole up to its last transition.
        episode_p_value: Of the whole episode up to there.
    """

    transition: Bool[np.ndarray, " time"]
    p_value: Float[np.ndarray, " time"]
    window_p_value: Float[np.ndarray, "window time"]
    recent_p_value: Float[np.ndarray, "window time"]
    parts: tuple[str, ...]
    part_p_value: Float[np.ndarray, "part time"]
    statistic: Int64[np.ndarray, " time"]
    names: tuple[str, ...]
    surprise: Float[np.ndarray, "statistic time"]
    statistic_p_value: Float[np.ndarray, "statistic time"]
    drift: Bool[np.ndarray, " time"]
    drift_p_value: Float[np.ndarray, " time"]
    peak_p_value: Float[np.ndarray, " time"]
    episode: bool
    episode_p_value: float

    @property
    def rings(self) -> bool:
        """Whether the episode rings, as a whole or by drift."""
        return self.episode or bool(self.drift.any())

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What there is one of for each transition: 1 where it rings, p-values, and the most surprising statistic."""
        return {
            "rings": self.transition.astype(int),
            "p_value": self.p_value,
            "peak_p_value": self.peak_p_value,
            **{f"p_value_{n}": row for n, row in zip(WINDOWS[1:], self.window_p_value[1:], strict=True)},
            **{f"recent_p_value_{n}": row for n, row in zip(WINDOWS[1:], self.recent_p_value[1:], strict=True)},
            **{f"{part}_p_value": row for part, row in zip(self.parts, self.part_p_value, strict=True)},
            "statistic": np.array(self.names)[self.statistic],
            "drift_rings": self.drift.astype(int),
            "drift_p_value": self.drift_p_value,
        }


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Values above which statistics ring.

    `"combination"` is of all, `"combination_<n>"` of averages, `"recent_<n>"` of all in so many transitions, and
    `"part_<part>"` of one part.
    """

    transition: Mapping[str, float]
    episode: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Tells anomalous transitions and episodes from their scores; made by `calibrate`.

    Args:
        statistics: Names in `worldflow.watched.STATISTICS` of what it rests on, alone and averaged.
        combination: How they are combined.
        usual: Values of each statistic on the first half of the normal episodes, in order; a vector's come last.
        usual_lengths: Transitions of those episodes.
        normal: The same of the second half.
        normal_lengths: Transitions of those.
        false_alarm_rate: Promised for transitions.
        episode_false_alarm_rate: Promised for episodes.
        is_strict: Whether transitions are weighed by episode.
        num_draws: Draws of the noise that scores must have been averaged over.
        world: Fingerprint of the world whose scores it judges; empty where it is not known.
    """

    statistics: tuple[str, ...]
    combination: CombinationName
    usual: Float[np.ndarray, "row transition"]
    usual_lengths: Int64[np.ndarray, " episode"]
    normal: Float[np.ndarray, "row transition"]
    normal_lengths: Int64[np.ndarray, " episode"]
    false_alarm_rate: float
    episode_false_alarm_rate: float
    is_strict: bool = False
    num_draws: int = 1
    world: str = ""

    def __call__(self, scores: Sequence[EpisodeScores]) -> list[Alarms]:
        """Judge episodes.

        Args:
            scores: What `worldflow.score` returned for them.

        Raises:
            ValueError: If they are another world's, of other draws, or lack a statistic.
        """
        return [Watch(self)(episode) for episode in scores]

    def oddness(self, scores: EpisodeScores, *, window: int = WINDOWS[0]) -> Float[np.ndarray, " time"]:
        """The combination's number of every transition: what p-values rank.

        Args:
            scores: Of an episode.
            window: One of `worldflow.watched.WINDOWS`: how odd the last so many transitions are.
        """
        return self.oddness_by_window(scores)[WINDOWS.index(window)]

    def oddness_by_window(self, scores: EpisodeScores) -> Float[np.ndarray, "window time"]:
        """The same for each of `worldflow.watched.WINDOWS`."""
        values = self.watched(scores)
        return self._usual.recent(self._usual.combined(values, self._usual.nats(values)))[0]

    def watched(self, scores: EpisodeScores) -> Float[np.ndarray, "watched time"]:
        """Values of the statistics of an episode and of their averages, as `names` says."""
        return self._usual.averages(statistic_matrix(scores, self.statistics))[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the statistics and of their averages, in order."""
        return self._usual.names

    @cached_property
    def thresholds(self) -> Thresholds:
        """Values above which statistics ring."""
        combined = ("combination" if n == 1 else f"combination_{n}" for n in WINDOWS)
        recent = (f"recent_{n}" for n in WINDOWS[1:])
        names = (*self.names, *combined, *recent, *(f"part_{part}" for part in self._usual.parts))
        bounds = [r.threshold(self.false_alarm_rate) for r in self._ranks]
        highest = [r.threshold(self.episode_false_alarm_rate) for r in self._peak_ranks]
        return Thresholds(
            transition=dict(zip(names, bounds, strict=True)), episode=dict(zip(names, highest, strict=True))
        )

    @cached_property
    def rate_error(self) -> float:
        """Standard error of the share of normal transitions that ring, as far as the normal episodes tell.

        Transitions of an episode ring together, so it is episodes that count: with `x_i` the transitions of episode
        `i` above the threshold, the error is `sqrt(sum x_i^2) / sum lengths`, that of independent transitions where no
        episode has two.
        """
        above = self._all[len(self.names)] > self.thresholds.transition["combination"]
        counts = np.array([part.sum() for part in by_episode(above, self.normal_lengths)], np.float64)
        return max(1.0, float(np.sqrt(np.square(counts).sum()))) / float(self.normal_lengths.sum())

    @property
    def episodes_needed(self) -> int:
        """Normal episodes of which two such errors would be half the promised rate; no fewer than there are."""
        excess = max(1.0, 4 * self.rate_error / self.false_alarm_rate)
        return math.ceil((len(self.usual_lengths) + len(self.normal_lengths)) * excess**2)

    def check(self, world: str, *, num_draws: int) -> None:
        """Refuse what this detector was not made for.

        Args:
            world: Fingerprint of the world that scored; empty where it is not known.
            num_draws: Draws of the noise.

        Raises:
            ValueError: If either differs.
        """
        if world and self.world and world != self.world:
            raise ValueError(
                f"this detector belongs to the world {self.world}, these scores are of the world {world}; "
                "calibrate one for it"
            )
        if num_draws != self.num_draws:
            raise ValueError(
                f"this detector was calibrated on scores of {self.num_draws} draws of the noise, got {num_draws}; "
                f"score with num_draws={self.num_draws}"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the detector to a file, whole or not at all.

        Args:
            path: The file to make or replace, such as `detector.npz`.
        """
        plain = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("statistics", "combination", "false_alarm_rate", "is_strict")},
            **{name: getattr(self, name) for name in ("episode_false_alarm_rate", "num_draws", "world")},
        }
        arrays = {name: getattr(self, name) for name in ARRAYS}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, about=np.array(json.dumps(plain)), **arrays)
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str], *, world: WorldModel | None = None) -> Detector:
        """Read a detector that `save` wrote.

        Args:
            path: The file.
            world: The world whose scores it is to judge; None leaves that to be checked when it judges.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no detector, or one of another world.
        """
        try:
            with Path(path).open("rb") as stored, np.load(stored) as file:
                plain = json.loads(str(file["about"]))
                arrays = {name: file[name] for name in ARRAYS}
            if plain.pop("format") != FORMAT:
                raise ValueError("it was written by another version")
            detector = Detector(**{**plain, "statistics": tuple(plain["statistics"])}, **arrays)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"cannot read a detector from {path}: {error}; calibrate again") from error
        if world is not None:
            detector.check(world_fingerprint(world), num_draws=detector.num_draws)
        return detector

    # -- inside ---------------------------------------------------------------------------------------------------

    @cached_property
    def _usual(self) -> Usual:
        return Usual(self.statistics, self.combination, self.usual, self.usual_lengths)

    @cached_property
    def _all(self) -> Float[np.ndarray, "row transition"]:
        """Values of the second half, then the combinations', of averages and of what is recent, then the parts'."""
        values = np.concatenate(
            [self._usual.averages(part)[0] for part in by_episode(self.normal, self.normal_lengths)], axis=1
        )
        nats = self._usual.nats(values)
        combined = self._usual.combined(values, nats)
        recent = [self._usual.recent(part)[0][1:] for part in by_episode(combined, self.normal_lengths)]
        return np.concatenate((values, combined, np.concatenate(recent, axis=1), self._usual.by_part(nats)))

    @cached_property
    def _ranks(self) -> list[Ranks]:
        weights = np.repeat(1.0 / self.normal_lengths, self.normal_lengths) if self.is_strict else None
        return [Ranks(row, weights) for row in self._all]

    @cached_property
    def _peak_ranks(self) -> list[Ranks]:
        return [Ranks(row) for row in peaks(self._all, self.normal_lengths)]

    @cached_property
    def _drift_scale(self) -> Float[np.ndarray, " statistic"]:
        """Usual peaks of the cumulative sums, so that statistics with memory do not hide the others."""
        single = self._usual.watched[: len(self._usual.singles)]
        return np.maximum(peaks(self._sums(single, self.usual_lengths), self.usual_lengths).mean(1), 1.0)

    @cached_property
    def _drift_ranks(self) -> Ranks:
        sums = self._sums(self._all[: len(self._usual.singles)], self.normal_lengths) / self._drift_scale[:, None]
        return Ranks(peaks(sums, self.normal_lengths).max(0))

    def _drifts(self, surprises: np.ndarray, start: np.ndarray | float) -> Float[np.ndarray, "statistic time"]:
        # A single outlier is not a drift: no transition counts for more than three standard deviations.
        return cusum(np.clip(normal_score(surprises), -3.0, 3.0), start=start)

    def _sums(self, values: np.ndarray, lengths: np.ndarray) -> Float[np.ndarray, "statistic time"]:
        return np.concatenate(
            [self._drifts(part, 0.0) for part in by_episode(self._usual.nats(values), lengths)], axis=1
        )


class Watch:
    """Judges one episode as its scores come, some at a time; what it keeps does not grow.

    Args:
        detector: The detector.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._past: Past | None = None
        self._before: np.ndarray | None = None
        self._sums: np.ndarray | float = 0.0
        self._lowest = math.inf

    def __call__(self, scores: EpisodeScores) -> Alarms:
        """Judge the next transitions of the episode.

        Args:
            scores: Their scores.

        Raises:
            ValueError: If they are another world's, of other draws, or lack a statistic.
        """
        detector = self.detector
        detector.check(scores.world, num_draws=scores.num_draws)
        usual = detector._usual
        values, self._past = usual.averages(statistic_matrix(scores, detector.statistics), self._past)
        surprises = usual.nats(values)
        combined, parts = usual.combined(values, surprises), usual.by_part(surprises)
        sums = detector._drifts(surprises[: len(usual.singles)], self._sums)
        self._sums = sums[:, -1]
        recent, self._before = usual.recent(combined, self._before)
        rows = (*values, *combined, *recent[1:], *parts)
        ranked = np.stack([r.p_value(v) for r, v in zip(detector._ranks, rows, strict=True)])
        first, last = len(values), len(ranked) - len(parts)
        together = ranked[first]
        peak = detector._peak_ranks[first].p_value(combined[0])
        self._lowest = min(self._lowest, float(peak.min()))
        drift = detector._drift_ranks.p_value((sums / detector._drift_scale[:, None]).max(0))
        return Alarms(
            transition=together <= detector.false_alarm_rate,
            p_value=together,
            window_p_value=ranked[first : first + len(WINDOWS)],
            recent_p_value=np.concatenate((ranked[first : first + 1], ranked[first + len(WINDOWS) : last])),
            parts=usual.parts,
            part_p_value=ranked[last:],
            statistic=surprises.argmax(0),
            names=detector.names,
            surprise=surprises,
            statistic_p_value=ranked[:first],
            drift=drift <= detector.episode_false_alarm_rate,
            drift_p_value=drift,
            peak_p_value=peak,
            episode=self._lowest <= detector.episode_false_alarm_rate,
            episode_p_value=self._lowest,
        )
