"""Score recorded episodes: how likely is each transition given its past, and given its past without the action?

For the noisy codes `x~ = x + noise_std * eps` of an episode's frames, each transition gets

    log_prob     = log p(x~_t | x~_<t, a) + log p(reward_t | ...) + log p(terminated_t | ...)
    action_ratio = log p(x~_t | x~_<t, a) - log p(x~_t | x~_<t)

exactly, in nats, and what else tells an odd one from a usual one (`worldflow.statistics`). The density is one of noisy
codes, so a score depends on the draw of `eps`; `num_draws` of them are averaged (the mean of log-densities, not the log
of the mean density). Both terms of the ratio see the same draws. The noise of an episode comes from `seed` and the
episode's number alone: candidates that are scored under the same number and seed share it, and no score depends on what
else is scored. `worldflow.Monitor` gives the same numbers frame by frame.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from worldflow.atomic import replacing, write_bytes
from worldflow.checkpoint import load
from worldflow.data import Dataset, read_episodes
from worldflow.episodes import checked_episode
from worldflow.fingerprint import world_fingerprint
from worldflow.foresight import directions
from worldflow.frames import part_shapes
from worldflow.score_types import EpisodeScores, columns
from worldflow.spaces import check_compatible
from worldflow.statistics import EpisodeScorer, frames_at_once, stored_pixel_std
from worldflow.types import Episode
from worldflow.world import WorldModel

if TYPE_CHECKING:
    from worldflow.detector import Alarms

__all__ = ["EpisodeScores", "fitting_episode", "score", "write_csv", "write_json"]


def score(
    world: WorldModel | str | os.PathLike[str],
    episodes: str | os.PathLike[str] | Iterable[object],
    *,
    num_draws: int = 1,
    seed: int = 0,
    pixels: bool = True,
    progress: bool = True,
) -> list[EpisodeScores]:
    """Score every transition of recorded episodes.

    Frames go through the world some at a time, so memory does not grow with the length of an episode; those of a data
    set of ours are read so, too.

    Args:
        world: The world, or the folder of its run.
        episodes: The folder of a data set, a `Dataset`, a Minari data set, or a sequence of episodes.
        num_draws: Draws of the codes' noise that are averaged; more of them make scores less noisy.
        seed: Of the noise; the same seed gives the same scores.
        pixels: Whether to bound the bits of pixels, too, which decodes every draw.
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
    std, basis = stored_pixel_std(world) if pixels else None, directions(world)
    fingerprint, length = world_fingerprint(world), frames_at_once(num_draws)
    source = _stored(episodes, length) if isinstance(episodes, Dataset) else _held(read_episodes(episodes), length)
    bar = tqdm(source, total=total, desc="score", unit="episode", delay=2, disable=not progress)
    scores = []
    for number, (parts, labels) in enumerate(bar):
        scorer = EpisodeScorer(
            world, number=number, num_draws=num_draws, seed=seed, pixel_std=std, basis=basis, fingerprint=fingerprint
        )
        scores.append(_score_episode(scorer, parts, labels))
    if not scores:
        raise ValueError("there are no episodes to score; give at least one")
    return scores


def write_csv(
    scores: Sequence[EpisodeScores], path: str | os.PathLike[str], *, alarms: Sequence[Alarms] | None = None
) -> Path:
    """Write scores as a table, a row a transition; the file appears whole or not at all.

    The columns are `episode, step, log_prob`, then the fields of `EpisodeScores` that are one number a transition, as
    far as there are any; `<name>_error` for each standard error; what a detector says about the transition
    (`Alarms.columns`); `anomaly` (0 or 1) stands there if any episode has labels, and is empty for those without.
    Numbers are written in full precision.

    Args:
        scores: What `score` returned.
        path: The file to make or replace.
        alarms: What a detector made of them.

    Returns:
        `path` as a `Path`.

    Raises:
        OSError: If it could not be written.
    """
    is_labeled = any(s.anomaly is not None for s in scores)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        names = list(columns(scores[0]))
        names += [f"{name}_error" for name in scores[0].standard_error]
        names += [] if alarms is None else alarms[0].columns
        table.writerow(["episode", "step", *names, *(["anomaly"] if is_labeled else [])])
        for number, episode in enumerate(scores):
            found = columns(episode) | {f"{name}_error": error for name, error in episode.standard_error.items()}
            found |= {} if alarms is None else alarms[number].columns
            rows = [found[name].tolist() for name in names]
            if is_labeled:
                labels = [""] * len(episode) if episode.anomaly is None else episode.anomaly.astype(int).tolist()
                rows.append(labels)
            table.writerows((number, step, *row) for step, row in enumerate(zip(*rows, strict=True)))
    return Path(path)


