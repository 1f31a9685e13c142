"""`worldflow score`: scores of recorded episodes, as tables, pictures and alarms."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tyro.conf import Positional, arg

from worldflow.calibration import calibrate
from worldflow.checkpoint import load
from worldflow.combination import DEFAULT_COMBINATION, CombinationName
from worldflow.data import Dataset
from worldflow.detector import Alarms, Detector
from worldflow.frames import picture
from worldflow.score import score, write_csv, write_json
from worldflow.score_types import EpisodeScores, columns
from worldflow.scored_copy import write_scored_copy
from worldflow.world import WorldModel

__all__ = ["Alarmed", "Score"]


class Alarmed(Exception):  # noqa: N818 - it is a result, not an error
    """The command did its work, and an episode rang.

    Args:
        result: What it would have returned.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("an episode rang")
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score recorded episodes by their exact likelihood under a learned world."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """Folder of the run, as `worldflow train --out` wrote it, or the name of a world that ships."""
    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of the data set, or recordings that `worldflow import` reads without being told more."""
    out: str | None = None
    """File for the scores: .csv, a row a transition, or .json; without it, averages are printed only. With --normal or
    --detector it says of each transition whether it rings, too."""
    infos: str | None = None
    """Folder for a copy of the data set that has the scores in its infos, for whoever reads it by Minari."""
    size: int | None = None
    """Rows and columns that the pictures of recordings are brought to, as by `worldflow import --size`; without it,
    those of another size than the world's are refused. Not for data sets, which `worldflow import` has brought to one.
    """
    draws: int = 1
    """Draws of the codes' noise to average over; more of them make scores less noisy. A stored detector has its
    own."""
    seed: int = 0
    """Of the noise: the same seed gives the same scores."""
    without_pixels: bool = False
    """Leave out the bound on the bits of pixels, which decodes every draw."""
    normal: str | None = None
    """Folder of a data set of normal episodes, not trained on: learn from it when to ring."""
    detector: str | None = None
    """File of a detector to ring by; with --normal, where to keep the one that is learned (.npz)."""
    false_alarm_rate: float = 0.01
    """With --normal: share of normal transitions that may ring."""
    episode_false_alarm_rate: float = 0.1
    """With --normal: share of normal episodes that may ring."""
    combination: CombinationName = DEFAULT_COMBINATION
    """With --normal: how statistics become one number."""
    fail_on_alarm: bool = False
    """End with status 3 if an episode rings as a whole or by drift; needs --normal or --detector."""
    video: str | None = None
    """Folder for a video of each episode with a meter of its surprise, red where it rings."""
    heat: str | None = None
    """Picture of what the tokens of the most surprising frames cost (.png or .svg); not for worlds with shallow blocks.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print the averages of each episode as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Score.

        Raises:
            Alarmed: If an episode rang and that was to fail.
        """
        self._check()
        with contextlib.ExitStack() as stack:
            return self._scored(stack)

    def _scored(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        dataset = _minari(self.dataset)
        if dataset is not None and self.size is not None:
            raise ValueError(f"{self.dataset} is a data set, whose pictures keep their size; leave --size out")
        world = load(self.run, device=device)
        dataset = dataset or _imported(self.dataset, world, stack, size=self.size)
        detector = self._detector(world)
        if detector is not None and self.without_pixels and "pixels" in detector.statistics:
            raise ValueError("the detector rests on the bits of pixels; leave --without-pixels out")
        draws = self.draws if detector is None else detector.num_draws
        scores = score(world, dataset, num_draws=draws, seed=self.seed, pixels=not self.without_pixels)
        result: dict[str, Any] = {"episodes": len(scores), "transitions": sum(map(len, scores))}
        alarms = None if detector is None else detector(scores)
        if self.out is not None:
            write = write_json if Path(self.out).suffix.lower() == ".json" else write_csv
            result["scores"] = str(write(scores, self.out, alarms=alarms))
        if self.infos is not None:
            result["infos"] = str(write_scored_copy(scores, dataset, self.infos, alarms=alarms))
        result["mean"] = _means(scores)
        if self.json:
            result["by_episode"] = [_means([episode]) for episode in scores]
        if self.video is not None:
            result["videos"] = _write_videos(Path(self.video), dataset, scores, alarms)
        if self.heat is not None:
            result["heat"] = str(_write_heat(self.heat, world, dataset, scores))
        if detector is None or alarms is None:
            return result
        rang = [i for i, a in enumerate(alarms) if a.rings]
        result["ringing_transitions"] = sum(int(a.transition.sum()) for a in alarms)
        result["ringing_episodes"] = rang
        result["false_alarm_rate"], result["false_alarm_rate_error"] = detector.false_alarm_rate, detector.rate_error
        result["normal_episodes_to_know_it"] = detector.episodes_needed
        if rang and self.fail_on_alarm:
            raise Alarmed(result)
        return result

    def _check(self) -> None:
        if self.out is not None and Path(self.out).is_dir():
            raise IsADirectoryError(f"--out must name a file to write, got the folder {self.out}")
        if self.infos is not None and Path(self.infos).exists():
            raise FileExistsError(f"--infos must name a new folder, there is something at {self.infos}")
        if self.video is not None and Path(self.video).is_file():
            raise NotADirectoryError(f"--video must name a folder, got the file {self.video}")
        if self.fail_on_alarm and self.normal is None and self.detector is None:
            raise ValueError("--fail-on-alarm needs to know what rings: give --normal DATASET or --detector FILE")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no GPU that torch can use; leave --device out or give cpu")

    def _detector(self, world: WorldModel) -> Detector | None:
        if self.normal is None:
            return None if self.detector is None else Detector.load(self.detector, world=world)
        detector = calibrate(
            world,
            self.normal,
            false_alarm_rate=self.false_alarm_rate,
            episode_false_alarm_rate=self.episode_false_alarm_rate,
            combination=self.combination,
            num_draws=self.draws,
            seed=self.seed + 1,
            pixels=not self.without_pixels,
        )
        if self.detector is not None:
            detector.save(self.detector)
        return detector


def _minari(path: str) -> Dataset | None:
    """A data set; None where something else is there."""
    try:
        return Dataset(path)
    except FileNotFoundError:
        if not Path(path).exists():
            raise
        return None


def _imported(path: str, world: WorldModel, stack: contextlib.ExitStack, *, size: int | None) -> Dataset:
    """Recordings as a data set in a folder that goes with `stack`, with pictures of so many rows where that is said."""
    from worldflow.envs.importing import import_recordings
    from worldflow.envs.observations import recorded_action_space

    data = world.config.data
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "imported"
    found = import_recordings(
        path,
        out=folder,
        size=size,
        observation="vector" if data.is_vector else "pixels" if data.parts is None else "dict",
        action_space=recorded_action_space(world),
    )
    if not found.has_rewards:
        warnings.warn(
            f"{path} has no rewards: they are scored as zeros, so `reward` and what it is a part of mean little",
            stacklevel=2,
        )
    dataset = Dataset(folder)
    stack.callback(dataset.close)
    return dataset


def _means(scores: Sequence[EpisodeScores]) -> dict[str, float]:
    return {name: float(np.concatenate([columns(s)[name] for s in scores]).mean()) for name in columns(scores[0])}


def _write_videos(
    folder: Path, dataset: Dataset, scores: Sequence[EpisodeScores], alarms: Sequence[Alarms] | None
) -> list[str]:
    from worldflow.surprise_views import surprise_meter
    from worldflow.video import write_video

    if alarms is None:  # nothing at the quantile of a tenth, full at that of 99 hundredths
        above = np.concatenate([s.above_floor for s in scores])
        low, high = np.quantile(above, (0.1, 0.99))
        meters, full = [s.above_floor - low for s in scores], max(float(high - low), 1e-9)
    else:  # nothing at a p-value of 1, full at the smallest one
        meters = [-np.log10(a.p_value) for a in alarms]
        full = max(float(np.concatenate(meters).max()), 1e-9)
    paths = []
    for number, meter in enumerate(meters):
        frames = picture(dataset.frames(number, 0, len(meter) + 1))
        rings = None if alarms is None else alarms[number].transition
        clip = surprise_meter(frames, meter, full=full, rings=rings)
        paths.append(str(write_video(clip, folder / f"episode_{number:04d}.mp4")))
    return paths


def _write_heat(path: str, world: WorldModel, dataset: Dataset, scores: Sequence[EpisodeScores]) -> Path:
    from worldflow.figures import save_figure
    from worldflow.surprise_views import token_figure

    number = int(np.argmax([s.above_floor.max() for s in scores]))
    token = scores[number].token
    if token is None:
        raise ValueError("--heat: this world has shallow blocks, so what a token costs is not exact; leave it out")
    most = np.sort(np.argsort(scores[number].above_floor)[-6:]).tolist()
    frames = picture(dataset.frames(number, 0, len(token) + 1))
    token = token[:, : math.prod(world.config.flow.grid)]  # those of a vector have no place in the picture
    grid, title = world.config.flow.grid, f"Episode {number}: its most surprising frames"
    return save_figure(token_figure(frames, token, grid=grid, transitions=most, title=title), path)
