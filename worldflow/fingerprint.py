"""Which episodes, or which world, these are: short hashes that tell whether what was made of them is stale.

An episode's hash covers its actions, its rewards, and its first and last frame, with their shapes and types. The frames
between follow from these in any simulator, and reading two frames instead of all makes hashing a thousand episodes a
matter of seconds. What it cannot see is an edit that leaves all of that alone: a changed frame in the middle, a changed
`info`, a changed termination.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from worldflow.frames import Frames

if TYPE_CHECKING:
    from worldflow.data import Dataset, Split
    from worldflow.types import Episode
    from worldflow.world import WorldModel

__all__ = ["episode_hash", "episode_hashes", "fingerprint", "world_fingerprint"]


def episode_hash(episode: Episode) -> str:
    """The hash of one episode in memory, equal to that of the same episode in a data set.

    Args:
        episode: The episode.

    Returns:
        16 hexadecimal digits (64 bits of blake2b).
    """
    return _hash(episode.actions, episode.rewards, *_parts(episode.frames[0]), *_parts(episode.frames[-1]))


def episode_hashes(dataset: Dataset, split: Split = "all") -> list[str]:
    """Hashes of the episodes on one side of a data set's split, in their order.

    Args:
        dataset: The data set.
        split: Which episodes; `"train"`, `"held_out"` or `"all"`.

    Returns:
        16 hexadecimal digits for each of `dataset.episodes(split)`. Two episodes share them only if they are the same
        recording: among a million different ones the chance of any accident is 3e-8.

    Raises:
        ValueError: If the split does not exist, or the file is damaged.

    Example:
        >>> set(episode_hashes(dataset, "train")) & set(episode_hashes(dataset, "held_out"))  # doctest: +SKIP
        set()
    """
    hashes = []
    for number in dataset.episodes(split).tolist():
        actions, rewards, _ = dataset.outcomes(number)
        last = int(dataset.lengths[number])
        first_frame, last_frame = (dataset.frames(number, at, at + 1)[0] for at in (0, last))
        hashes.append(_hash(actions, rewards, *_parts(first_frame), *_parts(last_frame)))
    return hashes


def fingerprint(dataset: Dataset, split: Split = "all") -> str:
    """One hash for one side of a data set's split: it changes when an episode is added, removed, moved or replaced.

    Args:
        dataset: The data set.
        split: Which episodes.

    Returns:
        16 hexadecimal digits, a function of `episode_hashes(dataset, split)` alone.

    Raises:
        ValueError: If the split does not exist, or the file is damaged.
    """
    return hashlib.blake2b(" ".join(episode_hashes(dataset, split)).encode(), digest_size=8).hexdigest()


def world_fingerprint(world: WorldModel) -> str:
    """One hash for a world: it changes with any weight, statistic or size, but not with the device.

    Args:
        world: The world.

    Returns:
        16 hexadecimal digits.
    """
    config = json.dumps(_told(dataclasses.asdict(world.config)), sort_keys=True)
    parts = [np.frombuffer(config.encode(), np.uint8)]
    for name, tensor in sorted(world.state_dict().items()):
        parts += [np.frombuffer(name.encode(), np.uint8), tensor.detach().cpu().double().numpy()]
    return _hash(*parts)


def _parts(frame: np.ndarray | Frames) -> list[np.ndarray]:
    return list(frame.parts.values()) if isinstance(frame, Frames) else [frame]


def _told(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what came later and says nothing, so that worlds keep the hashes they had."""
    return {
        name: _told(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if not (name in ("parts", "vector_dim") and not value)
    }


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        # Shape and type first: else two arrays whose bytes agree in sequence would be taken for each other.
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()
