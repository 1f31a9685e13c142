"""What a world is built from, saved with its weights, and the recorded pasts that travel with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worldflow.codec import CodecConfig
from worldflow.denoiser import DenoiserConfig
from worldflow.flow_config import FlowConfig
from worldflow.heads import RewardSupport
from worldflow.types import DataSpec

if TYPE_CHECKING:
    from jaxtyping import Shaped, UInt8
    from torch import Tensor

__all__ = ["Contexts", "TextSpec", "WorldConfig"]


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Which embedded texts a world reads."""

    encoder: str
    """Where the encoder was: a folder, or a name on the hub."""
    identity: str
    """Which encoder it is, as `TextEncoder.identity` says it: no other one will do."""
    words: int
    """Tokens of a text, padding included."""
    dim: int
    """Channels of a token."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Everything needed to build a `WorldModel` before its weights are read."""

    data: DataSpec
    """What it was trained on."""
    codec: CodecConfig
    """Frames to latents."""
    flow: FlowConfig
    """The density."""
    reward: RewardSupport
    """Where rewards may lie."""
    text: TextSpec | None = None
    """Texts that it reads, or None."""
    denoiser: DenoiserConfig | None = None
    """What takes the codes' noise off videos, or None."""

    def __post_init__(self) -> None:
        gives = (self.codec.grid, self.codec.token_dim, self.codec.vector_dim)
        takes = (self.flow.grid, self.flow.latent_dim, self.flow.vector_dim)
        if gives != takes:
            raise ValueError(
                f"the codec gives {gives[0]} tokens of {gives[1]} channels and {gives[2]} numbers beside them, "
                f"the flow takes {takes[0]} of {takes[1]} and {takes[2]}"
            )
        if self.codec.parts != self.data.parts:
            raise ValueError(f"the codec is for {self.codec.parts}, the data are {self.data.parts}")
        if self.flow.text_dim != (0 if self.text is None else self.text.dim):
            raise ValueError(f"the flow reads text of {self.flow.text_dim} channels, the world's text is {self.text}")


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Short recorded pasts to start from: a bank that travels with the weights.

    Frames may be `worldflow.frames.Frames`, as in all that travels.
    """

    frames: UInt8[Tensor, "clip past+1 row column channel"]
    actions: Shaped[Tensor, "clip past *action"]

    def __len__(self) -> int:
        return len(self.frames)
