"""Degraded frames: half of them, as little as promised, and from the given generator alone."""

from __future__ import annotations

import math

import torch

from worldflow.degrade import NOISE_STD, degraded


def test_only_the_first_half_is_touched_and_every_clip_to_its_own_degree() -> None:
    pixels = torch.rand(9, 3, 3, 18, 17, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = torch.get_rng_state()
    result = degraded(pixels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert result.shape == pixels.shape
    assert torch.equal(result[4:], pixels[4:])
    change = (result[:4] - pixels[:4]).square().mean((1, 2, 3, 4)).sqrt()
    assert change.min() > 1e-3
    assert len(set(change.tolist())) == 4
    assert torch.equal(result, degraded(pixels, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(degraded(pixels[:1], generator=torch.Generator()), pixels[:1])


def test_noise_is_fresh_in_every_frame_and_at_most_27_decibels() -> None:
    flat = torch.zeros(400, 2, 1, 16, 16)  # blur leaves it alone
    noise = degraded(flat, generator=torch.Generator().manual_seed(2))[:200]
    std = noise.square().mean((1, 2, 3, 4)).sqrt()
    # White noise of 0.6 and blobs of at most 0.8 add up to at most 1; 512 numbers know their std to a few percent.
    assert NOISE_STD * 0.8 < std.max() < NOISE_STD * 1.15
    assert std.min() < 0.1 * NOISE_STD
    assert 20 * math.log10(2 / NOISE_STD) > 26.9
    first, second = noise[:, 0].flatten(1), noise[:, 1].flatten(1)
    assert torch.nn.functional.cosine_similarity(first, second).mean().abs() < 0.05  # 200 clips, std about 0.01


def test_blur_is_at_most_binomial() -> None:
    pixels = torch.zeros(2, 1, 1, 9, 9)
    pixels[:, :, :, 4, 4] = 1
    # The generator draws the blur first: where it is b, the middle keeps 1 - b + b / 4.
    blur = torch.rand(2, 1, 1, generator=torch.Generator().manual_seed(3))[0].item()
    mean = torch.stack([degraded(pixels, generator=torch.Generator().manual_seed(3))[0, 0, 0]])
    draws = torch.Generator().manual_seed(3)
    strength = torch.rand(2, 1, 1, generator=draws)[1].item()
    white = torch.randn(1, 1, 9, 9, generator=draws)
    blobs = torch.randn(1, 1, 3, 3, generator=draws)
    noise = 0.6 * white + 0.8 * torch.nn.functional.interpolate(blobs, size=(9, 9), mode="bilinear")
    clean = mean - NOISE_STD * strength * noise[0]
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = blur * torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    expected[4, 4] += 1 - blur
    torch.testing.assert_close(clean[0], expected, atol=1e-6, rtol=0)
