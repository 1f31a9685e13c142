"""Images as single frames: learn their density from pixels or from codes, keep it, and draw from it.

    model, found = train_images(train, validation, config=ImageConfig(...))        # TARFlow, on pixels
    model, found = train_images(train, validation, config=LatentImageConfig(...))  # STARFlow, on codes
    model.sample(labels, guidance=1.0, generator=g)

Both kinds have the same methods (`worldflow.pixel_images`, `worldflow.latent_images`): `log_prob`, `bits`, `sample`
with either rule of guidance, `denoised`. Both are unconditional or conditional on a class; on a text only codes are,
and pixels that are taken for codes (`LatentImageConfig(code="patch")`): TARFlow adds a class at every slot and has no
place for a sequence of words.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from worldflow.codec import LatentCodec
from worldflow.density import DensityFit, DensityLoss, FitConfig, LabelledImages, fit_density
from worldflow.image_codec import CodecFit, finetune_decoder, fit_codec
from worldflow.latent_images import LatentImageConfig, LatentImageFlow, to_frames
from worldflow.pixel_images import ImageConfig, ImageFlow, pixel_loss
from worldflow.text_condition import Captions
from worldflow.weights import load_weights, read_weights, write_weights
from worldflow.world_config import TextSpec

if TYPE_CHECKING:
    from worldflow.fit import Log

__all__ = [
    "ImageConfig",
    "ImageFlow",
    "LatentImageConfig",
    "LatentImageFlow",
    "finetune_decoder",
    "fit_codec",
    "load_images",
    "save_images",
    "train_images",
]

KIND = "density of images"


@overload
def train_images(
    train: LabelledImages,
    validation: LabelledImages,
    *,
    config: ImageConfig,
    fit: FitConfig | None = None,
    log: Log | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> tuple[ImageFlow, DensityFit]: ...


@overload
def train_images(
    train: LabelledImages,
    validation: LabelledImages,
    *,
    config: LatentImageConfig,
    fit: FitConfig | None = None,
    codec: LatentCodec | None = None,
    captions: Captions | None = None,
    log: Log | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> tuple[LatentImageFlow, DensityFit]: ...


def train_images(
    train: LabelledImages,
    validation: LabelledImages,
    *,
    config: ImageConfig | LatentImageConfig,
    fit: FitConfig | None = None,
    codec: LatentCodec | None = None,
    captions: Captions | None = None,
    log: Log | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> tuple[ImageFlow | LatentImageFlow, DensityFit]:
    """Learn the density of images.

    Args:
        train: Whole-numbered images `(image, row, column, channel)`, and the class of each or the number of its text.
        validation: Others, to choose the weights by and the moment to stop.
        config: What images are, and the sizes of the flow: on pixels, or on codes.
        fit: How to train.
        codec: For codes: one that is trained already, from `fit_codec`, `finetune_decoder` or a world; None spends
            `fit.codec_share` of the minutes on one.
        captions: For texts: the embedded ones (`worldflow.text_condition.embed_captions`), which labels number.
        log: Where metrics go.
        progress: Show a progress bar.
        clock: Tells seconds; by default the CPU's that this process took.

    Returns:
        The flow with its best weights, and what the fit came to, the codec's seconds included.

    Raises:
        ValueError: If the images, the codec or the captions do not fit the configuration.
    """
    fit = fit or FitConfig()
    if isinstance(config, ImageConfig):
        if codec is not None or captions is not None:
            raise ValueError("a flow of pixels has neither codec nor captions: give a LatentImageConfig for them")
        return _train_pixels(train, validation, config, fit, log=log, progress=progress, clock=clock)
    for part in (train, validation):
        if tuple(part.images.shape[1:]) != config.shape:
            raise ValueError(f"images must have shape {config.shape}, got {tuple(part.images.shape[1:])}")
    if (captions is None) != (config.text is None) or (captions is not None and captions.spec != config.text):
        given = None if captions is None else captions.spec
        raise ValueError(f"the flow reads {config.text}, and captions are of {given}: give those that it reads")
    if codec is not None and codec.config != config.codec:
        raise ValueError(f"the codec is {codec.config}, the configuration needs {config.codec}")
    begin = clock()
    with torch.random.fork_rng(devices=[]):  # weights are drawn from the global generator: borrow it, give it back
        torch.manual_seed(fit.seed)
        model = LatentImageFlow(config)
    minutes = fit.minutes
    if codec is None and config.code == "latent":
        minutes *= 1 - fit.codec_share
        codec = fit_codec(
            to_frames(train.images, config.levels),
            config=config.codec,
            fit=CodecFit(minutes=fit.minutes * fit.codec_share, seed=fit.seed),
            log=log,
            progress=progress,
            clock=clock,
        )
    if codec is not None:
        model.codec.load_state_dict(codec.state_dict())
    model.codec.eval()
    model.measure_pixel_std(validation.images[:1024], generator=torch.Generator().manual_seed(fit.seed))
    found = _fit_codes(
        model,
        captions,
        replace(train, images=model.codes(train.images)),
        replace(validation, images=model.codes(validation.images)),
        replace(fit, minutes=minutes),
        log=log,
        progress=progress,
        clock=clock,
    )
    before = clock() - begin - found.seconds
    return model.eval(), replace(found, seconds=found.seconds + before, best_seconds=found.best_seconds + before)


def save_images(path: str | os.PathLike[str], model: ImageFlow | LatentImageFlow) -> Path:
    """Write a flow, with its codec, to one file.

    Raises:
        OSError: If it cannot be written.
    """
    space = "pixels" if isinstance(model, ImageFlow) else "codes"
    return write_weights(path, model, kind=KIND, header={"space": space, "config": asdict(model.config)})


def load_images(path: str | os.PathLike[str]) -> ImageFlow | LatentImageFlow:
    """Read what `save_images` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else.
    """
    header, tensors = read_weights(path, kind=KIND)
    found = dict(header["config"])
    found |= {name: tuple(found[name]) for name in ("shape", "layers", "shallow_layers") if name in found}
    if header.get("space", "pixels") == "pixels":
        model = ImageFlow(ImageConfig(**found))
    else:
        text = found.pop("text")
        model = LatentImageFlow(LatentImageConfig(**found, text=None if text is None else TextSpec(**text)))
    load_weights(model, tensors, path=path)
    return model.eval()


def _train_pixels(
    train: LabelledImages,
    validation: LabelledImages,
    config: ImageConfig,
    fit: FitConfig,
    *,
    log: Log | None,
    progress: bool,
    clock: Callable[[], float],
) -> tuple[ImageFlow, DensityFit]:
    with torch.random.fork_rng(devices=[]):  # as above
        torch.manual_seed(fit.seed)
        model = ImageFlow(config)
    model.marginals.count(train.images.flatten(1))
    found = fit_density(
        model.flow,
        lambda module, generator: pixel_loss(module, model, generator=generator),
        train,
        validation,
        config=fit,
        log=log,
        progress=progress,
        clock=clock,
    )
    return model.eval(), found


def _fit_codes(
    model: LatentImageFlow,
    captions: Captions | None,
    train: LabelledImages,
    validation: LabelledImages,
    fit: FitConfig,
    *,
    log: Log | None,
    progress: bool,
    clock: Callable[[], float],
) -> DensityFit:
    """Fit the flow on codes, encoded once; their noise is drawn anew in every step."""
    config, texts = model.config, None
    if captions is not None:
        assert model.nothing is not None
        model.nothing.copy_(captions.nothing)
        texts = torch.cat((captions.texts, captions.nothing[None]))  # number -1, a hidden one, is the empty text

    def loss(module: nn.Module, generator: torch.Generator) -> DensityLoss:
        assert isinstance(module, LatentImageFlow)

        def bits(codes: Tensor, labels: Tensor) -> Tensor:
            x = module.with_noise(codes, generator=generator)
            text = None if texts is None else texts[labels]
            nats = -module.log_prob(x, labels if config.num_classes else None, text=text)
            return nats / (config.flow.frame_dim * math.log(2))

        return bits

    return fit_density(model, loss, train, validation, config=fit, log=log, progress=progress, clock=clock)
