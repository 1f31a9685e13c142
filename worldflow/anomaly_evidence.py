"""Which anomalies do scores find, how soon, and what would have found them anyway? Everything on fresh episodes.

    evidence = gather("runs/reacher", "data/reacher", out="runs/reacher/anomalies")
    evidence.separation("gravity, middle", "fisher", window=8).auroc

Normal episodes calibrate detectors, others stand for what is normal; each anomaly is played in three strengths from the
seeds of normal episodes, and so is another policy in the same dynamics, which is no anomaly. All are scored once, by
every statistic, and by baselines that were fitted on the recordings the world was trained on. Combinations are compared
by name; nothing is fitted to an anomaly.

Work: about `(3 anomalies x 3 strengths x episodes + 5 normal) x steps` transitions, each recorded and scored. Cases are
kept in OUT/cases as they are finished, and the same call goes on with what it finds there.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from worldflow.anomaly_baselines import BASELINES, TWO_SIDED, Baselines, fit_baselines, two_sided
from worldflow.anomaly_cases import (
    CALIBRATION,
    NORMAL,
    ONSET,
    SIMPLE,
    Case,
    Stage,
    cases,
    mean_frame,
    simple_episodes,
)
from worldflow.anomaly_measures import Delay, Separation, delay, separation, thresholds
from worldflow.anomaly_store import Judged, kept
from worldflow.calibration import calibrate_scores
from worldflow.checkpoint import load
from worldflow.combination import COMBINATIONS, CombinationName
from worldflow.data import Dataset
from worldflow.detector import Detector
from worldflow.fingerprint import world_fingerprint
from worldflow.instruments import make_predictor
from worldflow.score import score
from worldflow.spaces import check_compatible
from worldflow.train import chosen_device
from worldflow.watched import WINDOWS, Averages
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.score_types import EpisodeScores
    from worldflow.types import Episode

__all__ = ["AnomalyConfig", "Evidence", "Row", "gather", "judge"]

READINGS = ("frame_two_sided", "typicality_two_sided")
"""Likelihood and typicality read on both sides."""
DRAWS = 1


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig:
    """How to hold scores against labeled anomalies."""

    episodes: int = 6
    """Episodes of each anomaly and strength."""
    normal: int = 48
    """Normal episodes to calibrate with, and as many to compare with."""
    steps: int = 72
    """Transitions after which an episode is cut off."""
    env: str | None = None
    """Environment to play in, if not the recorded one."""
    policy: str | None = None
    """Who acts, if not who acted in the recording."""
    baseline_minutes: float = 5.0
    """Minutes to train the next-frame predictor; 0 leaves it out."""
    seed: int = 0
    """Of everything random."""
    device: str = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.normal < max(20, self.episodes):
            raise ValueError(
                f"normal must be at least 20 and not below episodes, got {self.normal} for {self.episodes} episodes"
            )
        if self.steps <= ONSET[1]:
            raise ValueError(f"steps must be more than the {ONSET[1]} after which anomalies begin, got {self.steps}")
        if not 0 <= self.baseline_minutes < math.inf:
            raise ValueError(f"baseline_minutes must be a number of minutes or 0, got {self.baseline_minutes}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found about one case.

    Args:
        kind: `"control"`, `"anomaly"` or `"simple"`.
        anomaly: Its name.
        level: Its strength; None of what has none.
        separation: From windows to numbers to how well they tell it.
        delay: From numbers to how soon they ring, as single transitions.
    """

    kind: str
    anomaly: str | None
    level: str | None
    separation: Mapping[int, Mapping[str, Separation]]
    delay: Mapping[str, Delay]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was found.

    Args:
        rows: From cases to what was found.
        statistics, combinations, baselines: Names of numbers.
        false_alarms: From numbers to the share of fresh normal transitions beyond the calibrated threshold.
        promised, kept: Rates of false alarms, promised and found on fresh normal episodes, by combination.
        protocol: What was done.
    """

    rows: Mapping[str, Row]
    statistics: tuple[str, ...]
    combinations: tuple[str, ...]
    baselines: tuple[str, ...]
    false_alarms: Mapping[str, float]
    promised: tuple[float, ...]
    kept: Mapping[str, tuple[float, ...]]
    protocol: Mapping[str, Any]

    def auroc(self, case: str, name: str, *, window: int) -> float:
        """Area under the ROC curve of a number; NaN where nothing was labeled."""
        found = self.rows[case].separation.get(window, {}).get(name)
        return math.nan if found is None else found.auroc

    def at(self, level: str) -> list[str]:
        """Cases of one strength that labeled anything."""
        return [name for name, row in self.rows.items() if row.level == level and row.separation]

    def best_baseline(self, case: str, *, window: int) -> float:
        """The highest area of a baseline."""
        return max(self.auroc(case, name, window=window) for name in self.baselines)

    def summary(self, combination: str, *, window: int, level: str = "middle") -> dict[str, float]:
        """Mean area of a combination at one strength, and by how much the best baseline beats it at most."""
        found = {case: self.auroc(case, combination, window=window) for case in self.at(level)}
        behind = {case: self.best_baseline(case, window=window) - area for case, area in found.items()}
        return {
            "auroc": float(np.mean(list(found.values()))),
            "lowest": min(found.values()),
            "behind_baseline": max(behind.values()),
        }

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it; infinite delays are None."""
        plain = asdict(self)
        for row in plain["rows"].values():
            for found in row["delay"].values():
                found["median"] = found["median"] if math.isfinite(found["median"]) else None
        plain["summary"] = {
            name: {str(window): self.summary(name, window=window) for window in WINDOWS}
            for name in (*self.combinations, *self.statistics, *self.baselines)
        }
        return plain


