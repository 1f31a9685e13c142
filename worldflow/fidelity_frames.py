"""Frames of an evaluation: make the gauge, imagine and predict a few clips at a time, and keep what was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from worldflow.data import Dataset, gather
from worldflow.evaluate import imagine_clips
from worldflow.fidelity_measures import SHUFFLED
from worldflow.fidelity_outcomes import Outcomes
from worldflow.fidelity_types import COPY, DETERMINISTIC, REAL, WORLD, Pictures
from worldflow.frechet import ClipEncoder
from worldflow.gauge import WINDOW, Gauge, Projections, Reading, Stills, joined
from worldflow.index import sample_index
from worldflow.manifold import training_frames
from worldflow.perceptual import perceptual_distance
from worldflow.types import Clip
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from torch import Tensor

    from worldflow.predictor import FramePredictor
    from worldflow.probe import StateProbe

__all__ = ["Frames", "batches", "make_gauge", "read_frames", "read_outcomes"]

NUM_SHOWN = 4
OUTCOME_SAMPLES = 4
"""Most futures of a clip whose outcomes are compared; they cost as much as others and tell less."""
ROWS = 128
"""Futures imagined together."""
BYTES = 2**28
"""Of frames in memory for each predictor, about."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What is left of the frames: readings by predictor, and a few to look at."""

    readings: Mapping[str, Reading]
    pictures: Pictures


