"""Pictures and vectors to the tokens of one frame and back: a codec of pictures, and a `VectorCodec` beside it.

    x = (tokens of the picture, tokens of the vector)

The vector's standardized numbers follow the picture's code, `latent_dim` in a token, the last one filled up with zeros
(`worldflow.vector_tokens`). All codes get the same noise. A picture's decoder takes it off, but a vector shows it, so
that standardized numbers are stretched until the noise is `VECTOR_NOISE` of their deviation. Frames are
`worldflow.frames.Frames`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.codec import Codec, CodecConfig
from worldflow.frames import Frames
from worldflow.vector_codec import VectorCodec

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["VECTOR_NOISE", "DictCodec"]

VECTOR_NOISE = 0.01
"""Noise of a vector's numbers, in standard deviations of each."""


class DictCodec(nn.Module):
    """A picture's code, and behind it the standardized numbers of the vectors.

    Args:
        config: Sizes; its `parts` name the picture and the vectors.
        picture: The codec of pictures.
    """

    def __init__(self, config: CodecConfig, picture: Codec) -> None:
        super().__init__()
        assert config.parts is not None
        self.config, self.parts = config, config.parts
        self.picture = picture
        size = config.vector_dim
        self.vector = VectorCodec(CodecConfig(kind="vector", frame_shape=(size,), latent_dim=size))
        self._picture_tokens = config.grid[0] * config.grid[1]

    def set_statistics(self, mean: Float[Tensor, " number"], std: Float[Tensor, " number"]) -> None:
        """Fix what codes of vectors are measured by.

        Args:
            mean: Of each number, vector behind vector.
            std: Its standard deviation, zero where it never changed.

        Raises:
            ValueError: If there is not one finite number of each kind for each number of the vectors.
        """
        self.vector.set_statistics(mean, std)
        self.vector.std.mul_(VECTOR_NOISE / self.config.noise_std)

    def encode(self, frames: Any, *, chunk: int = 256) -> Float[Tensor, "*batch token latent"]:
        """The clean code of frames, `chunk` frames at a time.

        Raises:
            ValueError: If there are other parts, or parts of another size, than the codec was made for.
            TypeError: If the frames have no parts.
        """
        self._check(frames)
        pictures = self.picture.encode(frames[self.parts.picture], chunk=chunk)
        return torch.cat((pictures, self._vector_tokens(self.vector.encode(frames.vector))), dim=-2)

    def decode(self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256) -> Any:
        """Frames of codes, clean or noisy, `chunk` frames at a time."""
        return self._joined(self.picture.decode(x[..., : self._picture_tokens, :], chunk=chunk), self._numbers(x))

    def decode_checked(
        self, x: Float[Tensor, "*batch token latent"], *, chunk: int = 256
    ) -> tuple[Any, Bool[Tensor, "*batch"]]:
        """Frames of codes, and whether each was finite before it became gray levels, which hide that."""
        pictures, is_finite = self.picture.decode_checked(x[..., : self._picture_tokens, :], chunk=chunk)
        numbers = self._numbers(x)
        return self._joined(pictures, numbers), is_finite & numbers.isfinite().all(-1)

    def shown(self, x: Float[Tensor, "batch token latent"]) -> tuple[Any, Float[Tensor, "batch token latent"]]:
        """As `Codec.shown`."""
        pictures, codes = self.picture.shown(x[:, : self._picture_tokens])
        numbers = self._numbers(x)
        both = torch.cat((codes, self._vector_tokens(self.vector.encode(numbers))), dim=-2)
        return self._joined(pictures, numbers.detach()), both

    def reconstruction_error(
        self, frames: Frames, codes: Float[Tensor, "frame token latent"]
    ) -> Float[Tensor, " frame"]:
        """Mean squared error of the pictures that codes show; vectors have none."""
        return self.picture.reconstruction_error(frames.picture, codes[:, : self._picture_tokens])

    def _check(self, frames: Frames) -> None:
        expected: dict[str, Any] = {self.parts.picture: self.config.frame_shape}
        expected |= {name: (size,) for name, size in self.parts.sizes.items()}
        if not isinstance(frames, Frames):
            raise TypeError(f"frames must be a dictionary of {sorted(expected)}, got {type(frames).__name__}")
        found = {name: tuple(part.shape[frames.ndim :]) for name, part in frames.parts.items()}
        if found != expected:
            raise ValueError(f"the parts of frames must have the shapes {expected}, got {found}")

    def _vector_tokens(self, code: Float[Tensor, "*batch 1 number"]) -> Float[Tensor, "*batch token latent"]:
        filled = F.pad(code.flatten(-2), (0, -code.shape[-1] % self.config.token_dim))
        return filled.unflatten(-1, (-1, self.config.token_dim))

    def _numbers(self, x: Float[Tensor, "*batch token latent"]) -> Float[Tensor, "*batch number"]:
        code = x[..., self._picture_tokens :, :].flatten(-2)[..., : self.config.vector_dim]
        return self.vector.decode_pixels(code[..., None, :])

    def _joined(self, pictures: Tensor, numbers: Tensor) -> Frames:
        vectors = numbers.float().split(self.parts.numbers, dim=-1)
        return Frames({self.parts.picture: pictures} | dict(zip(self.parts.vectors, vectors, strict=True)))
