"""Codes of images have an exact density, given a class, a text or nothing, and bound what the images cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import randomize
from torch import Tensor

from worldflow.bench_flows import digits
from worldflow.codec import LatentCodec
from worldflow.density import FitConfig, LabelledImages
from worldflow.elbo import log_mass
from worldflow.guidance import Rule, extrapolate, sharpen
from worldflow.images import (
    ImageConfig,
    LatentImageConfig,
    LatentImageFlow,
    load_images,
    save_images,
    train_images,
)
from worldflow.latent_images import to_frames
from worldflow.text_condition import Captions
from worldflow.world_config import TextSpec

SPEC = TextSpec(encoder="nowhere", identity="none", words=2, dim=5)
CONFIG = LatentImageConfig(
    shape=(4, 4, 1),
    levels=5,
    num_classes=2,
    patch_size=2,
    pieces=1,
    latent_dim=2,
    codec_width=16,
    codec_blocks=1,
    shallow_layers=(1,),
    shallow_width=16,
    deep_layers=2,
    deep_width=32,
    head_dim=16,
)
FIT = FitConfig(minutes=0.14, batch_size=32, learning_rate=8e-3, look_seconds=3, codec_share=0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halves(count: int = 200, *, seed: int = 0) -> LabelledImages:
    """Class 0 is bright on the left, class 1 at the top; bright is 3 or 4, dark 0 or 1."""
    draw = generator(seed)
    labels = torch.randint(2, (count,), generator=draw)
    bright = torch.zeros(2, 4, 4, 1, dtype=torch.int64)
    bright[0, :, :2], bright[1, :2] = 3, 3
    return LabelledImages(
        images=bright[labels] + torch.randint(2, (count, 1, 1, 1), generator=draw).expand(-1, 4, 4, 1), labels=labels
    )


class Steps:
    """A clock that ticks a hundredth of a second whenever it is read: fits of it can be repeated."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def tiny(**options: Any) -> LatentImageFlow:
    model = LatentImageFlow(replace(CONFIG, **options)).double().eval()
    randomize(model, scale=0.5)
    if model.nothing is not None:
        model.nothing.copy_(torch.randn(model.nothing.shape, generator=generator(4)))
    return model


def captions(labels: Tensor) -> Captions:
    """Two texts, and the empty one."""
    words = torch.randn(3, SPEC.words, SPEC.dim, generator=generator(7))
    return Captions(spec=SPEC, texts=words[:2], text_of=np.asarray(labels), nothing=words[2])


@pytest.fixture(scope="module")
def learned() -> LatentImageFlow:
    return train_images(halves(), halves(40, seed=1), config=CONFIG, fit=FIT, clock=Steps())[0]


def share_right(drawn: Tensor, label: Tensor) -> float:
    """How many images are nearer to the mean of their own class than to that of the other one."""
    data = halves()
    means = torch.stack([data.images[data.labels == c].double().mean(0).flatten() for c in range(2)])
    return float((torch.cdist(drawn.flatten(1).double(), means).argmin(1) == label).double().mean())


@torch.no_grad()
def test_bits_bound_the_probability_of_images() -> None:
    # Two pixels, each its own code: what images cost is then an integral over a plane, done in midpoints.
    model = tiny(code="patch", shape=(1, 2, 1), patch_size=1, levels=3, noise_std=1.0)
    model.pixel_std.fill_(0.3)
    side = (torch.arange(100, dtype=torch.float64) + 0.5) / 100 * 10 - 5
    x = torch.cartesian_prod(side, side).view(-1, 2, 1)
    numbers = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    label = torch.tensor([0])
    prior = model.log_prob(x, label.expand(len(x))).exp() * (10 / 100) ** 2
    # Smooth, but for tails that lie outside.
    assert float(prior.sum()) == pytest.approx(1, abs=5e-3)
    given = [log_mass(k.expand(len(x), 2).double(), x[:, :, 0] + 1, 0.3, num_levels=3).sum(1) for k in numbers]
    probability = (torch.stack(given).exp() * prior).sum(1)
    assert float(probability.sum()) == pytest.approx(1, abs=5e-3)
    cost = float(-probability.log2().mean()) / 2
    found = model.bits(numbers.view(9, 1, 2, 1), label.expand(9), generator=generator(), draws=600)
    # The noise is wider than what an image says about its code, so with so many draws the tighter bound is attained.
    assert found.tighter == pytest.approx(cost, abs=0.05)
    assert found.mean > cost + 0.1


