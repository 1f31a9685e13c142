"""Learn a code of single images, and fine-tune a decoder for the noise that a flow of codes will draw.

A flow of codes draws `x + noise_std * eps`, and the decoder has to take the noise off. `fit_codec` trains encoder and
decoder together through that noise (`LatentCodec.loss`). `finetune_decoder` is STARFlow's way with a code that is there
already: the encoder stays, and only the decoder learns to read codes with as much noise as the flow is to have.

Reference: Gu et al., 2025, STARFlow, arXiv 2506.06276.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldflow.codec import CodecConfig, LatentCodec, background
from worldflow.fit import CODEC, Log, fit
from worldflow.log import NoLog

if TYPE_CHECKING:
    from jaxtyping import UInt8

__all__ = ["CodecFit", "finetune_decoder", "fit_codec"]


@dataclass(frozen=True, kw_only=True)
class CodecFit:
    """How long and how fast a codec is fitted."""

    minutes: float = 3.0
    """Minutes to take."""
    batch_size: int = 64
    """Images of a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; Muon's follows from it."""
    weight_decay: float = 0.01
    """Of matrices."""
    seed: int = 0
    """Of weights, batches and noise."""

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


def fit_codec(
    images: UInt8[Tensor, "image row column channel"],
    *,
    config: CodecConfig,
    fit: CodecFit | None = None,
    log: Log | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> LatentCodec:
    """Learn a code of images whose decoder reads it through its noise.

    Args:
        images: Images to learn from.
        config: Sizes and noise of the codec, of kind `latent`.
        fit: How to train.
        log: Where metrics go.
        progress: Show a progress bar.
        clock: Tells seconds; by default the CPU's that this process took.

    Raises:
        ValueError: If the codec learns nothing (kind `patch`), or images have another size.
    """
    if config.kind != "latent":
        raise ValueError("a codec of kind 'patch' learns nothing: build it with worldflow.codec.build_codec")
    fit = fit or CodecFit()
    with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
        torch.manual_seed(fit.seed)
        codec = LatentCodec(config)
    _check(codec, images)
    codec.set_mean_frame(*background(images[:4096]))
    _fit(codec.train(), images, fit, log=log, progress=progress, clock=clock)
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(fit.seed))[:4096]
    codec.settle(images[part] for part in some.split(256))
    return codec.requires_grad_(False)


def finetune_decoder(
    codec: LatentCodec,
    images: UInt8[Tensor, "image row column channel"],
    *,
    noise_std: float,
    fit: CodecFit | None = None,
    log: Log | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> LatentCodec:
    """A codec with the same encoder, whose decoder learns to read codes with this much noise.

    Args:
        codec: The codec to start from; it stays as it is.
        images: Images to learn from.
        noise_std: Standard deviation of the noise; codes have unit variance.
        fit: How to train.
        log: Where metrics go.
        progress: Show a progress bar.
        clock: Tells seconds; by default the CPU's that this process took.

    Raises:
        ValueError: If the noise is not above 0, or images have another size.
    """
    fit = fit or CodecFit()
    tuned = LatentCodec(replace(codec.config, noise_std=noise_std))
    tuned.load_state_dict(codec.state_dict())
    _check(tuned, images)
    tuned.eval().requires_grad_(False)  # codes keep their statistics
    for part in (tuned.code_in, tuned.decoder, tuned.pieces_out):
        part.requires_grad_()
    _fit(tuned, images, fit, log=log, progress=progress, clock=clock)
    return tuned.requires_grad_(False)


def _fit(
    codec: LatentCodec,
    images: Tensor,
    config: CodecFit,
    *,
    log: Log | None,
    progress: bool,
    clock: Callable[[], float],
) -> None:
    generator = torch.Generator().manual_seed(config.seed)

    def batch_loss() -> tuple[Tensor, dict[str, Tensor]]:
        chosen = images[torch.randint(len(images), (config.batch_size,), generator=generator)]
        loss = codec.loss(chosen[:, None], generator=generator)
        return loss.total, {"codec/loss": loss.total.detach(), "codec/psnr": 10 * torch.log10(4 / loss.error)}

    fit(
        codec,
        batch_loss,
        log or NoLog(),
        stage=CODEC,
        steps=0,
        minutes=config.minutes,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        clip_norm=1.0,
        items=config.batch_size,
        device=torch.device("cpu"),
        start=None,
        look=None,
        look_every=math.inf,
        save=lambda _: None,
        save_every=math.inf,
        progress=progress,
        clock=clock,
    )


def _check(codec: LatentCodec, images: Tensor) -> None:
    if tuple(images.shape[1:]) != codec.config.frame_shape or not len(images):
        expected = ", ".join(map(str, codec.config.frame_shape))
        raise ValueError(f"images must have shape (image, {expected}), at least one, got {tuple(images.shape)}")
