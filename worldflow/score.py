"""Score recorded episodes: how likely is each transition given its past, and given its past without the action?

For the noisy codes `x~ = x + noise_std * eps` of an episode's frames, each transition gets

    log_prob     = log p(x~_t | x~_<t, a) + log p(reward_t | ...) + log p(terminated_t | ...)
    action_ratio = log p(x~_t | x~_<t, a) - log p(x~_t | x~_<t)

exactly, in nats. The density is one of noisy codes, so a score depends on the draw of `eps`; `num_draws` of them are
averaged (the mean of log-densities, not the log of the mean density). Both terms of the ratio see the same draws. The
noise of an episode comes from `seed` and the episode's number alone: candidates that are scored under the same number
and seed share it, and no score depends on what else is scored.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from worldflow.atomic import replacing
from worldflow.checkpoint import load
from worldflow.codec import to_float
from worldflow.data import Dataset, read_episodes
from worldflow.detection import anomaly_labels
from worldflow.episodes import checked_episode
from worldflow.spaces import check_compatible
from worldflow.types import Episode
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["EpisodeScores", "score", "write_csv"]

CHUNK = 64
"""Frames that are converted to floats at a time."""


@dataclass(frozen=True, kw_only=True)
class EpisodeScores:
    """Scores of one episode; entry `t` is about `frames[t], actions[t] -> frames[t + 1], rewards[t], terminated[t]`.

    Args:
        frame: Log-likelihood of the frame's code, nats.
        reward: Log-likelihood of the reward, nats.
        terminated: Log-likelihood of the termination, or of its absence, nats.
        above_floor: The frame's negative log-likelihood above what the codes' noise alone costs, nats per dimension.
        action_ratio: How much the action raised the frame's log-likelihood, nats; negative where frame and action
            do not fit together.
        reconstruction: Mean squared error of the frame after the codec's round trip, on pixels in [-1, 1].
        anomaly: Whether the transition is labeled anomalous; None where the episode has no labels.
    """

    frame: Float[np.ndarray, " time"]
    reward: Float[np.ndarray, " time"]
    terminated: Float[np.ndarray, " time"]
    above_floor: Float[np.ndarray, " time"]
    action_ratio: Float[np.ndarray, " time"]
    reconstruction: Float[np.ndarray, " time"]
    anomaly: Bool[np.ndarray, " time"] | None = None

    @property
    def log_prob(self) -> Float[np.ndarray, " time"]:
        """Frame, reward and termination together, nats."""
        return self.frame + self.reward + self.terminated

    def __len__(self) -> int:
        return len(self.frame)


def score(
    world: WorldModel | str | os.PathLike[str],
    episodes: str | os.PathLike[str] | Iterable[object],
    *,
    num_draws: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[EpisodeScores]:
    """Score every transition of recorded episodes.

    One episode is in memory at a time, and its frames are converted in chunks.

    Args:
        world: The world, or the folder of its run.
        episodes: The folder of a data set, a `Dataset`, a Minari data set, or a sequence of episodes.
        num_draws: Draws of the codes' noise that are averaged; more of them make scores less noisy.
        seed: Of the noise; the same seed gives the same scores.
        progress: Show a progress bar where it takes more than two seconds.

    Returns:
        Scores of each episode, in order.

    Raises:
        ValueError, TypeError: If the episodes do not fit the world, or there are none.
        FileNotFoundError: If there is no run or no data set.

    Example:
        >>> scores = wf.score("runs/pendulum", "data/test")     # doctest: +SKIP
        >>> scores[0].log_prob.mean()                           # doctest: +SKIP
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not isinstance(world, WorldModel):
        world = load(world)
    if world.training:
        raise ValueError("the world is in training mode, its codec would drift; call world.eval() first")
    if isinstance(episodes, (str, os.PathLike)):
        episodes = Dataset(episodes)
    if isinstance(episodes, Dataset):
        check_compatible(world.config.data, episodes.spec)
    total = len(episodes) if hasattr(episodes, "__len__") else None  # pyright: ignore[reportArgumentType]
    bar = tqdm(read_episodes(episodes), total=total, desc="score", unit="episode", delay=2, disable=not progress)
    scores = [
        _score_episode(world, episode, number, num_draws=num_draws, seed=seed) for number, episode in enumerate(bar)
    ]
    if not scores:
        raise ValueError("there are no episodes to score; give at least one")
    return scores


