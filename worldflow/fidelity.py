"""How faithful is a world? Every measure over the horizon, beside its baselines, on episodes that were never seen.

    fidelity = wf.evaluate("runs/reacher", "data/reacher", out="runs/reacher/fidelity")

Clips start anywhere in held-out episodes that last to the horizon, dealt evenly over the episodes. The world is given
their first frames and then nothing but the recorded actions; so are a deterministic predictor, trained on the same
recordings for the same time, and the last frame, copied. All frames, the recorded ones included, are measured by one
gauge (`worldflow.gauge`). A measure that cannot be taken is left out with the reason, never estimated otherwise.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldflow import fidelity_measures, fidelity_outcomes
from worldflow.checkpoint import load
from worldflow.data import Dataset
from worldflow.evaluate import choose_horizon, held_out_clips, other_actions, whole_clips
from worldflow.fidelity_frames import Frames, batches, make_gauge, read_frames, read_outcomes
from worldflow.fidelity_long import LongRollouts, roll
from worldflow.fidelity_measures import Found
from worldflow.fidelity_types import REAL, WORLD, Fidelity
from worldflow.fingerprint import episode_hashes, fingerprint
from worldflow.gauge import Gauge, Reading
from worldflow.instruments import make_predictor, make_probe
from worldflow.permanence import permanent_coordinates
from worldflow.shipped import package_folder, run_folder
from worldflow.spaces import check_compatible
from worldflow.train import chosen_device
from worldflow.types import Clip
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.predictor import FramePredictor
    from worldflow.probe import StateProbe

__all__ = ["EvaluateConfig", "evaluate"]

NEAR = 4
"""Steps of the short clips."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How to evaluate a world; also the options of `worldflow evaluate`."""

    horizon: int = 64
    """Steps to imagine ahead; cut to what a quarter of the held-out episodes has room for."""
    clips: int = 64
    """Held-out clips to measure on."""
    near_clips: int = 256
    """Held-out clips of the first four steps alone, from anywhere in all held-out episodes: clips that last nearly as
    long as episodes all begin with them. 0 leaves them out."""
    samples: int = 16
    """Futures to imagine of each clip."""
    long: int = 500
    """Steps of the long rollouts; 0 leaves them out."""
    long_rollouts: int = 8
    """How many long rollouts."""
    seed: int = 0
    """Of the choice of clips, of everything imagined, and of the instruments."""
    baseline_minutes: float | None = None
    """Minutes to train the deterministic predictor; by default as long as the world was trained. 0 leaves it out."""
    probe_steps: int = 1600
    """Steps to fit the probe that reads the state from frames; 0 leaves it out."""
    device: str = "auto"
    """Where to compute; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("horizon", "clips", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("near_clips", "long", "long_rollouts", "seed", "probe_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.baseline_minutes is not None and not 0 <= self.baseline_minutes < math.inf:
            raise ValueError(f"baseline_minutes must be a number of minutes or 0, got {self.baseline_minutes}")


def evaluate(
    run: str | os.PathLike[str] | WorldModel,
    dataset: str | os.PathLike[str] | Dataset,
    *,
    out: str | os.PathLike[str] | None = None,
    config: EvaluateConfig | None = None,
    progress: bool = True,
    **options: Any,
) -> Fidelity:
    """Measure how faithful a world is.

    Args:
        run: The folder of a run, the name of a world that ships, or a world.
        dataset: The data set, or its folder; only its held-out episodes are measured on. Its training episodes fit the
            instruments.
        out: Folder for `report.html` and `fidelity.json`; None writes nothing.
        config: How to evaluate; or give its fields by name.
        progress: Show progress bars.
        options: Fields of `EvaluateConfig`.

    Returns:
        The measures.

    Raises:
        ValueError: If the data set's spaces are not the world's, it has no held-out episode that is long enough, or one
            of them was trained on.
        FileNotFoundError: If there is no run or no data set.

    Example:
        >>> fidelity = wf.evaluate("runs/reacher", "data/reacher", clips=32)     # doctest: +SKIP
        >>> fidelity.measures["physics"].at("world", 16)                         # doctest: +SKIP
    """
    if config is not None and options:
        raise ValueError(f"give either config or its fields, got both config and {sorted(options)}")
    config = config or EvaluateConfig(**options)
    device = chosen_device(config.device)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    with torch.random.fork_rng(devices=[]):  # networks that are read draw weights first: give the generator back
        if isinstance(run, WorldModel):
            folder, world, record = None, run.to(device), {}
            if world.training:
                raise ValueError("the world is in training mode, its codec would drift; call world.eval() first")
        else:
            world = load(run, device=device)
            folder = run_folder(run)
            record = json.loads((folder / "world.json").read_text()).get("training", {})
        check_compatible(world.config.data, dataset.spec)
        if dataset.spec.parts is not None:
            raise ValueError(
                "an evaluation measures pictures alone, but the observations are dictionaries of pictures and vectors; "
                "`worldflow score` says how likely transitions are, `worldflow.evaluate.rollout_report` how true "
                "imagined pictures"
            )
        if dataset.spec.is_vector:
            raise ValueError(
                "an evaluation measures pictures, but the observations are vectors; `worldflow score` says how likely "
                "their transitions are, `worldflow bench states` how far off predictions"
            )
        overlap = _check_overlap(record, dataset)
        evaluation = _Evaluation(world, dataset, config, folder, record, device, progress)
        fidelity = evaluation(overlap)
    if out is not None:
        from worldflow.fidelity_report import write_report  # drawing is slow to import

        fidelity.write_json(Path(out) / "fidelity.json")
        write_report(fidelity, Path(out) / "report.html")
    return fidelity


def _check_overlap(record: Mapping[str, Any], dataset: Dataset) -> str:
    """Refuse held-out episodes that were trained on; say what was compared."""
    trained = record.get("episode_hashes")
    held_out = episode_hashes(dataset, "held_out")
    if not trained:
        return "not checked: the run does not say which episodes it was trained on"
    if shared := set(trained) & set(held_out):
        raise ValueError(
            f"{len(shared)} of the {len(held_out)} held-out episodes of {dataset.path} were trained on, so they cannot "
            "tell how well the world does on new ones; evaluate on the data set it was trained on, whose split is "
            "kept, or on newly recorded episodes"
        )
    return f"none of {len(held_out)} held-out episodes is among the {len(trained)} that were trained on"


class _Evaluation:
    """One evaluation, from clips to measures."""

    def __init__(
        self,
        world: WorldModel,
        dataset: Dataset,
        config: EvaluateConfig,
        folder: Path | None,
        record: Mapping[str, Any],
        device: torch.device,
        progress: bool,
    ) -> None:
        self.world, self.dataset, self.config, self.record = world, dataset, config, record
        self.device, self.progress = device, progress
        self.folder = folder
        # Nothing is written into the package, where worlds that ship lie.
        is_own = folder is not None and not folder.resolve().is_relative_to(package_folder().resolve())
        self.cache = folder if is_own and os.access(folder or "", os.W_OK) else None
        self.past = world.config.flow.window - 1
        self.num_near = 0
        self.recorded: dict[int, np.ndarray] = {}  # states, by episode
        self.left_out: dict[str, str] = {}
        self.found: list[Found] = []

    def __call__(self, overlap: str) -> Fidelity:
        config, past = self.config, self.past
        self.horizon = choose_horizon(self.dataset, past=past, wanted=config.horizon)
        if self.horizon < config.horizon:
            self.left_out["longer horizons"] = (
                f"{self.horizon} steps instead of {config.horizon}: held-out episodes have no room for more"
            )
        clips = whole_clips(self.dataset, past=past, horizon=self.horizon, num_clips=config.clips, seed=config.seed)
        states = self._states(clips)
        probe = self._probe(states is not None)
        predictor = self._predictor()
        gauge, missing = make_gauge(
            self.dataset, clips, probe, past=past, horizon=self.horizon, seed=config.seed, device=self.device
        )
        self.left_out.update(missing)
        shuffled = other_actions(clips, past=past)
        outcome_clips = held_out_clips(
            self.dataset, past=past, horizon=self.horizon, num_clips=config.clips, seed=config.seed + 1
        )
        generator = torch.Generator().manual_seed(config.seed)
        frames = self._read(gauge, clips, shuffled, predictor, generator)
        outcomes = read_outcomes(
            self.world,
            outcome_clips,
            past=past,
            num_samples=config.samples,
            generator=generator,
            progress=self.progress,
        )
        self._measure(frames.readings, gauge, clips, _truth(gauge, states))
        if (near := self._first_steps(gauge, predictor)) is not None:
            self.found.append(near)
        self._outcomes(outcomes, outcome_clips)
        if shuffled is None:
            self._leave_out(("action sensitivity",), "it needs at least 2 clips")
        self.found.append(fidelity_outcomes.likelihood(self.world, clips, shuffled, past=past, seed=config.seed))
        long = self._long(clips, predictor)
        found = self.found
        return Fidelity(
            measures={name: m for part in found for name, m in part.measures.items()},
            numbers={name: n for part in found for name, n in part.numbers.items()},
            tables={name: t for part in found for name, t in part.tables.items()},
            left_out=self.left_out,
            protocol=self._protocol(clips, outcome_clips, gauge, overlap),
            pictures=frames.pictures
            if long is None
            else replace(frames.pictures, long=long.frames, long_every=long.every),
        )

    def _read(
        self,
        gauge: Gauge,
        clips: Clip,
        shuffled: torch.Tensor | None,
        predictor: FramePredictor | None,
        generator: torch.Generator,
    ) -> Frames:
        return read_frames(
            self.world,
            gauge,
            clips,
            shuffled,
            predictor=predictor,
            num_samples=self.config.samples,
            generator=generator,
            progress=self.progress,
        )

    # -- instruments ------------------------------------------------------------------------------------------------

    def _states(self, clips: Clip) -> np.ndarray | None:
        from worldflow.episodes import recorded_state

        rows = []
        try:
            for number, start in zip(clips.episode.tolist(), clips.start.tolist(), strict=True):
                if number not in self.recorded:
                    where = f"episode {number} of {self.dataset.path}"
                    self.recorded[number] = recorded_state(self.dataset.episode(number), where=where)
                first = start + self.past + 1
                rows.append(self.recorded[number][first : first + clips.actions.shape[1] - self.past])
        except ValueError as error:
            self._leave_out(("physics", "jumps", "drift of permanent coordinates"), str(error))
            return None
        return np.stack(rows)

    def _probe(self, has_states: bool) -> StateProbe | None:
        if not has_states:
            return None
        names = ("physics", "jumps", "drift of permanent coordinates")
        if self.config.probe_steps == 0:
            return self._leave_out(names, "asked to fit no probe (--probe-steps 0)")
        try:
            return make_probe(
                self.dataset,
                folder=self.cache,
                steps=self.config.probe_steps,
                seed=self.config.seed,
                device=self.device,
                progress=self.progress,
            )
        except ValueError as error:
            return self._leave_out(names, str(error))

    @property
    def baseline_minutes(self) -> float:
        """Minutes that the deterministic predictor is trained."""
        if self.config.baseline_minutes is not None:
            return self.config.baseline_minutes
        known = self.record.get("minutes_trained") or (self.record.get("config") or {}).get("minutes")
        return float(known or 5.0)

    def _predictor(self) -> FramePredictor | None:
        if self.baseline_minutes == 0:
            return self._leave_out(("deterministic baseline",), "asked to train none (--baseline-minutes 0)")
        return make_predictor(
            self.dataset,
            folder=self.cache,
            minutes=self.baseline_minutes,
            seed=self.config.seed,
            device=self.device,
            progress=self.progress,
        )

    def _leave_out(self, names: tuple[str, ...], reason: str) -> None:
        for name in names:
            self.left_out[name] = reason

    # -- measures ---------------------------------------------------------------------------------------------------

    def _measure(self, readings: Mapping[str, Reading], gauge: Gauge, clips: Clip, truth: np.ndarray | None) -> None:
        add: Callable[[Found], None] = self.found.append
        add(fidelity_measures.pictures(readings))
        if readings[WORLD].ssim is None:
            self._leave_out(("ssim",), "frames are smaller than its window of 11 pixels")
        what, permanent = "random projections of frames", None
        if truth is not None and gauge.probe is not None:
            kept = gauge.probe.kept.cpu().numpy()
            what, states = "probed states", [self.recorded[number] for number in clips.episode.unique().tolist()]
            permanent = permanent_coordinates(states)[kept] if len(states) > 1 else None
            add(fidelity_measures.physics(readings, truth, names=[f"state[{k}]" for k in kept]))
            if permanent is None or not permanent.any():
                reason = "no coordinate of the state is constant within episodes and differs between them"
                self._leave_out(("drift of permanent coordinates",), reason)
        add(fidelity_measures.permanence(readings, truth, permanent))
        add(fidelity_measures.calibration(readings, what=what))
        if self.config.samples < 2:
            self._leave_out(("coverage, ranks and diversity",), "they need at least 2 futures (--samples)")
        if readings[REAL].features is not None and gauge.encoder is not None:
            add(fidelity_measures.frechet(readings, clips.episode.numpy(), encoder=gauge.encoder.name))

    def _first_steps(self, gauge: Gauge, predictor: FramePredictor | None) -> Found | None:
        """The errors of short clips from anywhere, beside those of long ones."""
        if self.config.near_clips == 0:
            return self._leave_out(("first steps",), "asked for none (--near-clips 0)")
        if self.horizon <= NEAR:
            return self._leave_out(("first steps",), f"clips of {self.horizon} steps come from anywhere already")
        seed = self.config.seed + 2
        clips = whole_clips(self.dataset, past=self.past, horizon=NEAR, num_clips=self.config.near_clips, seed=seed)
        self.num_near = len(clips.frames)
        gauge = replace(gauge, encoder=None, stills=None, perceptual=None, has_ssim=False)
        frames = self._read(gauge, clips, None, predictor, torch.Generator().manual_seed(seed))
        truth = _truth(gauge, None if gauge.probe is None else self._states(clips))
        return fidelity_measures.first_steps(frames.readings, truth, self.num_near)

    def _outcomes(self, outcomes: fidelity_outcomes.Outcomes, clips: Clip) -> None:
        past, dataset = self.past, self.dataset
        train = np.concatenate([dataset.outcomes(int(i))[1] for i in dataset.episodes("train")])
        reward = fidelity_outcomes.rewards(outcomes, clips, past=past, mean_reward=float(train.mean()))
        base = fidelity_outcomes.survival(dataset, past=past, horizon=self.horizon)
        termination = fidelity_outcomes.terminations(outcomes, clips, base, past=past)
        generator = torch.Generator().manual_seed(self.config.seed)
        log_prob = torch.cat(
            [
                self.world.log_prob(
                    part.frames, part.actions, terminated=part.terminated, generator=generator
                ).terminated[:, past:]
                for part, _ in batches(clips, None, rows=8)
            ]
        )
        one_step = fidelity_outcomes.one_step_terminations(log_prob, clips, past=past, base_rate=float(base[0]))
        self.found += [reward, termination, Found(measures={}, numbers=one_step, tables={})]
        if not reward.measures:
            self._leave_out(("reward",), "too few clips")
        if not termination.measures:
            ended, _ = fidelity_outcomes.ended_by(clips, past=past)
            reason = "it needs at least 2 futures (--samples)" if ended.any() else "no held-out clip terminates"
            self._leave_out(("termination over the horizon",), reason)

    def _long(self, clips: Clip, predictor: FramePredictor | None) -> LongRollouts | None:
        if self.config.long == 0 or self.config.long_rollouts == 0:
            return self._leave_out(("long rollouts",), "asked for none (--long 0)")
        long = roll(
            self.world,
            self.dataset,
            clips[: self.config.long_rollouts],
            predictor=predictor,
            past=self.past,
            num_steps=self.config.long,
            seed=self.config.seed,
            progress=self.progress,
        )
        self.found.append(long.found)
        self.left_out.update(long.left_out)
        return long

    def _protocol(self, clips: Clip, outcome_clips: Clip, gauge: Gauge, overlap: str) -> dict[str, Any]:
        import worldflow

        config, dataset = self.config, self.dataset
        return {
            "run": None if self.folder is None else _named(self.folder),
            "world parameters": sum(p.numel() for p in self.world.parameters()),
            "world trained minutes": self.record.get("minutes_trained"),
            "data set": _named(dataset.path),
            "data set id": dataset.spec.dataset_id,
            "held-out episodes": len(dataset.episodes("held_out")),
            "training episodes": len(dataset.episodes("train")),
            "held-out hash": fingerprint(dataset, "held_out"),
            "training hash": fingerprint(dataset, "train"),
            "overlap": overlap,
            "past": self.past,
            "horizon": self.horizon,
            "clips": len(clips.frames),
            "episodes of the clips": len(clips.episode.unique()),
            "clips of the first steps": self.num_near,
            "clips for outcomes": len(outcome_clips.frames),
            "samples": config.samples,
            "long": config.long,
            "seed": config.seed,
            "baseline minutes": self.baseline_minutes,
            "probe steps": config.probe_steps if gauge.probe is not None else 0,
            "clip encoder": None if gauge.encoder is None else gauge.encoder.name,
            "intervals": "95 %, bootstrap over clips (1000 resamples; Fréchet distance: jackknife)",
            "device": str(self.device),
            "versions": {
                "worldflow": worldflow.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }


def _truth(gauge: Gauge, states: np.ndarray | None) -> np.ndarray | None:
    """Recorded states as the gauge's probe counts them, where there is one."""
    return None if states is None or gauge.probe is None else gauge.true_state(states)


def _named(path: str | os.PathLike[str]) -> str:
    """A folder as a report may name it to others: from the current one on, or its last two parts."""
    whole = Path(path).resolve()
    if whole.is_relative_to(Path.cwd()):
        return whole.relative_to(Path.cwd()).as_posix()
    return Path(*whole.parts[-2:]).as_posix() if len(whole.parts) > 2 else whole.as_posix()
