"""Alarms at a promised rate of false ones: split-conformal calibration on normal episodes.

Half of the normal episodes say what is usual. For each statistic `j` of a transition, higher for more anomalous,

    s_j(v) = -log p_j(v) + max(v - max_j, 0) / beta_j,    p_j(v) = (1 + #{usual values >= v}) / (n + 1)

is how surprising a value `v` is in nats: the log of its conformal rank, continued beyond the highest usual value
`max_j` by an exponential tail whose scale `beta_j` is the mean excess over the 90 % quantile. A transition's surprise
is the highest of its statistics'. The other half of the normal episodes turns that maximum into a p-value by its own
rank, so the promise holds for all statistics together, whatever their dependence; nothing rests on the tail's form.

What is promised: if normal transitions are exchangeable, a normal one rings with probability of at most
`false_alarm_rate`. Within an episode they are not independent: then the rate holds on average over episodes as the
number of calibration episodes grows. The alarm of an episode ranks its highest surprise among whole episodes, which
need to be exchangeable with each other only, so it holds with few of them too.

Reference:
    Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005; Bates et al., "Testing for outliers with
    conformal p-values", 2023, arXiv 2104.08279.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldflow.detection import trailing_mean
from worldflow.score import EpisodeScores, score
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

__all__ = ["STATISTICS", "Alarms", "Detector", "calibrate", "calibrate_scores"]

STATISTICS = {
    "frame_unlikely": "NLL of the frame: it is nowhere where the world expected it",
    "frame_too_likely": "log-likelihood of the frame: it holds less than the world expected",
    "frame_mean_unlikely": "as frame_unlikely, averaged over the last eight transitions",
    "frame_mean_too_likely": "as frame_too_likely, averaged over the last eight transitions",
    "action": "log p(x | past) - log p(x | past, a): the frame does not follow from the action",
    "reward": "NLL of the reward",
    "terminated": "NLL of the termination, or of its absence",
    "reconstruction": "error of the codec's round trip: the frame does not look like one",
}
"""What an alarm may rest on."""
TAIL = 0.9


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """What a detector says about one episode.

    Args:
        transition: Whether each transition rings.
        p_value: Of each transition, all statistics together: uniform or higher under normal conditions.
        statistic: Index in `STATISTICS` of the one that is the most surprising.
        surprise: Of each statistic, in its order, nats.
        episode: Whether the whole episode rings.
        episode_p_value: Of the whole episode.
    """

    transition: Bool[np.ndarray, " time"]
    p_value: Float[np.ndarray, " time"]
    statistic: Int64[np.ndarray, " time"]
    surprise: Float[np.ndarray, "statistic time"]
    episode: bool
    episode_p_value: float


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Tells anomalous transitions and episodes from their scores; made by `calibrate`.

    Args:
        usual: Sorted values of each statistic on the first half of the normal episodes.
        surprises: Sorted surprises of the transitions of the second half.
        episode_surprises: Sorted highest surprises of its episodes.
        false_alarm_rate: Promised for transitions.
        episode_false_alarm_rate: Promised for episodes.
    """

    usual: Mapping[str, Float[np.ndarray, " value"]]
    surprises: Float[np.ndarray, " transition"]
    episode_surprises: Float[np.ndarray, " episode"]
    false_alarm_rate: float
    episode_false_alarm_rate: float

    def __call__(self, scores: Sequence[EpisodeScores]) -> list[Alarms]:
        """Judge episodes.

        Args:
            scores: What `worldflow.score` returned for them, with the same `num_draws` as in calibration.
        """
        return [self._judge(episode) for episode in scores]

    def _judge(self, scores: EpisodeScores) -> Alarms:
        surprise = _surprises(self.usual, scores)
        p_value = _p_values(self.surprises, surprise.max(0))
        episode_p_value = float(_p_values(self.episode_surprises, np.array([surprise.max()]))[0])
        return Alarms(
            transition=p_value <= self.false_alarm_rate,
            p_value=p_value,
            statistic=surprise.argmax(0),
            surprise=surprise,
            episode=episode_p_value <= self.episode_false_alarm_rate,
            episode_p_value=episode_p_value,
        )


