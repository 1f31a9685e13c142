"""Training episodes in memory, as many as fit, for the small networks that are fitted on frames rather than codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldflow.data import Dataset
from worldflow.types import Episode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64, Shaped, UInt8
    from torch import Tensor

__all__ = ["Excerpts"]

MOST_BYTES = 2**30
"""Bytes of frames that are kept in memory, about."""
SHORTEST = 64
"""Frames of a run at least, where its episode has them."""


@dataclass(frozen=True, kw_only=True)
class Excerpts:
    """Runs of consecutive frames of training episodes, run behind run, and what goes with each frame.

    Args:
        frames: The frames.
        actions: What was done at each frame; the last frame of an episode repeats the action before it.
        states: What `state_of` gave for each frame; of no coordinates without it.
        first: Where each run begins in the other arrays.
        length: Frames of each run.
        is_start: Whether a run begins with its episode: only there may the frames before it be taken for copies of it.
    """

    frames: UInt8[Tensor, "frame row column channel"]
    actions: Shaped[Tensor, "frame *action"]
    states: Float64[np.ndarray, "frame state"]
    first: Int64[Tensor, " run"]
    length: Int64[Tensor, " run"]
    is_start: Bool[Tensor, " run"]

    @staticmethod
    def read(
        dataset: Dataset,
        *,
        generator: torch.Generator,
        state_of: Callable[[Episode, int], np.ndarray] | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> Excerpts:
        """Read training episodes: all of them whole, or from each a run of equal length, begun anywhere.

        Args:
            dataset: The data set.
            generator: Of the order of episodes and of the places where runs begin.
            state_of: From an episode and its number to `(time + 1, state)`; the episodes must agree in `state`.
            most_bytes: Frames read, in bytes, about.

        Raises:
            ValueError: If the widths of states differ between episodes.
        """
        episodes = dataset.episodes("train")
        most = max(1, most_bytes // int(np.prod(dataset.spec.frame_shape)))
        each = max(SHORTEST, most // len(episodes))
        frames, actions, states, starts = [], [], [], []
        for number in episodes[torch.randperm(len(episodes), generator=generator).numpy()].tolist():
            episode = dataset.episode(number)
            state = np.zeros((len(episode.frames), 0)) if state_of is None else state_of(episode, number)
            if states and state.shape[1] != states[0].shape[1]:
                raise ValueError(
                    f"the state must have as many coordinates in every episode, got {states[0].shape[1]} and, in "
                    f"episode {number} of {dataset.path}, {state.shape[1]}; record one environment per data set"
                )
            start = int(torch.randint(max(1, len(state) - each + 1), (), generator=generator))
            run = slice(start, start + each)
            frames.append(torch.from_numpy(episode.frames[run]))
            actions.append(torch.from_numpy(np.concatenate((episode.actions, episode.actions[-1:]))[run]))
            states.append(state[run])
            starts.append(start == 0)
            if sum(map(len, states)) >= most:
                break
        length = torch.tensor([len(state) for state in states])
        return Excerpts(
            frames=torch.cat(frames),
            actions=torch.cat(actions),
            states=np.concatenate(states),
            first=length.cumsum(0) - length,
            length=length,
            is_start=torch.tensor(starts),
        )

    def sample(
        self, batch_size: int, *, past: int, future: int, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "batch past+future"], Bool[Tensor, "batch future"]]:
        """Draw windows at random, with replacement; runs in proportion to their length.

        Args:
            batch_size: Windows.
            past: Frames of context; where an episode begins, its first frame stands for those before it.
            future: Frames after the context.
            generator: Where randomness comes from.

        Returns:
            Places of the window's frames in the arrays, and which of the `future` exist: where a run is shorter its
            last frame is repeated.
        """
        run = torch.multinomial(self.length.double(), batch_size, replacement=True, generator=generator)
        first, length = self.first[run], self.length[run]
        earliest = torch.where(self.is_start[run], 0, past)
        latest = torch.maximum(length - future, earliest)
        uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        # As in `worldflow.index.sample_index`: drawn from beyond both ends and clipped, so that the first and the last
        # frames are not the rarest.
        beyond = future // 2
        start = earliest - beyond + (uniform * (latest - earliest + 1 + 2 * beyond)).long()
        start = torch.minimum(torch.maximum(start, earliest), latest)
        time = start[:, None] + torch.arange(-past, future)
        inside = torch.minimum(time.clamp(min=0), length[:, None] - 1)
        return first[:, None] + inside, (time < length[:, None])[:, past:]