def gather(
    run: str | os.PathLike[str] | WorldModel,
    dataset: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str],
    config: AnomalyConfig | None = None,
    progress: bool = True,
) -> Evidence:
    """Play, score and judge; write `anomalies.json` and `anomalies.html`.

    Args:
        run: The folder of a run, the name of a world that ships, or a world.
        dataset: What it was trained on: says environment and policy, and fits the baselines.
        out: Folder for the results, and for what is kept on the way.
        config: What to do.
        progress: Show progress bars.

    Raises:
        ValueError: If the data set's spaces are not the world's, or it does not say how it was recorded.
        FileNotFoundError: If there is no run or no data set.
    """
    config, out = config or AnomalyConfig(), Path(out)
    device = chosen_device(config.device)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    world = run if isinstance(run, WorldModel) else load(run, device=device)
    check_compatible(world.config.data, dataset.spec)
    stage = Stage(dataset, steps=config.steps, env_id=config.env, policy=config.policy)
    planned = cases(stage.possible(), episodes=config.episodes, normal=config.normal, seed=config.seed)
    picture = mean_frame(dataset)
    scorer = _Scorer(world, dataset, config, out / "cases", progress)
    found: dict[str, tuple[Case, Judged]] = {}
    transitions = sum(len(case.seeds) for case in planned) * config.steps
    bar = tqdm(planned, desc=f"at most {transitions} transitions", unit="case", delay=2, disable=not progress)
    for case in bar:
        found[case.name] = case, scorer(case, lambda case=case: list(stage.play(case)))
    few = next(case for case in planned if case.name == NORMAL)
    for name in SIMPLE:
        case = Case(name=f"simple: {name}", kind="simple", seeds=few.seeds[: max(8, config.episodes)])
        make = lambda case=case, name=name: simple_episodes(  # noqa: E731
            list(stage.play(Case(name=NORMAL, kind="normal", seeds=case.seeds))), name, mean_frame=picture
        )
        found[case.name] = case, scorer(case, make)
    evidence, detectors = judge(found, protocol=_protocol(world, dataset, stage, config))
    from worldflow.anomaly_report import write_evidence  # drawing is slow to import

    write_evidence(evidence, found, detectors, out=out, grid=world.config.flow.grid)
    return evidence


