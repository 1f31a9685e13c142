"""Flow-score matching: a light transformer learns the flow's own score, and takes the noise of a sample off by it.

The flow's density is one of noisy latents `x~ = x + noise_std * eps`. By Tweedie's formula the mean of the clean latent
is `x~ + noise_std^2 * grad log p(x~)`, at the price of a pass back through the flow. The denoiser `s` learns

    s(x~) ~ noise_std * grad NLL(x~),   x^ = x~ - noise_std * s(x~)

with the NLL summed over the clip: its gradient with respect to the input is at hand in every training step of the
flow. Slots of one frame see each other and the frames around it, `window` of them, of which `lookahead` come later: one
for offline video, none for streaming.

Reference: Gu et al., 2025, STARFlow-V, arXiv 2511.20462, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldflow.attention import RotaryPositions, Transformer
from worldflow.autoregressive import cell_positions, word_positions
from worldflow.weights import sharing

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["Denoiser", "DenoiserConfig", "tweedie"]


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Sizes of a `Denoiser`, saved with its weights."""

    latent_dim: int
    """Channels of a token."""
    grid: tuple[int, int]
    """Rows and columns of tokens in a frame."""
    width: int = 256
    """Channels of its transformer."""
    layers: int = 8
    """Transformer layers."""
    window: int = 10
    """Frames before the latest one in view."""
    lookahead: int = 1
    """Frames in view that come later; 0 for streaming."""
    head_dim: int = 64
    """Channels of one attention head."""
    text_dim: int = 0
    """Channels of a text token; 0 for a model without text."""
    position_base: int | None = None
    """Side of the grid that positions are measured on; None for the rows of this one."""
    step: float = 0.3
    """How far along the learned score a sample is moved: the noise's standard deviation."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width", "layers", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("window", "lookahead"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.step > 0:
            raise ValueError(f"step must be above 0, got {self.step}")


class Denoiser(nn.Module):
    """Takes the flow's noise off latent frames.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        base = config.position_base or config.grid[0]
        self.base = base
        self.proj_in = nn.Linear(config.latent_dim, config.width)
        self.text_in = nn.Linear(config.text_dim, config.width) if config.text_dim else None
        self.transformer = Transformer(config.width, config.layers, head_dim=config.head_dim)
        self.proj_out = nn.Linear(config.width, config.latent_dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.rotary = RotaryPositions(config.head_dim)
        self.register_buffer("positions", cell_positions(config.grid, base=base), persistent=False)
        self.positions: Tensor

    def on_grid(self, grid: tuple[int, int]) -> Denoiser:
        """The same denoiser, with the same parameters, for frames of another number of tokens."""
        if grid == self.config.grid:
            return self
        return sharing(lambda: Denoiser(replace(self.config, grid=grid, position_base=self.base)), self)

    def forward(
        self, x: Float[Tensor, "batch time token latent"], *, text: Float[Tensor, "batch word text"] | None = None
    ) -> Float[Tensor, "batch time token latent"]:
        """The learned score `s(x~)`, as the reference's denoiser returns it.

        Args:
            x: Noisy latent frames.
            text: Embedded text, where the denoiser reads one.

        Raises:
            ValueError: If shapes do not fit the configuration.
        """
        T, N, D = x.shape[1:]
        if (N, D) != (len(self.positions), self.config.latent_dim):
            expected = (len(self.positions), self.config.latent_dim)
            raise ValueError(f"x must have shape (batch, time, {expected[0]}, {expected[1]}), got {tuple(x.shape)}")
        if (text is None) != (self.text_in is None):
            needs = "needs" if text is None else "reads no"
            raise ValueError(f"this denoiser {needs} text (its text_dim is {self.config.text_dim})")
        slots = self.proj_in(x).flatten(1, 2)
        positions = self.positions.to(torch.float64).repeat(T, 1)
        positions[:, 2] = torch.arange(T, device=x.device).repeat_interleave(N)
        words = 0
        if text is not None:
            assert self.text_in is not None
            words = text.shape[1]
            slots = torch.cat((self.text_in(text.to(slots.dtype)), slots), dim=1)
            positions = torch.cat((word_positions(words, base=self.base, device=x.device), positions))
        rotary = self.rotary(positions, dtype=x.dtype)
        hidden, _ = self.transformer(slots, rotary, mask=self._mask(T, N, words, x.device))
        return self.proj_out(hidden[:, words:]).unflatten(1, (T, N))

    def denoise(
        self, x: Float[Tensor, "batch time token latent"], *, text: Float[Tensor, "batch word text"] | None = None
    ) -> Float[Tensor, "batch time token latent"]:
        """Latent frames without their noise, `x~ - step * s(x~)`; as `forward`."""
        score = self(x, text=text)
        return x - self.config.step * (score if score.dtype == torch.float64 else score.float())

    def _mask(self, num_frames: int, num_tokens: int, words: int, device: torch.device) -> Bool[Tensor, "1 1 slot key"]:
        """Frame `k` is seen from frame `q` where `q + lookahead - window <= k <= q + lookahead`; text from everywhere.

        Text itself is read as if it stood at the first frame, all at once.
        """
        ahead, window = self.config.lookahead, self.config.window
        frame = torch.arange(num_frames, device=device).repeat_interleave(num_tokens)
        query = torch.cat((torch.zeros(words, dtype=frame.dtype, device=device), frame))
        distance = query[:, None] - frame[None, :]
        seen = (distance >= -ahead) & (distance <= window - ahead)
        return torch.cat((torch.ones(len(query), words, dtype=torch.bool, device=device), seen), dim=1)[None, None]


def tweedie(x: Float[Tensor, "..."], score: Float[Tensor, "..."], *, noise_std: float | Tensor) -> Float[Tensor, "..."]:
    """The mean of the clean latent given the noisy one: `x~ + noise_std^2 * grad log p(x~)`.

    Args:
        x: Noisy latents `x~`.
        score: `grad log p(x~)`, of the flow's log-likelihood summed over the clip.
        noise_std: Standard deviation of the noise.
    """
    return x + noise_std**2 * score
