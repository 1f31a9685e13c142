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
        if self.codec.grid != self.flow.grid or self.codec.token_dim != self.flow.latent_dim:
            raise ValueError(
                f"the codec gives {self.codec.grid} tokens of {self.codec.token_dim} channels, "
                f"the flow takes {self.flow.grid} of {self.flow.latent_dim}"
            )
        if self.codec.parts != self.data.parts or self.codec.vector_dim != self.flow.vector_dim:
            raise ValueError(
                f"beside the picture the data hold {self.data.parts}, the codec gives {self.codec.parts} and the flow "
                f"takes {self.flow.vector_dim} numbers"
            )
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
