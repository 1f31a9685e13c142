"""Images have an exact density, are learned, kept, and drawn again."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from builders import randomize
from torch import Tensor

from worldflow.autoregressive import AffineBlock
from worldflow.bits import dequantized
from worldflow.density import FitConfig, LabelledImages, fit_density
from worldflow.images import ImageConfig, ImageFlow, load_images, save_images, train_images

CONFIG = ImageConfig(shape=(4, 2, 1), levels=3, num_classes=2, layers=(1, 1), width=32, head_dim=16)
FIT = FitConfig(minutes=0.12, batch_size=32, learning_rate=4e-3, look_seconds=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stripes(count: int = 300, *, seed: int = 0) -> LabelledImages:
    """Class 0: all pixels are alike, 0 or 2; class 1: all are 1, but the first, which is anything."""
    draw = generator(seed)
    labels = torch.randint(2, (count,), generator=draw)
    alike = 2 * torch.randint(2, (count, 1), generator=draw).expand(-1, 8)
    ones = torch.ones(count, 8, dtype=torch.int64)
    ones[:, 0] = torch.randint(3, (count,), generator=draw)
    return LabelledImages(images=torch.where(labels[:, None] == 0, alike, ones).view(-1, 4, 2, 1), labels=labels)


def tiny(config: ImageConfig = CONFIG) -> ImageFlow:
    model = ImageFlow(config).double().eval()
    randomize(model.flow, scale=0.5)
    with torch.no_grad():
        for block in model.flow.blocks:
            assert isinstance(block, AffineBlock)
            block.proj_out.weight.mul_(0.3)
    if not config.noise_std:
        model.marginals.count(torch.randint(config.levels, (50, config.dim), generator=generator(3)))
    return model


@pytest.fixture(scope="module")
def learned() -> ImageFlow:
    clock = Steps()
    return train_images(stripes(), stripes(60, seed=1), config=CONFIG, fit=FIT, clock=clock)[0]


class Steps:
    """A clock that ticks a hundredth of a second whenever it is read: fits of it can be repeated."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@torch.no_grad()
def test_density_of_the_cube_integrates_to_one() -> None:
    # One patch of two pixels by two, in every cell a grid: constant weights, midpoints.
    model = tiny(replace(CONFIG, shape=(2, 1, 1), patch_size=1, levels=2))
    side = (torch.arange(120, dtype=torch.float64) + 0.5) / 120
    x = torch.cartesian_prod(side, side).view(-1, 2, 1, 1)
    for label in (0, -1):
        density = model.log_prob(x, torch.full((len(x),), label)).exp()
        # Midpoints at 120 a side of a density whose slopes grow towards the edges.
        assert float(density.mean()) == pytest.approx(1, abs=1e-2)


@torch.no_grad()
def test_summing_over_classes() -> None:
    model = tiny()
    x = dequantized(stripes(5).images, 3, generator=generator()).double()
    by_class = [model.log_prob(x, torch.full((5,), c)).exp() for c in range(2)]
    torch.testing.assert_close(model.marginal_log_prob(x).exp(), (by_class[0] + by_class[1]) / 2, rtol=1e-12, atol=0)


@torch.no_grad()
def test_bits_are_those_of_the_density() -> None:
    model, data = tiny(), stripes(7)
    model.float()  # draws are float32
    points = generator(5)
    x = torch.stack([dequantized(data.images, 3, generator=points) for _ in range(3)])
    found = model.bits(data.images, generator=generator(5), draws=3)
    nats = torch.stack([model.marginal_log_prob(part) for part in x])
    assert found.mean == pytest.approx(math.log2(3) - float(nats.double().mean()) / 8 / math.log(2), rel=1e-9)
    given = model.bits(data.images, data.labels, generator=generator(5), draws=3)
    nats = torch.stack([model.log_prob(part, data.labels) for part in x])
    assert given.mean == pytest.approx(math.log2(3) - float(nats.double().mean()) / 8 / math.log(2), rel=1e-9)


@torch.no_grad()
def test_what_is_drawn_maps_back_to_its_noise() -> None:
    # With so many levels the middle of a cell stands for the point that was drawn; half of the numbers are near zero.
    config = replace(CONFIG, levels=4096, shape=(4, 4, 1))
    model = tiny(config)
    model.marginals.count(torch.randint(4096, (20000, 16), generator=generator(3)).square() // 4096)
    label = torch.tensor([0, 1, -1] * 20)
    drawn = model.sample(label, method="sequential", generator=generator(8))
    z = model.flow(model.to_tokens((drawn.double() + 0.5) / 4096)[0], label=label).z
    noise = torch.randn(60, 4, 4, generator=generator(8)).double()
    assert (z - noise).abs().median() < 0.02


def test_learns_what_there_is_to_learn(learned: ImageFlow) -> None:
    test = stripes(200, seed=2)
    with_label = learned.bits(test.images, test.labels, generator=generator())
    without = learned.bits(test.images, generator=generator())
    # Given the class there are one bit, or log2(3), in eight pixels: 0.16; pixel by pixel there are over 1.4.
    assert with_label.mean < 0.75
    # Not to know the class costs at most the one bit that it has.
    assert with_label.mean < without.mean < with_label.mean + 0.125 + 0.01
    assert without.tighter < without.mean


def test_draws_what_it_has_learned(learned: ImageFlow) -> None:
    label = torch.tensor([0, 1]).repeat(50)
    drawn = learned.sample(label, guidance=1.0, generator=generator(1))
    assert drawn.shape == (100, 4, 2, 1)
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn.min()) and int(drawn.max()) <= 2
    ones = (drawn.flatten(1)[:, 1:] == 1).double().mean(1)
    assert float(ones[label == 1].mean()) > 0.8
    assert float(ones[label == 0].mean()) < 0.2
    again = learned.sample(label, guidance=1.0, generator=generator(1))
    assert torch.equal(drawn, again)
    sequential = learned.sample(label, guidance=1.0, method="sequential", generator=generator(1))
    # Jacobi stops within 1e-5 of the answer; a number may yet fall on the other side of a level's edge.
    assert (sequential != drawn).double().mean() < 0.01
    assert learned.sample(count=3, generator=generator()).shape == (3, 4, 2, 1)


