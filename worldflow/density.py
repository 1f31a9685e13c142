"""Fit a density of images by maximum likelihood, and keep the weights that validation images liked best.

One function for every density, ours and others', so that a comparison compares densities and not loops: fresh
dequantization at every step, labels hidden from a share of the images, a running mean of the weights, and a look at
validation images now and then that decides which weights are kept and when to stop. The loop itself is
`worldflow.fit.fit`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldflow.fit import Log, Stage, fit
from worldflow.log import NoLog
from worldflow.muon import has_bfloat16

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped

__all__ = ["DENSITY", "DensityFit", "FitConfig", "LabelledImages", "NeverFiniteError", "fit_density"]

DENSITY = Stage(name="density", headline="density/bits", rate="density/images_per_second")

LOOK_BATCH = 512
"""Validation images that are looked at together."""

DensityLoss = Callable[["Shaped[Tensor, 'batch *image']", "Int64[Tensor, ' batch']"], "Float[Tensor, ' batch']"]
"""From images and labels (-1 for none) to their NLL in bits per dimension, drawing whatever noise it needs."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images and what they show."""

    images: Shaped[Tensor, "image *shape"]
    labels: Int64[Tensor, " image"]

    def __post_init__(self) -> None:
        if not len(self.images) or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"expected a label for each image and at least one, got {len(self.images)} images and labels of shape "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        """How many."""
        return len(self.images)

    def __getitem__(self, index: Int64[Tensor, " chosen"]) -> LabelledImages:
        """Some of them."""
        return LabelledImages(images=self.images[index], labels=self.labels[index])


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast a density is fitted."""

    minutes: float = 10.0
    """Most minutes to take, looks included."""
    batch_size: int = 64
    """Images of a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; Muon's follows from it."""
    weight_decay: float = 0.1
    """Weight decay of matrices; there is none of vectors."""
    hidden_labels: float = 0.1
    """Share of images whose label is hidden in a step; 1 hides them all, and the density is unconditional."""
    average: float = 0.99
    """Share of the running mean of weights that a step keeps, less in the first steps; 0 takes the weights as they
    are."""
    look_seconds: float = 5.0
    """Seconds from one look at the validation images to the next."""
    codec_share: float = 0.25
    """Share of the minutes that go to a code of images, where one has to be learned first."""
    patience: float = math.inf
    """Stop when validation has not improved for this share of the minutes."""
    seed: int = 0
    """Of batches, hidden labels and noise."""

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate", "look_seconds", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 < self.codec_share < 1:
            raise ValueError(f"codec_share must be between 0 and 1, got {self.codec_share}")
        for name in ("hidden_labels", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DensityFit:
    """What a fit came to."""

    validation_bits: float
    """Of the weights that were kept."""
    best_seconds: float
    """When these were."""
    seconds: float
    """All that were taken, by the fit's clock."""
    steps: int
    """Steps that were taken."""


class NeverFiniteError(ValueError):
    """No look at the validation images found a finite density."""


class _NoGain(Exception):  # noqa: N818  (it ends a fit, it is no error)
    """Validation has not improved for long."""


def fit_density(
    module: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], DensityLoss],
    train: LabelledImages,
    validation: LabelledImages,
    *,
    config: FitConfig,
    look: Callable[[nn.Module], float] | None = None,
    log: Log | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> DensityFit:
    """Fit a density; it holds the best weights in the end.

    Args:
        module: Whose parameters to fit. Muon takes the matrices named `.blocks.`: give a `TarFlow` itself, not a module
            around it, in whose names everything would be.
        loss: Makes the loss of a module, which draws its noise from the generator.
        train: To learn from.
        validation: To choose the weights by, and the moment to stop; never the images that are reported on.
        config: How.
        look: Bits per dimension of the validation images under a module; by default those of `loss`, given the labels
            unless all are hidden.
        log: Where metrics go.
        progress: Show a progress bar.
        clock: Tells seconds; by default the CPU's that this process took.

    Returns:
        What it came to.

    Raises:
        NeverFiniteError: If validation bits never were.
    """
    generator = torch.Generator().manual_seed(config.seed)
    batch_loss = loss(module, generator)
    mean = copy.deepcopy(module).eval() if config.average else module
    is_narrow = has_bfloat16(torch.device("cpu")) and any(".blocks." in name for name, _ in module.named_parameters())
    begin = clock()
    best: dict[str, Tensor] = {}
    best_bits, best_seconds, steps = math.inf, 0.0, 0

    def step_loss() -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal steps
        if config.average:
            _move(mean, module, min(config.average, steps / (steps + 10)))
        steps += 1
        chosen = train[torch.randint(len(train), (config.batch_size,), generator=generator)]
        is_hidden = torch.rand(config.batch_size, generator=generator) < config.hidden_labels
        # Dropout knows the global generator only: borrow it, give it back. Transformers gain from bf16 where it is
        # native; small networks and splines lose by it.
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_narrow):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            bits = batch_loss(chosen.images, chosen.labels.masked_fill(is_hidden, -1)).mean()
        return bits * math.log(2), {DENSITY.headline: bits.detach()}

    @torch.no_grad()
    def measured() -> float:
        if look is not None:
            return look(mean)
        fixed = torch.Generator().manual_seed(config.seed + 1)
        labels = validation.labels if config.hidden_labels < 1 else torch.full_like(validation.labels, -1)
        bits = loss(mean, fixed)
        parts = torch.arange(len(validation)).split(LOOK_BATCH)
        return float(torch.cat([bits(validation.images[part], labels[part]) for part in parts]).mean())

    def look_now() -> dict[str, float]:
        nonlocal best, best_bits, best_seconds
        was_training = mean.training
        mean.eval()
        bits, now = measured(), clock() - begin
        mean.train(was_training)
        if bits < best_bits:
            best = {name: tensor.detach().clone() for name, tensor in mean.state_dict().items()}
            best_bits, best_seconds = bits, now
        elif now - best_seconds > config.patience * 60 * config.minutes:
            raise _NoGain
        return {"density/validation_bits": bits}

    with contextlib.suppress(_NoGain):
        fit(
            module.train(),
            step_loss,
            log or NoLog(),
            stage=DENSITY,
            steps=0,
            minutes=config.minutes,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            clip_norm=1.0,
            items=config.batch_size,
            device=torch.device("cpu"),
            start=None,
            look=look_now,
            look_every=config.look_seconds / 60,
            save=lambda _: None,
            save_every=math.inf,
            progress=progress,
            clock=clock,
        )
    if not best:
        raise NeverFiniteError("validation was never finite: lower the learning rate")
    module.load_state_dict(best)
    module.eval()
    return DensityFit(validation_bits=best_bits, best_seconds=best_seconds, seconds=clock() - begin, steps=steps)


@torch.no_grad()
def _move(mean: nn.Module, module: nn.Module, kept: float) -> None:
    """A step of the running mean; buffers do not move."""
    for to, new in zip(mean.parameters(), module.parameters(), strict=True):
        to.lerp_(new, 1 - kept)