@torch.no_grad()
def test_bits_without_labels_sum_over_classes_and_images_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny(), halves(9)
    whole = model.bits(data.images, generator=generator(), draws=2)
    by_class = [model.log_prob(model.codes(data.images), torch.full((9,), c)).exp() for c in range(2)]
    marginal = model.marginal_log_prob(model.codes(data.images)).exp()
    torch.testing.assert_close(marginal, (by_class[0] + by_class[1]) / 2, rtol=1e-12, atol=0)
    given = [model.bits(data.images, torch.full((9,), c), generator=generator(), draws=2).mean for c in range(2)]
    assert min(given) < whole.mean < max(given) + 1 / 16
    monkeypatch.setattr("worldflow.latent_images.CHUNK", 9)
    assert model.bits(data.images, generator=generator(), draws=2).mean == pytest.approx(whole.mean, rel=1e-12)


@torch.no_grad()
def test_the_condition_is_read_and_none_has_a_place_of_its_own() -> None:
    model = tiny()
    x = model.noisy(halves(3).images, generator=generator())
    by_label = [model.log_prob(x, torch.full((3,), c)) for c in (0, 1, -1)]
    assert torch.equal(by_label[2], model.log_prob(x))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (by_label[i] - by_label[j]).abs().min() > 1e-4
    mixed = model.log_prob(x, torch.tensor([1, -1, 0]))
    expected = torch.stack((by_label[1][0], by_label[2][1], by_label[0][2]))
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
    reader = tiny(num_classes=0, text=SPEC)
    assert reader.nothing is not None
    text = torch.randn(3, SPEC.words, SPEC.dim, generator=generator(1), dtype=torch.float64)
    assert torch.equal(reader.log_prob(x), reader.log_prob(x, text=reader.nothing.expand(3, -1, -1)))
    assert (reader.log_prob(x) - reader.log_prob(x, text=text)).abs().min() > 1e-4
    assert tiny(num_classes=0).log_prob(x).shape == (3,)


@torch.no_grad()
@pytest.mark.parametrize("rule", [sharpen, extrapolate])
@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_guidance_token_by_token(weight: float, rule: Rule) -> None:
    # Pixels for codes and no shallow blocks: what is decoded is what the deep block draws, but for rounding.
    model = tiny(code="patch", shallow_layers=(), levels=256)
    label = torch.tensor([0, 1])
    drawn = model.sample(label, guidance=weight, rule=rule, method="sequential", denoise=False, generator=generator(3))
    z = torch.randn(2, 4, 4, generator=generator(3)).double()

    def at(x: Tensor, chosen: Tensor, j: int) -> tuple[Tensor, Tensor]:
        """Mean and scale of token `j`, read off the forward map at 0 and 1: z = (x - mu) / sigma."""
        ends = []
        for value in (0.0, 1.0):
            x[:, j] = value
            ends.append(model.flow(x[:, None], text=model._words(2, chosen, None)).z[:, 0, j])
        sigma = 1 / (ends[1] - ends[0])
        return -ends[0] * sigma, sigma

    x = torch.zeros_like(z)
    for j in range(4):
        mu, sigma = rule(at(x, label, j), at(x, torch.full_like(label, -1), j), weight)
        x[:, j] = mu + sigma * z[:, j]
    assert torch.equal(drawn, model.decode(x))