class _Scorer:
    """Scores a case, or reads what was kept of it; baselines are fitted when the first one needs them."""

    def __init__(
        self, world: WorldModel, dataset: Dataset, config: AnomalyConfig, folder: Path, progress: bool
    ) -> None:
        self.world, self.dataset, self.config, self.folder = world, dataset, config, folder
        self.progress = progress
        self.world_print = world_fingerprint(world)
        self._baselines: Baselines | None = None

    def __call__(self, case: Case, play: Any) -> Judged:
        about = json.dumps([case.about, self.config.steps, self.config.env, self.config.policy, self.world_print])
        about += f" {self.config.baseline_minutes}"
        return kept(self.folder / f"{case.slug}.npz", about=about, make=lambda: self._judged(case, play()))

    def _judged(self, case: Case, episodes: Sequence[Episode]) -> Judged:
        if not episodes:
            raise ValueError(f"{case.name}: no normal episode lasts {ONSET[0]} transitions, which nothing is done in")
        # Normal episodes that calibrate must not share their noise with those that are judged.
        seed = 1 if case.name == CALIBRATION else 0
        scores = score(self.world, episodes, num_draws=DRAWS, seed=seed, progress=False)
        numbers = [self.baselines(episode) for episode in episodes]
        return Judged(
            scores=scores,
            baselines={name: [row[name] for row in numbers] for name in numbers[0]},
            frames=episodes[0].frames,
        )

    @property
    def baselines(self) -> Baselines:
        if self._baselines is None:
            predictor = None
            if self.config.baseline_minutes > 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                predictor = make_predictor(
                    self.dataset,
                    folder=self.folder.parent,
                    minutes=self.config.baseline_minutes,
                    seed=self.config.seed,
                    device=self.world.device,
                    progress=self.progress,
                )
            self._baselines = fit_baselines(self.world, self.dataset, predictor=predictor, seed=self.config.seed)
        return self._baselines


def judge(
    found: Mapping[str, tuple[Case, Judged]],
    *,
    protocol: Mapping[str, Any],
    combinations: Sequence[CombinationName] | None = None,
) -> tuple[Evidence, dict[str, Detector]]:
    """Hold numbers of all cases against those of normal episodes.

    Args:
        found: From names to cases and what was scored of them; calibration and normal ones among them.
        protocol: What was done, to be noted.
        combinations: Ways to compare; by default all, the forest where scikit-learn is installed.

    Returns:
        The evidence, and the detectors by combination.
    """
    if combinations is None:
        has_forest = importlib.util.find_spec("sklearn") is not None
        combinations = [name for name in COMBINATIONS if name != "forest" or has_forest]
    usual, normal = found[CALIBRATION][1], found[NORMAL][1]
    detectors = {name: calibrate_scores(usual.scores, combination=name) for name in combinations}
    numbers = _Numbers(detectors, usual)
    normal_values = numbers(normal)
    limits = thresholds(numbers(usual.every_second)[1], onset=ONSET[0])  # which no combination is fitted to
    rows = {}
    for name, (case, judged) in found.items():
        if case.kind == "normal":
            continue
        labels = [_labels(s) for s in judged.scores]
        values = numbers(judged)
        separations: dict[int, dict[str, Separation]] = {}
        for window in WINDOWS:
            for key, odd in values[window].items():
                one = separation(normal_values[window][key], odd, labels, window=window, onset=ONSET[0])
                if one is not None:
                    separations.setdefault(window, {})[key] = one
        delays = {key: delay(odd, labels, threshold=limits[key]) for key, odd in values[1].items()}
        rows[name] = Row(
            kind=case.kind,
            anomaly=case.anomaly,
            level=case.level,
            separation=separations,
            delay={key: one for key, one in delays.items() if one is not None},
        )
    beyond = {
        key: float(np.mean(np.concatenate([v[ONSET[0] :] for v in values]) > limits[key]))
        for key, values in normal_values[1].items()
    }
    promised = tuple(float(f"{rate:.4g}") for rate in np.geomspace(0.005, 0.5, 13))
    p_values = {key: np.concatenate([a.p_value for a in d(normal.scores)]) for key, d in detectors.items()}
    evidence = Evidence(
        rows=rows,
        statistics=numbers.statistics,
        combinations=tuple(detectors),
        baselines=tuple(name for name in BASELINES if name in usual.baselines),
        false_alarms=beyond,
        promised=promised,
        kept={key: tuple(float((p <= rate).mean()) for rate in promised) for key, p in p_values.items()},
        protocol=protocol,
    )
    return evidence, detectors


