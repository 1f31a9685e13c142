"""Which windows: the split into training and held-out episodes, and the places to cut.

Everything here is arithmetic on the lengths of episodes, so it serves frames in a file and latents in memory
alike. A window of `length` transitions starts at transition `start` of an episode and covers frames
`start .. start + length`. An index is an `int64 (window, 2)` array of `(episode, start)`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Int64

__all__ = ["SplitRule", "sample_index", "window_index"]


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Which episodes are held out: a rule that is written down with the data.

    Episodes are dealt in runs of `1 / fraction`, and one episode of every run, drawn by a hash of `seed` and
    the number of the run, is held out. Whether an episode is held out therefore depends on `seed` and its own
    number alone: a data set that grows never moves an old episode from one side to the other. In the first
    run it is always episode 1, so that one episode is a training episode, and from two on both sides have one.

    Args:
        fraction: Share of episodes to hold out, above 0 and at most 0.5.
        seed: Another seed holds out other episodes.

    Example:
        >>> SplitRule(fraction=0.25).held_out(8).sum()
        np.int64(2)
    """

    fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 0.5:
            raise ValueError(f"fraction must be above 0 and at most 0.5, got {self.fraction}")

    def held_out(self, num_episodes: int) -> Bool[np.ndarray, " episode"]:
        """Whether each of the first `num_episodes` episodes is held out."""
        mask = np.zeros(num_episodes, dtype=bool)
        for run in range(int(np.ceil(num_episodes * self.fraction))):
            digest = hashlib.blake2b(f"{self.seed}/{run}".encode(), digest_size=8).digest()
            uniform = int.from_bytes(digest, "big") / 2.0**64
            # Rounded first: 1 / 0.1 times 3 must be 30 and not a hair less.
            episode = 1 if run == 0 else int(np.floor(np.round((run + uniform) / self.fraction, 9)))
            if episode < num_episodes:
                mask[episode] = True
        return mask


def window_index(
    lengths: Int[np.ndarray, " episode"],
    length: int,
    *,
    stride: int = 1,
    episodes: Int[np.ndarray, " some"] | None = None,
) -> Int64[np.ndarray, "window 2"]:
    """List every window, episode by episode.

    Args:
        lengths: Transitions of each episode.
        length: Transitions of a window.
        stride: Transitions from one start to the next. The last window always ends with its episode, however
            the stride falls, so that no transition (and no termination) is left out.
        episodes: Numbers of the episodes to cut; all by default.

    Returns:
        `(episode, start)` of each window. An episode shorter than `length` gives one window, to be padded.
    """
    lengths, allowed = _checked(lengths, length, episodes)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    pairs = []
    for episode in allowed:
        last = max(0, int(lengths[episode]) - length)
        starts = np.unique(np.append(np.arange(0, last + 1, stride), last))
        pairs.append(np.stack([np.full_like(starts, episode), starts], axis=1))
    return np.concatenate(pairs).astype(np.int64)


def sample_index(
    lengths: Int[np.ndarray, " episode"],
    length: int,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    episodes: Int[np.ndarray, " some"] | None = None,
) -> Int64[np.ndarray, "batch 2"]:
    """Draw windows at random, with replacement.

    An episode is drawn with probability proportional to its transitions. Were starts uniform over the places
    where a window fits, the last transition of a long episode would lie in one window only and the ones in
    the middle in `length` of them: terminations would be seen `length` times too rarely. So starts are drawn
    from `length // 2` before the first fit to `length // 2` after the last one, then clipped to fit: a window
    of the middle half is left as it is, and the first and last transitions are at least half as frequent as
    the others.

    Args:
        lengths: Transitions of each episode.
        length: Transitions of a window.
        batch_size: Number of windows.
        generator: Where randomness comes from; torch's own by default.
        episodes: Numbers of the episodes to draw from; all by default.

    Returns:
        `(episode, start)` of each window. An episode shorter than `length` starts at 0 and is to be padded.
    """
    lengths, allowed = _checked(lengths, length, episodes)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    edges = torch.from_numpy(np.cumsum(lengths[allowed]))
    transition = torch.randint(int(edges[-1]), (batch_size,), generator=generator)
    episode = allowed[torch.searchsorted(edges, transition, right=True).numpy()]
    uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64).numpy()
    last = np.maximum(lengths[episode] - length, 0)
    start = np.floor(uniform * (last + 2 * (length // 2) + 1)).astype(np.int64) - length // 2
    return np.stack([episode, np.clip(start, 0, last)], axis=1)


def _checked(
    lengths: np.ndarray, length: int, episodes: np.ndarray | None
) -> tuple[Int64[np.ndarray, " episode"], Int64[np.ndarray, " some"]]:
    lengths = np.asarray(lengths, dtype=np.int64)
    if length < 1:
        raise ValueError(f"length must be at least 1 transition, got {length}")
    if lengths.ndim != 1 or (lengths < 1).any():
        raise ValueError("lengths must be one positive number of transitions per episode")
    allowed = np.arange(len(lengths)) if episodes is None else np.asarray(episodes, dtype=np.int64)
    if len(allowed) == 0:
        raise ValueError("there is no episode to cut windows from; record more episodes")
    if allowed.min() < 0 or allowed.max() >= len(lengths):
        raise ValueError(f"episodes must be numbers from 0 to {len(lengths) - 1}, got {allowed.min()}..{allowed.max()}")
    return lengths, allowed.astype(np.int64)
