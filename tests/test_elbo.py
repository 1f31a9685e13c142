"""The bound on pixels is one: below the true probability of a frame, which numbers can give for the smallest frames."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from builders import randomize, tiny_spec, tiny_world

from worldflow.codec import Codec, CodecConfig
from worldflow.elbo import elbo, log_mass, pixel_std
from worldflow.flow import FlowConfig
from worldflow.heads import RewardSupport
from worldflow.world import WorldConfig, WorldModel


def one_pixel_world(noise_std: float) -> WorldModel:
    """Frames of one gray pixel, whose code is its value."""
    data = replace(tiny_spec(size=1, channels=1), frame_shape=(1, 1, 1))
    codec = CodecConfig(kind="patch", frame_shape=(1, 1, 1), patch_size=1, pieces=1, noise_std=noise_std)
    flow = FlowConfig(
        latent_dim=1,
        grid=(1, 1),
        action_dim=2,
        shallow_layers=(),
        deep_layers=1,
        deep_width=16,
        draft_layers=1,
        draft_width=16,
        head_dim=16,
        window=2,
    )
    world = WorldModel(WorldConfig(data=data, codec=codec, flow=flow, reward=RewardSupport()))
    randomize(world, seed=3, scale=0.5)
    return world.double().eval()


def test_log_mass_is_a_distribution_and_exact_in_the_tails() -> None:
    levels = torch.arange(256, dtype=torch.float64)
    for mean in (-3.0, 0.2, 100.4, 254.9, 300.0):
        for std in (0.3, 4.0, 60.0):
            found = log_mass(levels, torch.full_like(levels, mean), std)
            assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    # Forty standard deviations out, where a difference of distribution functions would be zero: the tail's expansion.
    far = log_mass(torch.tensor([90.0]).double(), torch.tensor([50.0]).double(), 1.0)
    z = 39.5
    expected = -0.5 * z**2 - math.log(z) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / z**2 + 3 / z**4)
    assert float(far) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_the_bound_lies_below_the_true_probability() -> None:
    world, std = one_pixel_world(noise_std=0.05), 6.0
    levels = torch.arange(256, dtype=torch.uint8)
    frames = torch.stack((torch.full_like(levels, 140), levels), dim=1)[..., None, None, None]
    actions = torch.full((256, 1, 2), 0.4)
    # The true probability of the second frame, by the trapezoidal rule over its code.
    generator = torch.Generator().manual_seed(0)
    first = world.with_noise(world.codes(frames[:1, :1]), generator=generator)
    line = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    x = torch.cat((first.expand(len(line), 1, 1, 1), line[:, None, None, None]), dim=1)
    density = world.log_prob_latents(x, actions[:1].expand(len(line), 1, 2)).frame[:, 0].exp()
    assert float(torch.trapezoid(density, line)) == pytest.approx(1.0, abs=1e-6)
    mean = 127.5 * (line + 1)
    true = torch.stack(
        [torch.trapezoid(density * log_mass(torch.full_like(mean, k), mean, std).exp(), line) for k in range(256)]
    ).log()
    assert float(true.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    # The same first code for all of them; many draws of the second.
    codes = world.codes(frames)
    dim_entropy = math.log(0.05) + 0.5 * math.log(2 * math.pi) + 0.5
    terms = []
    for _ in range(400):
        x = world.with_noise(codes, generator=generator)
        x[:, 0] = first[:, 0]
        latent = world.log_prob_latents(x, actions).frame[:, 0]
        terms.append(latent + log_mass(levels.double(), 127.5 * (x[:, 1, 0, 0] + 1), std) + dim_entropy)
    bound, error = torch.stack(terms).mean(0), torch.stack(terms).std(0) / len(terms) ** 0.5
    assert (bound < true + 5 * error).all()
    # It is a good one where the encoder's width suits the pixel's: 0.05 is 6.4 gray levels, std is 6.
    assert (true - bound).median() < 0.5


@torch.no_grad()
def test_elbo_puts_the_parts_together() -> None:
    world = tiny_world(codec="patch", latent_dim=3)
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    actions = torch.zeros(2, 3, 2)
    found = elbo(world, frames, actions, std=30.0, draws=2, generator=torch.Generator().manual_seed(2))
    assert found.total.shape == (2, 3)
    generator = torch.Generator().manual_seed(2)
    codes = world.codes(frames)
    assert isinstance(world.codec, Codec)
    latents, pixels = torch.zeros(2, 3), torch.zeros(2, 3)
    for _ in range(2):
        x = world.with_noise(codes, generator=generator)
        latents += world.log_prob_latents(x, actions).frame / 2
        pixel = 127.5 * (world.codec.decode_pixels(x[:, 1:].flatten(0, 1)) + 1)
        recorded = frames[:, 1:].flatten(0, 1).movedim(-1, 1).double()
        normal = torch.distributions.Normal(pixel.double(), 30.0)
        upper = torch.where(recorded == 255, torch.inf, recorded + 0.5)
        lower = torch.where(recorded == 0, -torch.inf, recorded - 0.5)
        mass = (normal.cdf(upper) - normal.cdf(lower)).clamp(min=1e-300).log()
        pixels += mass.sum((1, 2, 3)).view(2, 3).float() / 2
    torch.testing.assert_close(found.latents, latents, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.pixels, pixels, rtol=1e-3, atol=1e-2)
    floor = world.noise_floor * world.config.flow.frame_dim
    assert found.entropy == pytest.approx(floor)
    torch.testing.assert_close(found.bits_per_dim, -found.total / (16 * 16 * 3 * math.log(2)))


@torch.no_grad()
def test_pixel_std_is_that_of_the_noise_where_the_code_is_the_pixel() -> None:
    world = tiny_world(codec="patch", latent_dim=3, noise_std=0.1)
    frames = torch.randint(0, 256, (40, 16, 16, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    # 30,720 numbers: the standard deviation is known to half a percent, seven of which are 4 sigma and more.
    assert pixel_std(world, frames, generator=torch.Generator().manual_seed(0)) == pytest.approx(12.75, rel=0.03)


def test_says_what_is_wrong() -> None:
    world = tiny_world(contexts=0)
    frames, actions = torch.zeros(1, 3, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="stores no pasts to tell std by"):
        elbo(world, frames, actions)
    with pytest.raises(ValueError, match="std must be above 0 gray levels, got 0"):
        elbo(world, frames, actions, std=0)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        elbo(world, frames, actions, std=1.0, draws=0)
