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

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from worldflow.anomaly_baselines import Baselines, fit_baselines
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
from worldflow.anomaly_judge import Evidence, judge
from worldflow.anomaly_store import Judged, kept
from worldflow.checkpoint import load
from worldflow.data import Dataset
from worldflow.fingerprint import world_fingerprint
from worldflow.instruments import make_predictor
from worldflow.score import score
from worldflow.spaces import check_compatible
from worldflow.train import chosen_device
from worldflow.watched import WINDOWS
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.types import Episode

__all__ = ["AnomalyConfig", "gather"]

DRAWS = 1
SCORED = 2
"""What is scored of a case; what was kept by a version that scored less is scored anew."""


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
        about += f" {self.config.baseline_minutes} {SCORED}"
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
