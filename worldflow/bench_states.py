"""Worlds of state vectors beside a probabilistic ensemble: `worldflow bench states DATASET`.

Both learn from the same training episodes, for the same CPU time, counted by the CPU and not by the wall; the ensemble
stops by its own rule where it learns no more, and the table says when. On held-out episodes, after the same past and
under the recorded actions:

    error       root mean square over clips of what a number is off by, in its standard deviations over the training
                episodes, averaged over the numbers: of single futures, and of the mean of several
    likelihood  log-density of one step, nats, of the next vector under the noise that the flow's density needs. The
                ensemble's density is convolved with the same noise, so both are exact, and densities of the same thing

with 95 % bootstrap intervals over episodes. The ensemble is that of `worldflow.ensemble`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.atomic import write_bytes
from worldflow.data import Dataset, gather
from worldflow.ensemble import Ensemble, EnsembleConfig, fit_ensemble
from worldflow.metrics import bootstrap_interval
from worldflow.recipes import TrainConfig
from worldflow.timing import machine
from worldflow.train import train
from worldflow.types import Clip
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

__all__ = ["Measured", "StatesBench", "compare_states", "fitted_ensemble"]

FLOW, ENSEMBLE, COPY = "flow", "ensemble", "last state, copied"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure with its 95 % interval over episodes."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"


def compare_states(
    world: WorldModel,
    ensemble: Ensemble,
    dataset: Dataset,
    *,
    horizons: tuple[int, ...] = (1, 50),
    starts: int = 4,
    num_samples: int = 16,
    seed: int = 0,
) -> dict[str, dict[str, Measured]]:
    """Hold a world and an ensemble against held-out episodes.

    Args:
        world: The world.
        ensemble: The ensemble, trained on codes of the world's codec.
        dataset: The data set.
        horizons: Steps ahead at which errors are measured.
        starts: Clips of each held-out episode, spread evenly.
        num_samples: Futures of each clip.
        seed: Of the futures and the noise.

    Returns:
        For each predictor, measures by their names.

    Raises:
        ValueError: If no held-out episode is long enough.
    """
    past, longest = world.config.flow.window - 1, max(horizons)
    clips = _clips(dataset, length=past + longest, starts=starts)
    codes = world.codes(clips.frames)
    actions = world.encode_actions(clips.actions)
    generator = torch.Generator().manual_seed(seed)
    dream = world.imagine(
        clips.frames[:, : past + 1],
        clips.actions[:, :past],
        clips.actions[:, past:],
        num_samples=num_samples,
        generator=generator,
    )
    futures = {
        FLOW: world.codes(dream.frames).flatten(-2),
        ENSEMBLE: ensemble.imagine(
            codes[:, past].flatten(-2), actions[:, past:], num_samples=num_samples, generator=generator
        ),
        COPY: codes[None, :, past, None].flatten(-2).expand(1, -1, longest, -1),
    }
    found: dict[str, dict[str, Measured]] = {}
    for name, future in futures.items():
        found[name] = {}
        for h in horizons:
            true, guess = codes[:, past + h].flatten(-2), future[:, :, h - 1]
            found[name][f"single future, {h} steps"] = _rms((guess - true).square().mean(0), starts)
            if len(guess) > 1:
                found[name][f"mean of {num_samples}, {h} steps"] = _rms((guess.mean(0) - true).square(), starts)
    for name, nats in _log_probs(world, ensemble, clips, codes, past=past, generator=generator).items():
        found[name]["log-likelihood of a step"] = _mean(nats, starts)
    return found


def fitted_ensemble(
    world: WorldModel,
    dataset: Dataset,
    *,
    config: EnsembleConfig | None = None,
    minutes: float,
    clock: Callable[[], float] = time.process_time,
) -> Ensemble:
    """An ensemble of a world's training transitions, standardized as the world does it.

    Args:
        world: The world, of vectors; no more of it is used than its statistics.
        dataset: The data set.
        config: How to train.
        minutes: Most minutes to take.
        clock: Tells seconds.
    """
    begin, parts = clock(), []
    for number in dataset.episodes("train").tolist():
        episode = dataset.episode(number)
        codes = world.codes(torch.from_numpy(episode.frames)).flatten(-2)
        parts.append((codes[:-1], world.encode_actions(episode.actions), codes[1:]))
    states, actions, following = (torch.cat(part) for part in zip(*parts, strict=True))
    left = minutes - (clock() - begin) / 60
    return fit_ensemble(states, actions, following, config=config or EnsembleConfig(), minutes=left, clock=clock)


@dataclass(frozen=True, kw_only=True)
class StatesBench:
    """Prediction error and likelihood of a world of state vectors, beside a probabilistic ensemble."""

    dataset: Positional[Annotated[str, arg(metavar="DATASET")]]
    """Folder of a data set whose observations are vectors, as `worldflow collect --observation vector` wrote it."""
    starts: int = 4
    """Clips of each held-out episode."""
    samples: int = 16
    """Futures of each clip."""
    horizons: tuple[int, ...] = (1, 50)
    """Steps ahead at which errors are measured."""
    run: str | None = None
    """Folder to keep the flow's run in; by default it is not kept."""
    out: str | None = None
    """JSON file for the table."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: TrainConfig(preset="tiny", minutes=5.0))
    """How to train the flow; minutes of the CPU, and the seed, are the ensemble's, too."""

    def __call__(self) -> None:
        """Train both, measure and print."""
        dataset = Dataset(self.dataset)
        if not dataset.spec.is_vector:
            raise ValueError(f"{self.dataset} holds pictures; `worldflow evaluate` measures worlds of them")
        world, ensemble, seconds = self._trained(dataset)
        found = compare_states(
            world,
            ensemble,
            dataset,
            horizons=self.horizons,
            starts=self.starts,
            num_samples=self.samples,
            seed=self.config.seed,
        )
        print(as_table(found, seconds))
        if self.out is not None:
            plain = {
                "dataset": dataset.spec.dataset_id,
                "episodes": {side: len(dataset.episodes(side)) for side in ("train", "held_out")},
                "cpu_seconds": seconds,
                "noise_std": world.config.codec.noise_std,
                "command": asdict(self),
                "machine": machine(),
                "table": {name: {key: asdict(one) for key, one in row.items()} for name, row in found.items()},
            }
            write_bytes(self.out, json.dumps(plain, indent=1).encode())

    def _trained(self, dataset: Dataset) -> tuple[WorldModel, Ensemble, dict[str, float]]:
        config, clock = replace(self.config, device="cpu"), time.process_time
        if config.minutes is None:
            raise ValueError("equal time needs minutes to be equal in: give --minutes")
        with tempfile.TemporaryDirectory() as folder:
            begin = clock()
            run = Path(folder) / "run" if self.run is None else self.run
            world = train(dataset, out=run, config=config, clock=clock)
            seconds = {FLOW: clock() - begin}
        ensemble = fitted_ensemble(world, dataset, config=EnsembleConfig(seed=config.seed), minutes=config.minutes)
        return world, ensemble, seconds | {ENSEMBLE: ensemble.seconds}


