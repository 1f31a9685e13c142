"""Released models in the reference's own layouts: patches of frames `(batch, time, channel, row, column)` as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from einops import rearrange
from torch import Tensor, nn

from worldflow.denoiser import Denoiser
from worldflow.flow import VideoFlow
from worldflow.jacobi import Method
from worldflow.tarflow import TarFlow

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

__all__ = ["Kind", "ReleasedDenoiser", "ReleasedFlow"]

Kind = Literal["starflow-v", "starflow", "tarflow"]
"""Which of the published systems."""


class ReleasedFlow(nn.Module):
    """A flow in the reference's layouts.

    Args:
        net: The flow of tokens.
        kind: Which model it is.
        patch_size: Cells on a side of a token.
    """

    def __init__(self, net: VideoFlow | TarFlow, *, kind: Kind, patch_size: int) -> None:
        super().__init__()
        self.net, self.kind, self.patch_size = net, kind, patch_size

    def forward(
        self,
        x: Float[Tensor, "batch ..."],
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        label: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
        """`z`, and `log p(x | text, label)` in nats: of every frame, `(batch, time)`, or of every image, `(batch,)`.

        Args:
            x: Frames or images. `z` has their layout; TARFlow's is a sequence of tokens, `(batch, token, channel)`.
            text: Embedded text, for a model that reads one.
            label: Classes, for a TARFlow that has some.

        Raises:
            ValueError: If shapes or conditions do not fit the model.
        """
        if isinstance(self.net, TarFlow):
            if text is not None:
                raise ValueError("TARFlow reads no text; give label")
            out = self.net(self._patches(x), label=label)
            return out.z, out.log_prob
        self._no_label(label)
        frames, grid = self._tokens(x)
        out = self.net.on_grid(grid)(frames, text=text)
        z = self._cells(out.z, grid)
        return z, out.log_prob if self.kind == "starflow-v" else out.log_prob[:, 0]

    def inverse(
        self,
        z: Float[Tensor, "batch ..."],
        *,
        text: Float[Tensor, "batch word text"] | None = None,
        text_uncond: Float[Tensor, "batch word text"] | None = None,
        label: Int64[Tensor, " batch"] | None = None,
        guidance: float = 0.0,
        context: Float[Tensor, "batch past channel row column"] | None = None,
        method: Method = "sequential",
        tolerance: float = 1e-5,
    ) -> Float[Tensor, "batch ..."]:
        """What `forward` maps to `z`; with guidance, what the condition makes more likely.

        Args:
            z: Noise, in the layout that `forward` returns.
            text: As in `forward`.
            text_uncond: Embedding of no text, needed for guidance by text.
            label: As in `forward`.
            guidance: Its weight; 0 samples as the flow is.
            context: First frames, given: noise in their place is not read.
            method: How to invert the blocks.
            tolerance: How closely.

        Raises:
            ValueError: If shapes or conditions do not fit the model.
        """
        if isinstance(self.net, TarFlow):
            if text is not None or context is not None:
                raise ValueError("TARFlow reads neither text nor context; give label")
            x = self.net.inverse(z, label=label, guidance=guidance, method=method, tolerance=tolerance)
            p, rows = self.patch_size, self.net.config.grid[0]
            return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=p, q=p)
        self._no_label(label)
        noise, grid = self._tokens(z)
        given = None if context is None else self._tokens(context)[0]
        x = self.net.on_grid(grid).inverse(
            noise,
            text=text,
            text_without=text_uncond,
            guidance=guidance,
            context=given,
            method=method,
            tolerance=tolerance,
        )
        return self._cells(x, grid)

    def _no_label(self, label: Tensor | None) -> None:
        if label is not None:
            raise ValueError(f"{self.kind} has no classes; give text")

    def _patches(self, x: Tensor) -> Tensor:
        assert isinstance(self.net, TarFlow)
        p, (rows, columns) = self.patch_size, self.net.config.grid
        expected = (self.net.config.latent_dim // p**2, rows * p, columns * p)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"images must have shape (batch, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
        return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)

    def _tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        assert isinstance(self.net, VideoFlow)
        return _to_tokens(x, self.patch_size, self.net.config.latent_dim, is_video=self.kind == "starflow-v")

    def _cells(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        cells = _to_cells(tokens, self.patch_size, grid)
        return cells if self.kind == "starflow-v" else cells[:, 0]


class ReleasedDenoiser(nn.Module):
    """A denoiser in the reference's layout.

    Args:
        net: The denoiser of tokens.
        patch_size: Cells on a side of a token.
        is_video: Whether there is a time axis.
    """

    def __init__(self, net: Denoiser, *, patch_size: int, is_video: bool) -> None:
        super().__init__()
        self.net, self.patch_size, self.is_video = net, patch_size, is_video

    def forward(
        self, x: Float[Tensor, "batch ..."], *, text: Float[Tensor, "batch word text"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """The learned score `s(x~)`; `x - noise_std * s` is the sample without its noise, see `denoise`.

        Raises:
            ValueError: If shapes or conditions do not fit the model.
        """
        tokens, grid = _to_tokens(x, self.patch_size, self.net.config.latent_dim, is_video=self.is_video)
        cells = _to_cells(self.net.on_grid(grid)(tokens, text=text), self.patch_size, grid)
        return cells if self.is_video else cells[:, 0]

    def denoise(
        self, x: Float[Tensor, "batch ..."], *, text: Float[Tensor, "batch word text"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Frames without their noise, in their own layout; as `forward`."""
        return x - self.net.config.step * self(x, text=text)


def _to_tokens(
    x: Tensor, patch_size: int, latent_dim: int, *, is_video: bool
) -> tuple[Float[Tensor, "batch time token latent"], tuple[int, int]]:
    """Tokens of frames or images, and their grid; channels are ordered (row in patch, column in patch, channel)."""
    axes = "(batch, time, channel, row, column)" if is_video else "(batch, channel, row, column)"
    p, channels = patch_size, latent_dim // patch_size**2
    video = x if is_video else x[:, None]
    if video.dim() != 5 or video.shape[2] != channels or video.shape[3] % p or video.shape[4] % p:
        raise ValueError(
            f"x must have shape {axes} with {channels} channels and sides that are multiples of {p}, "
            f"got {tuple(x.shape)}"
        )
    tokens = rearrange(video, "b t c (h p) (w q) -> b t (h w) (p q c)", p=p, q=p)
    return tokens, (video.shape[3] // p, video.shape[4] // p)


def _to_cells(tokens: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    p = patch_size
    return rearrange(tokens, "b t (h w) (p q c) -> b t c (h p) (w q)", h=grid[0], p=p, q=p)