def test_tweedie_finds_the_mean_of_a_normal() -> None:
    # Without training the flow is N(0, I): the posterior mean under noise s is y (1 - s^2).
    model = LatentImageFlow(replace(CONFIG, noise_std=0.3)).double()
    y = torch.randn(3, 4, 2, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(model.denoised(y, torch.tensor([0, 1, -1])), y * (1 - 0.3**2), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("levels", [2, 5, 17, 255, 256])
def test_pixels_as_codes_lose_nothing(levels: int) -> None:
    model = tiny(code="patch", levels=levels)
    images = torch.arange(256).remainder(levels).view(16, 4, 4, 1)
    assert torch.equal(model.decode(model.codes(images)), images)
    frames = to_frames(torch.arange(levels).view(-1, 1, 1), levels).flatten()
    assert (frames[0], frames[-1]) == (0, 255)
    assert len(frames.unique()) == levels


def test_draws_what_it_has_learned(learned: LatentImageFlow) -> None:
    label = torch.tensor([0, 1]).repeat(25)
    for rule in (sharpen, extrapolate):
        drawn = learned.sample(label, guidance=1.0, rule=rule, generator=generator(1))
        assert drawn.shape == (50, 4, 4, 1)
        assert drawn.dtype == torch.int64
        assert 0 <= int(drawn.min()) and int(drawn.max()) <= 4
        # By chance half of them.
        assert share_right(drawn, label) > 0.9
        assert torch.equal(drawn, learned.sample(label, guidance=1.0, rule=rule, generator=generator(1)))
    assert learned.sample(count=3, generator=generator()).shape == (3, 4, 4, 1)


def test_learns_what_there_is_to_learn(learned: LatentImageFlow) -> None:
    test = halves(100, seed=2)
    given = learned.bits(test.images, test.labels, generator=generator())
    without = learned.bits(test.images, generator=generator())
    # One bit in sixteen pixels is in an image beside its class; no knowledge costs log2(5) = 2.3.
    assert 1 / 16 < given.mean < 1.6
    assert given.mean < without.mean < given.mean + 1 / 16 + 0.05
    assert without.tighter < without.mean


def test_draws_what_a_text_says() -> None:
    data = halves()
    config = replace(CONFIG, num_classes=0, text=SPEC)
    texts = captions(data.labels)
    model, found = train_images(data, halves(40, seed=1), config=config, fit=FIT, captions=texts, clock=Steps())
    assert math.isfinite(found.validation_bits)
    assert torch.equal(model.nothing if model.nothing is not None else torch.zeros(()), texts.nothing)
    label = torch.tensor([0, 1]).repeat(25)
    drawn = model.sample(text=texts.texts[label], guidance=1.0, generator=generator(1))
    assert share_right(drawn, label) > 0.9


@pytest.mark.parametrize("options", [{}, {"num_classes": 0, "text": SPEC}, {"num_classes": 0, "code": "patch"}])
@torch.no_grad()
def test_is_the_same_when_read_again(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(**options).float()
    model.pixel_std.fill_(0.7)
    again = load_images(save_images(tmp_path / "images.safetensors", model))
    assert isinstance(again, LatentImageFlow)
    assert again.config == model.config
    images = halves(4).images
    assert again.bits(images, generator=generator()) == model.bits(images, generator=generator())
    assert torch.equal(again.sample(count=2, generator=generator()), model.sample(count=2, generator=generator()))


def test_a_codec_that_is_there_is_taken_as_it_is(learned: LatentImageFlow) -> None:
    assert isinstance(learned.codec, LatentCodec)
    few = replace(FIT, minutes=0.01)
    model, _ = train_images(halves(), halves(40, seed=1), config=CONFIG, fit=few, codec=learned.codec, clock=Steps())
    images = halves(5).images
    assert torch.equal(model.codes(images), learned.codes(images))
    with pytest.raises(ValueError, match="the configuration needs"):
        other = replace(CONFIG, noise_std=0.5)
        train_images(halves(), halves(9), config=other, fit=few, codec=learned.codec, clock=Steps())


def test_mistakes_are_named() -> None:
    for options, message in (
        ({"patch_size": 3}, "multiples of the patch size 3, got images of 4x4x1"),
        ({"levels": 1}, "levels must be from 2 to 256, got 1"),
        ({"levels": 257}, "levels must be from 2 to 256, got 257"),
        ({"num_classes": -1}, "num_classes must not be negative"),
        ({"text": SPEC}, "on classes or on texts, not on both"),
        ({"noise_std": 0.0}, "noise_std must be above 0"),
        ({"shallow_layers": (1, 1)}, "even number of blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **options)
    model, plain = tiny(), tiny(num_classes=0)
    x = torch.zeros(2, 4, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="labels must be from 0 to 1, or -1 for none, got 0 to 2"):
        model.log_prob(x, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"label must be 2 int64, got torch.int64 of shape \(3,\)"):
        model.log_prob(x, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="this flow has no classes"):
        plain.log_prob(x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="this flow reads no text"):
        model.log_prob(x, text=torch.zeros(2, 2, 5))
    with pytest.raises(ValueError, match="give one of label, text and count"):
        model.sample(generator=generator())
    with pytest.raises(ValueError, match="guidance needs a condition"):
        model.sample(count=2, guidance=1.0, generator=generator())
    with pytest.raises(ValueError, match="no classes to sum over"):
        plain.marginal_log_prob(x)
    with pytest.raises(TypeError, match=r"images must hold whole numbers, got torch\.float32"):
        model.codes(torch.zeros(1, 4, 4, 1))
    with pytest.raises(ValueError, match="images of 5 levels hold 0 to 4, got 0 to 5"):
        model.codes(torch.tensor([0, 5] * 8).view(1, 4, 4, 1))
    data = halves(5)
    with pytest.raises(ValueError, match="and captions are of None: give those that it reads"):
        train_images(data, data, config=replace(CONFIG, num_classes=0, text=SPEC))
    with pytest.raises(ValueError, match="the flow reads None, and captions are of"):
        train_images(data, data, config=CONFIG, captions=captions(data.labels))
    with pytest.raises(ValueError, match=r"images must have shape \(8, 8, 1\), got \(4, 4, 1\)"):
        train_images(data, data, config=replace(CONFIG, shape=(8, 8, 1)))
    with pytest.raises(ValueError, match="a flow of pixels has neither codec nor captions"):
        train_images(data, data, config=ImageConfig(shape=(4, 4, 1), levels=5), captions=captions(data.labels))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="codec_share must be between 0 and 1"):
        FitConfig(codec_share=1.0)


@pytest.mark.slow
def test_digits_are_what_they_were_asked_to_be() -> None:
    splits = digits()
    config = LatentImageConfig(
        shape=(8, 8, 1),
        levels=17,
        num_classes=10,
        patch_size=2,
        pieces=1,
        latent_dim=3,
        codec_width=64,
        shallow_width=64,
        deep_width=96,
        deep_layers=3,
    )
    model, _ = train_images(splits.train, splits.validation, config=config, fit=FitConfig(minutes=0.75, look_seconds=4))
    label = torch.arange(10).repeat_interleave(20)
    train = splits.train.images.flatten(1).double()
    means = torch.stack([train[splits.train.labels == c].mean(0) for c in range(10)])
    for guidance, least in ((0.0, 0.75), (1.0, 0.85)):  # of real ones it recognizes nine of ten; by chance one
        drawn = model.sample(label, guidance=guidance, generator=generator())
        nearest = torch.cdist(drawn.flatten(1).double(), means).argmin(1)
        assert float((nearest == label).double().mean()) > least
        # Not the same ones over and over.
        assert len(drawn.flatten(1).unique(dim=0)) == 200
    bits = model.bits(splits.test.images, splits.test.labels, generator=generator())
    assert 1.8 < bits.mean < 2.6  # TarFlow, whose density is one of pixels, comes to 1.86