class _Numbers:
    """Every number of every transition, averaged over windows; combinations are of averages so long or longer."""

    def __init__(self, detectors: Mapping[str, Detector], usual: Judged) -> None:
        self.detectors = detectors
        self.any = next(iter(detectors.values()))
        self.statistics = (*self.any.statistics, *READINGS)
        self.usual = {name: np.concatenate(values) for name, values in usual.baselines.items()}
        self.above = np.concatenate([s.above_floor for s in usual.scores])
        self.typicality = np.concatenate([s.typicality for s in usual.scores])
        stacked = [self._others(judged_scores, usual, i) for i, judged_scores in enumerate(usual.scores)]
        self.averages = Averages.of(stacked)

    def __call__(self, judged: Judged) -> dict[int, dict[str, list[np.ndarray]]]:
        """From windows to names to values on each episode."""
        result: dict[int, dict[str, list[np.ndarray]]] = {window: {} for window in WINDOWS}
        for i, scores in enumerate(judged.scores):
            watched = self.any.watched(scores).reshape(len(WINDOWS), -1, len(scores))
            others = self.averages(self._others(scores, judged, i))[0].reshape(len(WINDOWS), -1, len(scores))
            for row, window in enumerate(WINDOWS):
                values = dict(zip(self.any.statistics, watched[row], strict=True))
                values |= dict(zip((*READINGS, *self.usual), others[row], strict=True))
                values |= {name: detector.oddness(scores, window=window) for name, detector in self.detectors.items()}
                for name, value in values.items():
                    result[window].setdefault(name, []).append(value)
        return result

    def _others(self, scores: EpisodeScores, judged: Judged, number: int) -> np.ndarray:
        """What no detector watches: both sides of likelihood, and baselines."""
        rows = [two_sided(self.above, scores.above_floor), two_sided(self.typicality, scores.typicality)]
        for name, usual in self.usual.items():
            values = judged.baselines[name][number]
            rows.append(two_sided(usual, values) if name in TWO_SIDED else values)
        return np.stack(rows)


def _labels(scores: EpisodeScores) -> np.ndarray:
    """Which transitions are labeled; another policy acts from the first onset on."""
    return np.arange(len(scores)) >= ONSET[0] if scores.anomaly is None else scores.anomaly


def _protocol(world: WorldModel, dataset: Dataset, stage: Stage, config: AnomalyConfig) -> dict[str, Any]:
    import worldflow

    return {
        **asdict(config),
        "world": world_fingerprint(world),
        "data set": dataset.spec.dataset_id,
        "environment": json.loads(dataset.spec.env_spec)["id"]
        if config.env is None and dataset.spec.env_spec
        else config.env,
        "policy": stage.policy,
        "random fraction": stage.random_fraction,
        "onset": list(ONSET),
        "draws of the noise": DRAWS,
        "windows": list(WINDOWS),
        "control": f"from step {ONSET[0]} on another policy",
        "version": worldflow.__version__,
    }
