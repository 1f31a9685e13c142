"""`worldflow images train | sample`: learn images from a file or a folder, and draw more of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from worldflow.density import FitConfig, LabelledImages
from worldflow.guidance import RULES
from worldflow.image_files import ImageData, read_images, write_images
from worldflow.images import ImageConfig, ImageFlow, LatentImageConfig, load_images, save_images, train_images
from worldflow.text_condition import Captions, embed_captions, encoder_for

__all__ = ["SampleImages", "TrainImages"]

MOST_MEASURED = 1024
"""Validation images whose bits are measured in the end."""


@dataclass(frozen=True, kw_only=True)
class TrainImages:
    """Learn the density of images: of their codes, as STARFlow does, or of their pixels, as TARFlow does."""

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """Images to learn from: an .npz file with labels or captions, or a folder with a subfolder for each class."""
    out: str
    """File for the flow."""
    space: Literal["codes", "pixels"] = "codes"
    """What to learn the density of: a code that is learned first, or the pixels."""
    unconditional: bool = False
    """Leave classes and captions out."""
    text: str | None = None
    """Read captions with this T5 or BERT encoder, a folder or a name on the hub; for codes."""
    text_words: int = 16
    """Tokens of a caption, padding included."""
    levels: int = 256
    """How many values a number of an image can take."""
    patch_size: int = 4
    """Rows and columns of a token."""
    latent_dim: int = 8
    """Channels of a token of the learned code."""
    width: int = 128
    """Channels of the transformers, a multiple of 32."""
    layers: int = 4
    """Transformer layers: of the deep block, or, on pixels, of all four blocks together."""
    dropout: float = 0.0
    """Of the transformers on pixels, in training."""
    noise_std: float | None = None
    """Noise on what is learned; by default 0.2 for codes, and none but dequantization for pixels."""
    held_out: float = 0.1
    """Share of the images to choose the weights by."""
    json: bool = False
    """Print the result as JSON."""
    config: OmitArgPrefixes[FitConfig] = field(default_factory=FitConfig)
    """How to train."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
        if self.text is not None and (self.space == "pixels" or self.unconditional):
            raise ValueError("--text is for codes that are conditional on it: leave --space and --unconditional out")

    def __call__(self) -> dict[str, Any]:
        """Train."""
        if Path(self.out).is_dir():
            raise IsADirectoryError(f"--out must name a file to write, got the folder {self.out}")
        data = read_images(self.data)
        captions = self._captions(data)
        numbers = torch.from_numpy(captions.text_of) if captions is not None else data.labels
        if numbers is None or self.unconditional:
            numbers = torch.zeros(len(data.images), dtype=torch.int64)
        everything = LabelledImages(images=data.images, labels=numbers)
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(self.config.seed))
        aside = round(self.held_out * len(order))
        if not 0 < aside < len(order):
            raise ValueError(f"{len(order)} images are too few to hold {self.held_out:g} of them out; give more")
        validation, train = everything[order[:aside]], everything[order[aside:]]
        how = {"fit": self.config, "progress": True}
        classes = 0 if self.unconditional or captions is not None else len(data.classes)
        same = {
            "shape": tuple(data.images.shape[1:]),
            "levels": self.levels,
            "num_classes": classes,
            "patch_size": self.patch_size,
        }
        if self.space == "pixels":
            blocks = tuple(max(1, self.layers // 4) for _ in range(4))
            pixels = ImageConfig(
                layers=blocks, width=self.width, noise_std=self.noise_std or 0.0, dropout=self.dropout, **same
            )
            model, found = train_images(train, validation, config=pixels, **how)
        else:
            codes = LatentImageConfig(
                text=None if captions is None else captions.spec,
                pieces=2 if self.patch_size % 2 == 0 else 1,
                latent_dim=self.latent_dim,
                shallow_width=self.width,
                deep_layers=self.layers,
                deep_width=self.width,
                noise_std=0.2 if self.noise_std is None else self.noise_std,
                **same,
            )
            model, found = train_images(train, validation, config=codes, captions=captions, **how)
        result = {
            "model": str(save_images(self.out, model)),
            "images": len(train),
            "parameters": sum(p.numel() for p in model.parameters()),
            "cpu_seconds": found.seconds,
        }
        if classes:
            result["classes"] = ", ".join(f"{number} {name}" for number, name in enumerate(data.classes))
        if self.space == "codes" or not self.noise_std:
            some = validation[torch.arange(min(len(validation), MOST_MEASURED))]
            given: dict[str, Any] = {} if captions is None else {"text": captions.texts[some.labels]}
            points = torch.Generator().manual_seed(self.config.seed)
            bits = model.bits(some.images, some.labels if classes else None, generator=points, **given)
            result["validation_bits_per_dim"] = bits.mean
        return result

    def _captions(self, data: ImageData) -> Captions | None:
        if self.text is None:
            return None
        if data.captions is None:
            raise ValueError(f"{self.data} has no captions, but --text is given; add captions or leave --text out")
        return embed_captions(data.captions, encoder=self.text, words=self.text_words)


@dataclass(frozen=True, kw_only=True)
class SampleImages:
    """Draw images from a flow that `worldflow images train` learned."""

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """File of the flow."""
    out: str
    """File to write: .png for one sheet with a row for each class or text, .npz for the numbers."""
    classes: tuple[int, ...] = ()
    """Numbers of the classes to draw; by default all that there are."""
    text: tuple[str, ...] = ()
    """What to draw, for a flow that reads text."""
    samples: int = 8
    """Images of each class or text."""
    guidance: float = 0.0
    """How far to go from what is likely without the condition to what is likely with it."""
    rule: Literal["auto", "sharpen", "extrapolate"] = "auto"
    """How to guide: STARFlow's rule sharpens, TARFlow's extrapolates; auto takes the one that is the flow's own."""
    denoise: Literal["auto", "none", "tweedie"] = "auto"
    """Take noise off by the flow's own gradient; auto does where no decoder takes it off."""
    encoder: str | None = None
    """Where the text encoder is now, if not where it was in training."""
    seed: int = 0
    """The same seed gives the same images."""
    json: bool = False
    """Print the result as JSON."""

    def __call__(self) -> dict[str, Any]:
        """Draw."""
        if self.samples < 1:
            raise ValueError(f"--samples must be at least 1, got {self.samples}")
        if Path(self.out).suffix.lower() not in (".npz", ".png"):
            raise ValueError(f"--out must end in .npz or .png, got {self.out!r}")
        model = load_images(self.model)
        how: dict[str, Any] = {"guidance": self.guidance, "generator": torch.Generator().manual_seed(self.seed)}
        if self.rule != "auto":
            how["rule"] = RULES[self.rule]
        if self.denoise != "auto":
            how["denoise"] = self.denoise == "tweedie"
        label = None
        if self.text:
            spec = None if isinstance(model, ImageFlow) else model.config.text
            if spec is None:
                raise ValueError("this flow reads no text; leave --text out, or train one on captions")
            text = encoder_for(spec, self.encoder)(self.text).tokens
            how["text"] = text.repeat_interleave(self.samples, dim=0)
        elif model.config.num_classes:
            classes = self.classes or range(model.config.num_classes)
            label = torch.tensor(list(classes)).repeat_interleave(self.samples)
        else:
            how["count"] = self.samples
        if self.classes and label is None:
            raise ValueError("this flow has no classes; leave --classes out")
        drawn = model.sample(label, **how)
        path = write_images(drawn, self.out, levels=model.config.levels, columns=self.samples, labels=label)
        return {"images": str(path), "drawn": len(drawn)}
