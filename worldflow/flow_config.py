"""Sizes of the causal video flow, saved with its weights."""

from __future__ import annotations

from dataclasses import dataclass

from worldflow.vector_tokens import num_vector_tokens

__all__ = ["FlowConfig"]


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Sizes of a `VideoFlow`, saved with its weights."""

    latent_dim: int
    """Channels of a token."""
    grid: tuple[int, int]
    """Rows and columns of tokens in a frame."""
    vector_dim: int = 0
    """Numbers of a vector that stands beside the picture, in tokens of their own behind those of the grid; the last of
    these is filled up with zeros, which are no part of the density."""
    action_dim: int = 0
    """Length of an action's feature vector; 0 for a video without actions."""
    shallow_layers: tuple[int, ...] = (2,)
    """Transformer layers of each shallow block: none, or an odd number of blocks, so that with the deep one they are
    even. Without them the deep block sees codes as they are: worlds whose frames follow from the past learn faster."""
    shallow_width: int = 128
    """Channels of the shallow transformers."""
    deep_layers: int = 4
    """Transformer layers of the deep block."""
    deep_width: int = 192
    """Channels of the deep transformer."""
    draft_layers: int = 3
    """Transformer layers of the drafter; 0 for none."""
    draft_width: int = 192
    """Channels of the drafter."""
    draft_mixing: bool = False
    """Whether the drafter's layers end with an MLP over the whole frame; for frames of few tokens."""
    has_shown: bool = False
    """Whether drafts are made from the codes of frames as they are shown, without the noise that the density needs.
    They are part of the past like actions, so the density of a frame given the past stays exact."""
    memory: int = 0
    """Frames over which drafts remember the mean of what they saw, so that what stands still stays where it is beyond
    the window; 0 for no such memory."""
    head_dim: int = 64
    """Channels of one attention head."""
    window: int = 8
    """Frames in view of the deep block and the drafter, the current one included."""
    soft_clip: float | None = 4.0
    """Bound of the affine parameters, or None."""
    text_dim: int = 0
    """Channels of a text token; 0 for a model without text."""
    position_base: int | None = None
    """Side of the grid that positions are measured on, so that other grids lie inside it; None for this grid's rows."""
    has_time_axis: bool = True
    """Whether positions have a third axis, for time and text; released images without text have none."""

    def __post_init__(self) -> None:
        if self.shallow_layers and len(self.shallow_layers) % 2 == 0:
            raise ValueError(
                "the flow needs an even number of blocks, an odd number of shallow ones and the deep one, or the deep "
                f"one alone; got shallow_layers={self.shallow_layers}"
            )
        for name in ("memory", "vector_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("latent_dim", "shallow_width", "deep_layers", "deep_width", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1] + num_vector_tokens(self.vector_dim, self.latent_dim)

    @property
    def frame_dim(self) -> int:
        """Numbers in a frame's latent, without those that only fill it up."""
        return self.grid[0] * self.grid[1] * self.latent_dim + self.vector_dim

    @property
    def num_filled(self) -> int:
        """Numbers that only fill the last token up."""
        return self.num_tokens * self.latent_dim - self.frame_dim
