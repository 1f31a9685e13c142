"""Codec and flow trained as one, end to end: no code is computed ahead, and no gradient is stopped between the two.

With an encoder of fixed width (`q = N(encode(o), noise_std^2)`, the noise that the flow's density is about anyway), the
evidence lower bound of a frame has two parts that depend on weights,

    -ELBO = -log p(x~_t | x~_<t, a) - E log P(o_t | x~_t) + constant

and both are minimized over encoder, decoder and flow together. The flow's gradient reaches the encoder: codes become
what can be told from the past. The code's unit variance (a normalization, not a loss) keeps the likelihood from being
won by shrinking it. Pixels are Gaussian around the decoded frame, of the standard deviation that suits them best, so
that their part is half the logarithm of the error; per value of the latent, as the flow's,

    loss = flow's loss + (pixel values / latent values) / 2 * log(weighted error + smoothness * unevenness)

Drafts take codes as given: their squared error does not move the encoder, which could win it by forgetting.

Reference: SimFlow, 2025, arXiv 2512.04084.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldflow.codec import LatentCodec
from worldflow.data import Dataset, gather
from worldflow.latents import LatentBatch, redrawn
from worldflow.symmetry import transformed_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from jaxtyping import Float32, Int64

__all__ = ["JointClips"]


@dataclass(frozen=True, kw_only=True)
class JointClips:
    """Windows of codes as a codec makes them now, with its gradient: what `LatentData` is for a finished codec.

    Args:
        dataset: Recorded episodes.
        codec: The codec.
        smoothness: Weight of the code's unevenness beside the reconstruction error, as in `LatentCodec.loss`.
        symmetries: Those that may show a window (`worldflow.symmetry`), the identity first.
        generator: Draws the noise that frames are decoded and shown through.
        texts: The embedded texts that there are, where the world reads some.
        text_of: Which of them goes with each episode.
    """

    dataset: Dataset
    codec: LatentCodec
    smoothness: float = 0.0
    symmetries: Sequence[int] = (0,)
    generator: torch.Generator | None = None
    texts: Float32[Tensor, "caption word text"] | None = None
    text_of: Int64[np.ndarray, " episode"] | None = None

    def gather(
        self, index: Int64[np.ndarray, "batch 2"], length: int, *, symmetry: Int64[Tensor, " batch"] | None = None
    ) -> LatentBatch:
        """Windows of `length` transitions at `(episode, start)`, with what their reconstruction costs.

        Args:
            index: Episodes and starts.
            length: Transitions of a window.
            symmetry: Which symmetry shows each window, counted from 0, the identity; None leaves all as recorded.
        """
        codec = self.codec
        clips = gather(self.dataset, index, length)
        shown_by = torch.zeros(len(index), dtype=torch.int64) if symmetry is None else symmetry
        frames = transformed_rows(clips.frames, self.symmetries, shown_by).to(codec.mean_frame.device)
        loss, x = codec.loss_and_codes(frames, smoothness=self.smoothness, generator=self.generator)
        is_training = codec.training
        codec.eval()  # frames that the codec made itself do not count in its statistics
        shown = redrawn(codec, x, generator=self.generator)
        codec.train(is_training)
        values = math.prod(codec.config.frame_shape) / x[0, 0].numel()
        return LatentBatch(
            x=x,
            shown=shown,
            actions=clips.actions,
            rewards=clips.rewards,
            terminated=clips.terminated,
            valid=clips.valid,
            symmetry=shown_by,
            text=None if self.texts is None or self.text_of is None else self.texts[self.text_of[index[:, 0]]],
            codec_loss=0.5 * values * loss.total.clamp(min=1e-12).log(),
            codec_error=loss.error,
        )