def write_json(
    scores: Sequence[EpisodeScores], path: str | os.PathLike[str], *, alarms: Sequence[Alarms] | None = None
) -> Path:
    """Write scores as one JSON object; the file appears whole or not at all.

    `{"world": ..., "num_draws": ..., "episodes": [{"log_prob": [...], ..., "standard_error": {...}, "token": [[...]],
    "foresight": [[...]], "anomaly": [...], "alarms": {"rings": [...], ..., "episode": ..., "episode_p_value": ...}}]}`,
    where what there is none of is left out.

    Args:
        scores: What `score` returned.
        path: The file to make or replace.
        alarms: What a detector made of them.

    Returns:
        `path` as a `Path`.

    Raises:
        OSError: If it could not be written.
    """
    episodes = []
    for number, episode in enumerate(scores):
        plain: dict[str, Any] = {name: values.tolist() for name, values in columns(episode).items()}
        if episode.standard_error:
            plain["standard_error"] = {name: values.tolist() for name, values in episode.standard_error.items()}
        for name, values in (
            ("token", episode.token),
            ("foresight", episode.foresight),
            ("anomaly", episode.anomaly),
        ):
            if values is not None:
                plain[name] = values.tolist()
        if alarms is not None:
            one = alarms[number]
            plain["alarms"] = {name: values.tolist() for name, values in one.columns.items()}
            plain["alarms"] |= {"episode": one.episode, "episode_p_value": one.episode_p_value}
        episodes.append(plain)
    about = {"world": scores[0].world, "num_draws": scores[0].num_draws, "episodes": episodes}
    return write_bytes(path, json.dumps(about).encode())


def fitting_episode(world: WorldModel, episode: Episode, where: str) -> Episode:
    """The episode with actions as the world knows them.

    Args:
        world: The world.
        episode: An episode, or a part of one.
        where: What to call it in an error.

    Raises:
        ValueError: If its frames or actions are not of the kind that the world knows.
    """
    spec = world.config.data
    for name, expected, found in (
        ("frames", spec.part_shapes, part_shapes(episode.frames)),
        ("actions", {"": spec.action.shape}, {"": episode.actions.shape[1:]}),
    ):
        if found != expected:
            raise ValueError(
                f"{where}: the world knows {name} of shape {expected.get('', expected)}, got {found.get('', found)}; "
                "score episodes of the environment that it was trained on, or train a new world"
            )
    return checked_episode(spec.action, **{f.name: getattr(episode, f.name) for f in fields(episode)}, where=where)


def _score_episode(scorer: EpisodeScorer, parts: Iterator[Episode], labels: np.ndarray | None) -> EpisodeScores:
    where, found = f"episode {scorer.number}", []
    for part in parts:
        part = fitting_episode(scorer.world, part, where)
        if not found:
            scorer.start(part.frames[0])
        found.append(scorer.advance(part.frames[1:], part.actions, part.rewards, part.terminated))
    scores = EpisodeScores.cat(found)
    if labels is None:
        return scores
    if labels.shape[:1] != (len(scores) + 1,) or labels.ndim != 1:
        raise ValueError(
            f"{where}: infos['anomaly'] must hold one label for each of {len(scores) + 1} frames, "
            f"got shape {labels.shape}"
        )
    return replace(scores, anomaly=labels[1:].astype(bool))  # the first is the reset's


def _stored(dataset: Dataset, length: int) -> Iterator[tuple[Iterator[Episode], np.ndarray | None]]:
    """Every episode of a data set in parts that are read when it is their turn, and its labels."""
    for number, steps in enumerate(dataset.lengths.tolist()):
        parts = (dataset.clip(number, at, min(at + length, steps)) for at in range(0, steps, length))
        yield parts, dataset.info(number, "anomaly")


def _held(episodes: Iterator[Episode], length: int) -> Iterator[tuple[Iterator[Episode], np.ndarray | None]]:
    """Every episode in parts, and its labels."""
    for episode in episodes:
        labels = episode.infos.get("anomaly")
        yield _cut(episode, length), None if labels is None else np.asarray(labels)


def _cut(episode: Episode, length: int) -> Iterator[Episode]:
    for at in range(0, len(episode), length):
        part = slice(at, at + length)
        yield Episode(
            frames=episode.frames[at : at + length + 1],
            **{name: getattr(episode, name)[part] for name in ("actions", "rewards", "terminated", "truncated")},
        )
