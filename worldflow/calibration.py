"""Alarms at a promised rate of false ones: split-conformal calibration on normal episodes.

Half of the normal episodes say what is usual: from their statistics a combination is learned (`worldflow.combination`)
that makes one number of them. The other half ranks what is new, for each statistic and for the combination,

    p(v) = (1 + sum_i w_i [v_i >= v]) / (1 + sum_i w_i)

over its transitions `i`, so the promise holds for all statistics together, whatever their dependence and however well
the combination fits.

What is promised. If what is watched of normal transitions were exchangeable (`w_i = 1`), a normal one would ring with
probability of at most `false_alarm_rate`. Within an episode transitions are not independent, and averages over the last
8 and 50 of them (`worldflow.watched`) less so: the rate holds on average over episodes as long as those that calibrate,
as their number grows, and may be missed by far with few. `Detector.rate_error` says by how much, from how transitions
of one episode ring together, and `Detector.episodes_needed` how many normal episodes would tell it to its half. With
`is_strict`, a transition of an episode of
`n` weighs `1 / n`, and the promise holds for the transitions of any new episode that is exchangeable with the normal
ones, however they depend on each other; it takes `1 / false_alarm_rate` episodes in each half to ring at all. The
alarms of an episode rank its highest number, and its highest drift, among whole episodes, so they hold with few of
them, too: each rings at any time within a normal episode with probability of at most `episode_false_alarm_rate`.

Drift: normal scores of every statistic are added up by CUSUM (`worldflow.drift`), in units of the usual peak.

Reference:
    Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005; Bates et al., "Testing for outliers with
    conformal p-values", 2023, arXiv 2104.08279; Lee, Barber, Willett, "Distribution-free inference with hierarchical
    data", 2023, arXiv 2306.06342, for weights by episode.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

import numpy as np

from worldflow.combination import COMBINATIONS, DEFAULT_COMBINATION, CombinationName
from worldflow.detector import Alarms, Detector
from worldflow.hints import did_you_mean
from worldflow.score import score
from worldflow.score_types import EpisodeScores
from worldflow.watched import STATISTICS, statistic_matrix, statistic_values
from worldflow.world import WorldModel

__all__ = ["STATISTICS", "Alarms", "Detector", "calibrate", "calibrate_scores"]


def calibrate(
    world: WorldModel | str | os.PathLike[str],
    normal_episodes: str | os.PathLike[str] | Iterable[object],
    *,
    false_alarm_rate: float = 0.01,
    episode_false_alarm_rate: float = 0.1,
    combination: CombinationName = DEFAULT_COMBINATION,
    is_strict: bool = False,
    num_draws: int = 1,
    seed: int = 1,
    pixels: bool = True,
    progress: bool = True,
) -> Detector:
    """Learn from normal episodes when to ring.

    Args:
        world: The world, or the folder of its run.
        normal_episodes: Episodes without anomalies that the world was not trained on, as `worldflow.score` takes them.
        false_alarm_rate: Share of normal transitions that may ring.
        episode_false_alarm_rate: Share of normal episodes that may ring.
        combination: How statistics are combined, see `worldflow.combination`.
        is_strict: Keep the promise for transitions whatever their dependence; needs many episodes.
        num_draws: Draws of the codes' noise that are averaged; score with as many.
        seed: Of the noise; another one than the scored episodes', whose noise must not be the calibration's.
        pixels: Whether to use the bound on pixels, too; scores must then have it.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are too few episodes for the rates, or they do not fit the world.

    Example:
        >>> detector = wf.calibrate(world, "data/normal", false_alarm_rate=0.01)   # doctest: +SKIP
        >>> alarms = detector(wf.score(world, "data/test"))                        # doctest: +SKIP
    """
    _checked_options(combination, false_alarm_rate=false_alarm_rate, episode_false_alarm_rate=episode_false_alarm_rate)
    return calibrate_scores(
        score(world, normal_episodes, num_draws=num_draws, seed=seed, pixels=pixels, progress=progress),
        false_alarm_rate=false_alarm_rate,
        episode_false_alarm_rate=episode_false_alarm_rate,
        combination=combination,
        is_strict=is_strict,
    )


def calibrate_scores(
    scores: Sequence[EpisodeScores],
    *,
    false_alarm_rate: float = 0.01,
    episode_false_alarm_rate: float = 0.1,
    combination: CombinationName = DEFAULT_COMBINATION,
    is_strict: bool = False,
) -> Detector:
    """As `calibrate`, from scores of normal episodes.

    Raises:
        ValueError: If there are too few for the rates, or they are not all of one world and as many draws.
    """
    _checked_options(combination, false_alarm_rate=false_alarm_rate, episode_false_alarm_rate=episode_false_alarm_rate)
    if len({(s.world, s.num_draws) for s in scores}) > 1:
        raise ValueError(
            "normal episodes must be scored by one world with as many draws of the noise; score them again"
        )
    first, second = scores[::2], scores[1::2]
    _check_enough(scores, second, false_alarm_rate, episode_false_alarm_rate, is_strict=is_strict)
    names = tuple(name for name in STATISTICS if all(name in statistic_values(s) for s in scores))

    def gathered(half: Sequence[EpisodeScores]) -> tuple[np.ndarray, np.ndarray]:
        values = np.concatenate([statistic_matrix(s, names) for s in half], axis=1)
        return values, np.array([len(s) for s in half])

    usual, usual_lengths = gathered(first)
    normal, normal_lengths = gathered(second)
    return Detector(
        statistics=names,
        combination=combination,
        usual=usual,
        usual_lengths=usual_lengths,
        normal=normal,
        normal_lengths=normal_lengths,
        false_alarm_rate=false_alarm_rate,
        episode_false_alarm_rate=episode_false_alarm_rate,
        is_strict=is_strict,
        num_draws=scores[0].num_draws,
        world=scores[0].world,
    )


def _checked_options(combination: str, **rates: float) -> None:
    if combination not in COMBINATIONS:
        raise ValueError(f"unknown combination {combination!r}{did_you_mean(combination, COMBINATIONS)}")
    for name, rate in rates.items():
        if not 0 < rate < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {rate}")


def _check_enough(
    scores: Sequence[EpisodeScores],
    second: Sequence[EpisodeScores],
    rate: float,
    episode_rate: float,
    *,
    is_strict: bool,
) -> None:
    ranked = len(second) if is_strict else sum(map(len, second))
    for found, promised, option, what in (
        (len(second), episode_rate, "episode_false_alarm_rate", "episode"),
        (ranked, rate, "false_alarm_rate", "episode" if is_strict else "transition"),
    ):
        needed = math.ceil(1 / promised - 1e-9) - 1  # with fewer, even the most surprising one has a p-value above it
        if found < needed:
            given = f"{sum(map(len, scores))} transitions in {len(scores)} episodes"
            raise ValueError(
                f"{option} {promised:g} needs at least {2 * needed} normal {what}s, half of them in every second "
                f"episode, got {given}; record more or raise the rate"
            )
