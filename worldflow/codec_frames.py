"""The frames that a codec learns from: a sample of a data set, each shown by one of its symmetries at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldflow.codec import LatentCodec, background
from worldflow.data import Dataset
from worldflow.latents import sample_frames
from worldflow.randomness import normal
from worldflow.symmetry import transformed_rows

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["CodecFrames"]

COUNTED = 4096
"""Frames that statistics are taken of."""


class CodecFrames:
    """Frames of training episodes, in memory.

    Args:
        dataset: Where they come from.
        most: About how many; a random sample where there are more.
        symmetries: Those that may show a frame, the identity first (`worldflow.symmetry`).
        device: Where the codec is.
        generator: Chooses frames and symmetries and draws noise.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        most: int,
        symmetries: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
        generator: torch.Generator,
    ) -> None:
        frames, clips = sample_frames(dataset, most, generator=generator)
        self._frames, self._clips = torch.from_numpy(frames), torch.from_numpy(clips)
        self._symmetries, self._device, self._generator = symmetries, device, generator

    @property
    def clip_length(self) -> int:
        """Frames of a clip: as few as can move unevenly."""
        return self._clips.shape[1]

    def set_mean_frame(self, codec: LatentCodec) -> None:
        """Fix a codec's background."""
        codec.set_mean_frame(*background(self._shown(self._frames[self._some()])))

    def settle(self, codec: LatentCodec) -> None:
        """Fix a codec's statistics of its code, when it has learned."""
        codec.settle(self._shown(self._frames[part]).to(self._device) for part in self._some().split(256))

    def draw(self, codec: LatentCodec, *, clips: int, noise: torch.Generator | None = None) -> dict[str, Tensor]:
        """So many random clips as `frames`, where the codec is, and the `noise` of their codes.

        Args:
            codec: The codec that will learn from them.
            clips: How many.
            noise: Draws the noise, where it is made; by default what chooses frames does.
        """
        index = self._clips[torch.randint(len(self._clips), (clips,), generator=self._generator)]
        frames = self._shown(self._frames[index]).to(self._device)
        shape = (index.numel(), codec.config.num_tokens, codec.config.token_dim)
        drawn = normal(shape, self._generator if noise is None else noise, device=frames.device)
        return {"frames": frames, "noise": drawn}

    def _some(self) -> Tensor:
        return torch.randperm(len(self._frames), generator=self._generator)[:COUNTED]

    def _shown(
        self, frames: UInt8[Tensor, "row *time pixel_row pixel_column channel"]
    ) -> UInt8[Tensor, "row *time pixel_row pixel_column channel"]:
        """Each row as one of the symmetries shows it, chosen at random."""
        if len(self._symmetries) == 1:
            return frames
        which = torch.randint(len(self._symmetries), (len(frames),), generator=self._generator)
        return transformed_rows(frames, self._symmetries, which)