def calibrate(
    world: WorldModel | str | os.PathLike[str],
    normal_episodes: str | os.PathLike[str] | Iterable[object],
    *,
    false_alarm_rate: float = 0.01,
    episode_false_alarm_rate: float = 0.1,
    num_draws: int = 1,
    seed: int = 1,
    progress: bool = True,
) -> Detector:
    """Learn from normal episodes when to ring.

    Args:
        world: The world, or the folder of its run.
        normal_episodes: Episodes without anomalies that the world was not trained on, as `worldflow.score` takes them.
        false_alarm_rate: Share of normal transitions that may ring.
        episode_false_alarm_rate: Share of normal episodes that may ring.
        num_draws: Draws of the codes' noise that are averaged; score with as many.
        seed: Of the noise; another one than the scored episodes', whose noise must not be the calibration's.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are too few episodes for the rates, or they do not fit the world.

    Example:
        >>> detector = wf.calibrate(world, "data/normal", false_alarm_rate=0.01)   # doctest: +SKIP
        >>> alarms = detector(wf.score(world, "data/test"))                        # doctest: +SKIP
    """
    _checked_rates(false_alarm_rate=false_alarm_rate, episode_false_alarm_rate=episode_false_alarm_rate)
    return calibrate_scores(
        score(world, normal_episodes, num_draws=num_draws, seed=seed, progress=progress),
        false_alarm_rate=false_alarm_rate,
        episode_false_alarm_rate=episode_false_alarm_rate,
    )


def calibrate_scores(
    scores: Sequence[EpisodeScores], *, false_alarm_rate: float = 0.01, episode_false_alarm_rate: float = 0.1
) -> Detector:
    """As `calibrate`, from scores of normal episodes.

    Raises:
        ValueError: If there are too few for the rates.
    """
    _checked_rates(false_alarm_rate=false_alarm_rate, episode_false_alarm_rate=episode_false_alarm_rate)
    first, second = scores[::2], scores[1::2]
    num_transitions = sum(map(len, second))
    for found, rate, what in (
        (len(second), episode_false_alarm_rate, "episode"),
        (num_transitions, false_alarm_rate, "transition"),
    ):
        needed = math.ceil(1 / rate - 1e-9) - 1  # with fewer, even the most surprising one has a p-value above the rate
        if found < needed:
            option = "false_alarm_rate" if what == "transition" else "episode_false_alarm_rate"
            given = f"{sum(map(len, scores))} transitions in {len(scores)} episodes"
            raise ValueError(
                f"{option} {rate:g} needs at least {2 * needed} normal {what}s, half of them in every second episode, "
                f"got {given}; record more or raise the rate"
            )
    values = [_statistics(episode) for episode in first]
    usual = {name: np.sort(np.concatenate([v[name] for v in values])) for name in STATISTICS}
    surprises = [_surprises(usual, episode).max(0) for episode in second]
    return Detector(
        usual=usual,
        surprises=np.sort(np.concatenate(surprises)),
        episode_surprises=np.sort([s.max() for s in surprises]),
        false_alarm_rate=false_alarm_rate,
        episode_false_alarm_rate=episode_false_alarm_rate,
    )


def _checked_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 < rate < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {rate}")


def _statistics(scores: EpisodeScores) -> dict[str, np.ndarray]:
    mean = trailing_mean(scores.above_floor)
    return {
        "frame_unlikely": scores.above_floor,
        "frame_too_likely": -scores.above_floor,
        "frame_mean_unlikely": mean,
        "frame_mean_too_likely": -mean,
        "action": -scores.action_ratio,
        "reward": -scores.reward,
        "terminated": -scores.terminated,
        "reconstruction": scores.reconstruction,
    }


def _surprises(usual: Mapping[str, np.ndarray], scores: EpisodeScores) -> np.ndarray:
    """Surprise of each statistic and transition, `(statistic, time)`."""
    values = _statistics(scores)
    return np.stack([_surprise(usual[name], values[name]) for name in STATISTICS])


def _surprise(usual: np.ndarray, values: np.ndarray) -> np.ndarray:
    tail = usual[int(TAIL * len(usual)) :]
    scale = max(float(tail.mean() - tail[0]), 1e-9 * max(1.0, abs(float(tail[-1]))))  # a constant has no tail
    return -np.log(_p_values(usual, values)) + np.maximum(values - usual[-1], 0.0) / scale


def _p_values(usual: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Conformal p-values of values among sorted usual ones: small where few usual ones are as high."""
    above = len(usual) - np.searchsorted(usual, values, side="left")
    return (1 + above) / (len(usual) + 1)
