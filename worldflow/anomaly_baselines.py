"""What finds anomalies without a density: baselines that every statistic of a world is held against.

All are fitted to normal training episodes and say one number a transition, higher for more anomalous:

    frame difference       mean absolute difference between a frame and the one before it, levels of 255
    autoencoder error      mean squared error of the frame after the round trip through the world's own codec
    prediction error       mean squared error of a deterministic predictor of the next frame (`worldflow.predictor`)
    feature Gaussian       sum over features of the code of (x - m)^2 / s^2: each feature's own mean and variance
    nearest neighbor       distance of each token of the code from the nearest normal one; the farthest token's

The first two are read on both sides, see `two_sided`: a frame that stands still, and one that is too simple, differ and
err by too little. The neighbors are a coreset of normal tokens, picked one after the other as the farthest from those
picked before, as PatchCore does with features of a network trained on photographs.

Reference: Roth et al., 2022, "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worldflow.codec import to_float
from worldflow.detection import BASELINE, frame_difference
from worldflow.surprise import surprise
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Float

    from worldflow.data import Dataset
    from worldflow.predictor import FramePredictor
    from worldflow.types import Episode

__all__ = ["BASELINES", "TWO_SIDED", "Baselines", "coreset", "fit_baselines", "two_sided"]

AUTOENCODER, PREDICTION, GAUSSIAN, NEIGHBOR = (
    "autoencoder error",
    "prediction error",
    "feature Gaussian",
    "nearest neighbor",
)
BASELINES = (BASELINE, AUTOENCODER, PREDICTION, GAUSSIAN, NEIGHBOR)
"""Their names, in the order of tables."""
TWO_SIDED = (BASELINE, AUTOENCODER)
"""Those for which too little is as odd as too much."""
TOKENS = 8192
"""Normal tokens that the coreset is picked from."""
PICKED = 512
"""Tokens of the coreset."""
AT_ONCE = 64
"""Frames in one pass."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Fitted baselines; called with an episode, they say a number a transition each.

    Args:
        world: The world, for its codec.
        predictor: The predictor of the next frame; None leaves its error out.
        mean, std: Of every feature of normal codes.
        normal: The coreset of normal tokens.
    """

    world: WorldModel
    predictor: FramePredictor | None
    mean: Float[Tensor, "token latent"]
    std: Float[Tensor, "token latent"]
    normal: Float[Tensor, "picked latent"]

    @torch.no_grad()
    def __call__(self, episode: Episode) -> dict[str, Float[np.ndarray, " time"]]:
        """Every baseline's numbers."""
        pieces = [self._piece(episode, at) for at in range(0, len(episode), AT_ONCE)]
        found = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return {BASELINE: frame_difference(episode).astype(np.float64), **found}

    def _piece(self, episode: Episode, at: int) -> dict[str, np.ndarray]:
        part = slice(at, min(at + AT_ONCE, len(episode)))
        frames = torch.from_numpy(np.ascontiguousarray(episode.frames[part.start + 1 : part.stop + 1]))
        frames = frames.to(self.world.device)
        codes = self.world.codec.encode(frames)
        error = (to_float(self.world.codec.decode(codes)) - to_float(frames)).square().mean((1, 2, 3))
        distance = torch.cdist(codes, self.normal[None]).amin(-1).amax(-1)
        numbers = {
            AUTOENCODER: error,
            GAUSSIAN: ((codes - self.mean) / self.std).square().sum((-2, -1)),
            NEIGHBOR: distance,
        }
        if self.predictor is not None:
            past = self.predictor.config.past
            times = torch.arange(part.start, part.stop)[:, None] + torch.arange(1 - past, 1)
            seen = to_float(torch.from_numpy(episode.frames[times.clamp(min=0).numpy()]).flatten(0, 1))
            seen = seen.unflatten(0, times.shape).to(self.world.device)
            actions = torch.from_numpy(np.ascontiguousarray(episode.actions[part])).to(self.world.device)
            numbers[PREDICTION] = (self.predictor(seen, actions) - to_float(frames)).square().mean((1, 2, 3))
        return {name: number.double().cpu().numpy() for name, number in numbers.items()}


@torch.no_grad()
def fit_baselines(
    world: WorldModel, dataset: Dataset, *, predictor: FramePredictor | None = None, seed: int = 0
) -> Baselines:
    """Fit to the training episodes of a data set.

    Args:
        world: The world, for its codec.
        dataset: The data set.
        predictor: A fitted predictor of the next frame; None leaves its error out.
        seed: Of the choice of frames and tokens.
    """
    draw = np.random.default_rng(seed)
    episodes = dataset.episodes("train")
    tokens = world.config.flow.num_tokens
    each = max(2, -(-TOKENS // (tokens * len(episodes))))  # frames of each episode, all at one place: read together
    codes = []
    for number in draw.permutation(episodes)[: max(1, TOKENS // (2 * tokens))].tolist():
        length = int(dataset.lengths[number]) + 1
        at = int(draw.integers(max(1, length - each + 1)))
        frames = torch.from_numpy(dataset.frames(number, at, min(at + each, length))).to(world.device)
        codes.append(world.codec.encode(frames))
    every = torch.cat(codes)
    std = every.std(0).clamp(min=1e-6)
    flat = every.flatten(0, 1)
    flat = flat[torch.from_numpy(draw.permutation(len(flat))[:TOKENS])]
    return Baselines(world=world, predictor=predictor, mean=every.mean(0), std=std, normal=coreset(flat, num=PICKED))


def coreset(points: Float[Tensor, "point feature"], *, num: int) -> Float[Tensor, "picked feature"]:
    """Points that leave no other far away: each is the farthest from those picked before it, the first comes first.

    Args:
        points: What to pick from.
        num: How many to pick at most.
    """
    picked = [0]
    distance = (points - points[0]).square().sum(-1)
    while len(picked) < min(num, len(points)):
        farthest = int(distance.argmax())
        if distance[farthest] == 0:  # all others are copies
            break
        picked.append(farthest)
        distance = torch.minimum(distance, (points - points[farthest]).square().sum(-1))
    return points[picked]


def two_sided(
    usual: Sequence[float] | Float[np.ndarray, " normal"], values: Float[np.ndarray, " time"]
) -> Float[np.ndarray, " time"]:
    """How far values are from usual ones to either side: the surprise of the nearer end, nats.

    Args:
        usual: Values of normal transitions.
        values: Others.
    """
    up = np.sort(np.asarray(usual, np.float64))
    return np.maximum(surprise(up, values), surprise(-up[::-1], -values))