def as_table(found: Mapping[str, Mapping[str, Measured]], seconds: Mapping[str, float]) -> str:
    """The measures, a line each."""
    columns = list(found)
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = [f"{'':<28}" + "".join(f"{column:>32}" for column in columns)]
    for name in names:
        cells = [str(found[column][name]) if name in found[column] else "" for column in columns]
        lines.append(f"{name:<28}" + "".join(f"{cell:>32}" for cell in cells))
    spent = [f"{seconds[column]:.0f}" if column in seconds else "" for column in columns]
    lines.append(f"{'CPU seconds':<28}" + "".join(f"{cell:>32}" for cell in spent))
    return "\n".join(lines)


def _clips(dataset: Dataset, *, length: int, starts: int) -> Clip:
    """`starts` windows of each held-out episode that is long enough, spread evenly, episode by episode."""
    lengths = np.asarray(dataset.lengths)
    long = [int(e) for e in dataset.episodes("held_out") if lengths[e] >= length]
    if not long:
        raise ValueError(f"no held-out episode lasts {length} steps; shorten the horizons or record longer episodes")
    index = [(e, int(at)) for e in long for at in np.linspace(0, lengths[e] - length, starts).round()]
    return gather(dataset, np.array(index), length)


@torch.no_grad()
def _log_probs(
    world: WorldModel, ensemble: Ensemble, clips: Clip, codes: Tensor, *, past: int, generator: torch.Generator
) -> dict[str, Float[Tensor, " clip"]]:
    """Log-density of every clip's transitions after its past, nats a transition."""
    x = world.with_noise(codes, generator=generator)
    flow = world.log_prob_latents(x, clips.actions, codes=codes).frame[:, past:]
    features = world.encode_actions(clips.actions)[:, past:]
    states, following = codes[:, past:-1].flatten(-2), x[:, past + 1 :].flatten(-2)
    rows = ensemble.log_prob(
        states.flatten(0, 1),
        features.flatten(0, 1),
        following.flatten(0, 1),
        noise_std=world.config.codec.noise_std,
    )
    return {FLOW: flow.mean(1), ENSEMBLE: rows.unflatten(0, flow.shape).mean(1)}


def _rms(squares: Float[Tensor, "clip number"], starts: int) -> Measured:
    """Root of the mean over clips, mean over numbers."""
    return _measured(squares, starts, lambda rows: np.sqrt(rows.mean(0)).mean())


def _mean(values: Float[Tensor, " clip"], starts: int) -> Measured:
    return _measured(values[:, None], starts, lambda rows: rows.mean())


def _measured(values: Tensor, starts: int, statistic: Callable[[Float64[np.ndarray, "episode any"]], Any]) -> Measured:
    rows = values.double().unflatten(0, (-1, starts)).mean(1).cpu().numpy()
    low, high = bootstrap_interval(rows, statistic=statistic)
    return Measured(mean=float(statistic(rows)), low=float(low), high=float(high))