def test_is_the_same_when_read_again(learned: ImageFlow, tmp_path: Path) -> None:
    path = save_images(tmp_path / "digits.safetensors", learned)
    again = load_images(path)
    assert again.config == learned.config
    x = dequantized(stripes(4).images, 3, generator=generator())
    assert torch.equal(again.log_prob(x, torch.tensor([0, 1, -1, 0])), learned.log_prob(x, torch.tensor([0, 1, -1, 0])))


def test_the_best_weights_are_kept_and_patience_ends() -> None:
    bits = iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8, *[2.9] * 100])
    seen: list[Tensor] = []
    module = torch.nn.Linear(1, 1)

    def look(mean: torch.nn.Module) -> float:
        seen.append(mean.get_parameter("weight").detach().clone())
        return next(bits)

    config = replace(FIT, minutes=1.0, look_seconds=1.0, patience=3 / 60)
    found = fit_density(
        module,
        lambda net, _: lambda images, labels: net(images.float().mean((1, 2))).square().sum(1),
        stripes(),
        stripes(9),
        config=config,
        look=look,
        clock=Steps(),
    )
    assert found.validation_bits == 2.0
    assert torch.equal(module.weight, seen[1])
    assert 5 <= len(seen) <= 7
    assert found.seconds < 10 < 60


def test_tweedie_finds_the_mean_of_a_normal() -> None:
    # Without training the flow is N(0, I): the posterior mean under noise s is y (1 - s^2).
    model = ImageFlow(replace(CONFIG, noise_std=0.3)).double()
    y = torch.randn(3, 4, 2, 1, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(model.denoised(y), y * (1 - 0.3**2), rtol=1e-12, atol=1e-12)


def test_a_flow_of_noisy_images_draws_clean_ones() -> None:
    config = replace(CONFIG, noise_std=0.2)
    model, _ = train_images(stripes(), stripes(60, seed=1), config=config, fit=FIT, clock=Steps())
    label = torch.ones(100, dtype=torch.int64)
    noisy = model.sample(label, denoise=False, generator=generator())
    clean = model.sample(label, generator=generator())
    wrong = [(drawn.flatten(1)[:, 1:] != 1).double().mean() for drawn in (noisy, clean)]
    assert wrong[1] < 0.8 * wrong[0]


def test_patches_hold_what_they_should() -> None:
    # Pixel (row, column) stands in token (row / 2, column / 2) only: its gradient says so.
    model = tiny(replace(CONFIG, shape=(4, 4, 1), layers=(1,)))
    x = torch.rand(1, 4, 4, 1, generator=generator(), dtype=torch.float64)
    for row, column in product(range(4), range(4)):
        y = x.clone()
        y[0, row, column] = 1 - y[0, row, column]
        changed = (model.to_tokens(y)[0] != model.to_tokens(x)[0])[0].any(-1).nonzero().flatten().tolist()
        assert changed == [row // 2 * 2 + column // 2]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="multiples of the patch size 3, got images of 4x2x1"):
        replace(CONFIG, patch_size=3)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        replace(CONFIG, levels=1)
    with pytest.raises(ValueError, match="noise_std must not be negative"):
        replace(CONFIG, noise_std=-1.0)
    with pytest.raises(ValueError, match="layers must name"):
        replace(CONFIG, layers=())
    model = tiny()
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 4, 2, 1\), got \(3, 4, 2\)"):
        model.log_prob(torch.zeros(3, 4, 2))
    with pytest.raises(ValueError, match="give either label or count"):
        model.sample(generator=generator())
    with pytest.raises(ValueError, match="no noise to take away"):
        model.denoised(torch.zeros(1, 4, 2, 1))
    with pytest.raises(ValueError, match="has no bits per dimension"):
        tiny(replace(CONFIG, noise_std=0.1)).bits(stripes(3).images, generator=generator())
    with pytest.raises(ValueError, match="no classes to sum over"):
        tiny(replace(CONFIG, num_classes=0)).marginal_log_prob(torch.zeros(1, 4, 2, 1))
    with pytest.raises(ValueError, match="expected a label for each image"):
        LabelledImages(images=torch.zeros(3, 4), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="minutes must be above 0"):
        FitConfig(minutes=0)
    with pytest.raises(ValueError, match="hidden_labels must be from 0 to 1"):
        FitConfig(hidden_labels=2)