def write_csv(scores: Sequence[EpisodeScores], path: str | os.PathLike[str]) -> Path:
    """Write scores as a table, a row a transition; the file appears whole or not at all.

    The columns are `episode, step, log_prob`, then the fields of `EpisodeScores`; `anomaly` (0 or 1) stands there if
    any episode has labels, and is empty for those without. Numbers are written in full precision.

    Args:
        scores: What `score` returned.
        path: The file to make or replace.

    Returns:
        `path` as a `Path`.

    Raises:
        OSError: If it could not be written.
    """
    parts = [f.name for f in fields(EpisodeScores) if f.name != "anomaly"]
    is_labeled = any(s.anomaly is not None for s in scores)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["episode", "step", "log_prob", *parts, *(["anomaly"] if is_labeled else [])])
        for number, episode in enumerate(scores):
            columns = [episode.log_prob.tolist(), *(getattr(episode, name).tolist() for name in parts)]
            if is_labeled:
                labels = [""] * len(episode) if episode.anomaly is None else episode.anomaly.astype(int).tolist()
                columns.append(labels)
            table.writerows((number, step, *row) for step, row in enumerate(zip(*columns, strict=True)))
    return Path(path)


@torch.no_grad()
def _score_episode(world: WorldModel, episode: Episode, number: int, *, num_draws: int, seed: int) -> EpisodeScores:
    episode = _fitting(world, episode, f"episode {number}")
    codes, reconstruction = _codes(world, torch.from_numpy(episode.frames))
    noise_seed = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(noise_seed)
    shown = codes.expand(num_draws, *codes.shape)
    x = world.with_noise(shown, generator=generator)

    def repeated(values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        return tensor.expand(num_draws, *tensor.shape)

    actions = repeated(episode.actions)
    known = world.log_prob_latents(x, actions, repeated(episode.rewards), repeated(episode.terminated), codes=shown)
    hidden = world.log_prob_latents(x, actions, codes=shown, hide_actions=True)

    def mean(values: Tensor) -> np.ndarray:
        return values.mean(0).double().cpu().numpy()

    scores = EpisodeScores(
        frame=mean(known.frame),
        reward=mean(known.reward),
        terminated=mean(known.terminated),
        above_floor=mean(world.above_floor(known.frame)),
        action_ratio=mean(known.frame.double() - hidden.frame.double()),
        reconstruction=reconstruction,
        anomaly=_labels(episode, f"episode {number}"),
    )
    if not math.isfinite(float(scores.log_prob.sum() + scores.action_ratio.sum())):
        raise ValueError(f"the scores of episode {number} are not finite; the world is damaged: train it again")
    return scores


def _fitting(world: WorldModel, episode: Episode, where: str) -> Episode:
    """The episode with actions as the world knows them, or an error that says what differs."""
    spec = world.config.data
    for name, expected, found in (
        ("frames", spec.frame_shape, episode.frames.shape[1:]),
        ("actions", spec.action.shape, episode.actions.shape[1:]),
    ):
        if tuple(found) != tuple(expected):
            raise ValueError(
                f"{where}: the world knows {name} of shape {tuple(expected)}, got {tuple(found)}; "
                "score episodes of the environment that it was trained on, or train a new world"
            )
    return checked_episode(spec.action, **{f.name: getattr(episode, f.name) for f in fields(episode)}, where=where)


def _codes(world: WorldModel, frames: Tensor) -> tuple[Tensor, np.ndarray]:
    """Codes without noise `(time + 1, token, latent)`, and the round trip's error of every frame but the first."""
    codes, errors = [], []
    for part in frames.split(CHUNK):
        pixels = part.to(world.device)
        code = world.codec.encode(pixels)
        back = world.codec.decode(code)
        codes.append(code.to(world.dtype))
        errors.append((to_float(back) - to_float(pixels)).square().mean((1, 2, 3)))
    return torch.cat(codes), torch.cat(errors)[1:].double().cpu().numpy()


def _labels(episode: Episode, where: str) -> np.ndarray | None:
    if "anomaly" not in episode.infos:
        return None
    labels = anomaly_labels(episode)
    if labels.shape != (len(episode),):
        raise ValueError(
            f"{where}: infos['anomaly'] must hold one label for each of {len(episode) + 1} frames, "
            f"got shape {np.shape(episode.infos['anomaly'])}"
        )
    return labels