def make_gauge(
    dataset: Dataset,
    clips: Clip,
    probe: StateProbe | None,
    *,
    past: int,
    horizon: int,
    seed: int,
    device: torch.device,
) -> tuple[Gauge, dict[str, str]]:
    """A gauge for these clips, and what it cannot measure, with the reasons."""
    left_out, generator = {}, torch.Generator().manual_seed(seed)
    stills = Stills.of(dataset, clips.episode.tolist())
    if stills is None:
        left_out["still object"] = (
            "fewer than half of the episodes have pixels that stand still in them and differ from other episodes"
        )
    encoder, lengths = None, np.asarray(dataset.lengths)
    if horizon < WINDOW or len(clips.frames) < 8:
        left_out["frechet"] = f"it needs at least 8 clips of {WINDOW} steps, there are {len(clips.frames)} of {horizon}"
    else:
        index = sample_index(lengths, WINDOW - 1, 512, generator=generator, episodes=dataset.episodes("train"))
        index = np.unique(index[lengths[index[:, 0]] >= WINDOW - 1], axis=0)
        try:
            # Sets of half the clips must be a few times larger than a feature vector.
            num_features = min(16, len(clips.frames) // 4)
            encoder = ClipEncoder(gather(dataset, index, WINDOW - 1).frames, num_features=num_features)
        except ValueError as error:
            left_out["frechet"] = str(error)
    perceptual = perceptual_distance(dataset.spec.image_shape, device=device)
    if isinstance(perceptual, str):
        left_out["lpips"] = perceptual
    frames = torch.from_numpy(training_frames(dataset, 1000, generator=generator))
    gauge = Gauge(
        past=past,
        probe=probe,
        projections=Projections(frames, seed=seed),
        encoder=encoder,
        stills=stills,
        perceptual=None if isinstance(perceptual, str) else perceptual,
    )
    return gauge, left_out


def read_frames(
    world: WorldModel,
    gauge: Gauge,
    clips: Clip,
    shuffled: Tensor | None,
    *,
    predictor: FramePredictor | None,
    num_samples: int,
    generator: torch.Generator,
    progress: bool,
) -> Frames:
    """Read everything that is imagined, predicted, copied or real, a few clips at a time.

    Args:
        world: The world.
        gauge: Reads frames.
        clips: Whole clips.
        shuffled: Their actions with those of other clips, or None.
        predictor: The deterministic baseline, or None.
        num_samples: Futures of each clip.
        generator: Of everything imagined.
        progress: Show a progress bar.
    """
    past = gauge.past
    horizon, total = clips.actions.shape[1] - past, len(clips.frames) * (num_samples + (shuffled is not None))
    parts: dict[str, list[Reading]] = {}
    shown: dict[str, list[np.ndarray]] = {}
    with tqdm(total=horizon * total, desc="imagine", unit="step", unit_scale=True, disable=not progress) as bar:

        def imagine(part: Clip, num: int) -> Tensor:
            dream = imagine_clips(world, part, past=past, num_samples=num, generator=generator)
            bar.update(len(part.frames) * num * horizon)
            return dream.frames.cpu()

        for part, actions in batches(clips, shuffled, rows=num_samples):
            real = part.frames[None, :, past + 1 :]
            predictions = {WORLD: imagine(part, num_samples), REAL: real}
            predictions[COPY] = part.frames[None, :, past : past + 1].expand_as(real)
            if predictor is not None:
                given = part.frames[:, : past + 1], part.actions[:, :past], part.actions[:, past:]
                predictions[DETERMINISTIC] = predictor.rollout(*given).cpu()[None]
            if actions is not None:
                predictions[SHUFFLED] = imagine(Clip(**{**vars(part), "actions": actions}), 1)
            for name, frames in predictions.items():
                parts.setdefault(name, []).append(gauge.read(part, frames))
            if sum(map(len, shown.get("real", []))) < NUM_SHOWN:
                _show(shown, part.frames[:, past], predictions)
    real, last, mean = (np.concatenate(shown[name])[:NUM_SHOWN] for name in ("real", "last", "mean"))
    return Frames(
        readings={name: joined(each) for name, each in parts.items()},
        pictures=Pictures(
            last=last,
            real=real,
            mean=mean,
            samples=np.concatenate(shown["samples"], axis=1)[:, :NUM_SHOWN],
            deterministic=None if predictor is None else np.concatenate(shown[DETERMINISTIC])[:NUM_SHOWN],
        ),
    )


def read_outcomes(
    world: WorldModel, clips: Clip, *, past: int, num_samples: int, generator: torch.Generator, progress: bool
) -> Outcomes:
    """Rewards and ends of imagined futures of clips that may end early.

    Args:
        world: The world.
        clips: The clips.
        past: Transitions of each before the first one to imagine.
        num_samples: Futures of each clip; at most `OUTCOME_SAMPLES` are imagined.
        generator: Of everything imagined.
        progress: Show a progress bar.
    """
    num, horizon, outcomes = min(OUTCOME_SAMPLES, num_samples), clips.actions.shape[1] - past, []
    total = horizon * len(clips.frames) * num
    with tqdm(total=total, desc="outcomes", unit="step", unit_scale=True, disable=not progress) as bar:
        for part, _ in batches(clips, None, rows=num):
            outcomes.append(Outcomes.of(imagine_clips(world, part, past=past, num_samples=num, generator=generator)))
            bar.update(len(part.frames) * num * horizon)
    return Outcomes.joined(outcomes)


def batches(clips: Clip, actions: Tensor | None, *, rows: int) -> Iterator[tuple[Clip, Tensor | None]]:
    """Clips and their other actions, a few at a time, so that `rows` futures of each are not too many together."""
    size = int(np.prod(clips.frames.shape[1:]))
    num = max(1, min(ROWS, BYTES // size) // rows)
    for at in range(0, len(clips.frames), num):
        part = slice(at, at + num)
        yield clips[part], None if actions is None else actions[part]


def _show(shown: dict[str, list[np.ndarray]], last: Tensor, predictions: Mapping[str, Tensor]) -> None:
    """Keep a few clips to look at."""
    mean = predictions[WORLD].float().mean(0).round().to(torch.uint8)
    parts = {"last": last, "real": predictions[REAL][0], "mean": mean, "samples": predictions[WORLD][:2]}
    if DETERMINISTIC in predictions:
        parts[DETERMINISTIC] = predictions[DETERMINISTIC][0]
    for name, frames in parts.items():
        shown.setdefault(name, []).append(frames.numpy())
