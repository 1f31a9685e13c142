"""Codes of single images are learned, and a decoder is fitted to more noise without a change of the code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_latent_images import Steps, generator, halves
from torch import Tensor

from worldflow.codec import CodecConfig, LatentCodec
from worldflow.image_codec import CodecFit, finetune_decoder, fit_codec
from worldflow.latent_images import to_frames

CONFIG = CodecConfig(frame_shape=(4, 4, 1), patch_size=2, pieces=1, latent_dim=2, width=16, blocks=1, noise_std=0.05)
FIT = CodecFit(minutes=0.06, batch_size=32, learning_rate=5e-3)


def frames(count: int = 200, *, seed: int = 0) -> Tensor:
    return to_frames(halves(count, seed=seed).images, 5)


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return fit_codec(frames(), config=CONFIG, fit=FIT, clock=Steps())


@torch.no_grad()
def error(codec: LatentCodec, noise_std: float) -> float:
    """Mean squared error of gray levels through codes with this much noise."""
    shown = frames(100, seed=5)
    x = codec.encode(shown)
    x = x + noise_std * torch.randn(x.shape, generator=generator())
    return float((codec.decode(x).double() - shown).square().mean())


@torch.no_grad()
def test_a_code_is_learned(codec: LatentCodec) -> None:
    shown = frames(100, seed=5)
    assert error(codec, 0.05) < 0.1 * float((shown.double() - shown.double().mean(0)).square().mean())
    x = codec.encode(frames())
    # The statistics are those of the final encoder over all these images.
    torch.testing.assert_close(x.mean((0, 1)), torch.zeros(2), rtol=0, atol=1e-2)
    torch.testing.assert_close(x.flatten(0, 1).std(0), torch.ones(2), rtol=0, atol=2e-2)
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_a_decoder_is_fitted_to_more_noise(codec: LatentCodec) -> None:
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    tuned = finetune_decoder(codec, frames(), noise_std=0.8, fit=FIT, clock=Steps())
    assert tuned.config == replace(CONFIG, noise_std=0.8)
    assert torch.equal(tuned.encode(frames()), codec.encode(frames()))
    assert error(tuned, 0.8) < 0.9 * error(codec, 0.8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="a codec of kind 'patch' learns nothing"):
        fit_codec(frames(), config=replace(CONFIG, kind="patch"))
    with pytest.raises(
        ValueError, match=r"images must have shape \(image, 8, 8, 1\), at least one, got \(3, 4, 4, 1\)"
    ):
        fit_codec(frames(3), config=replace(CONFIG, frame_shape=(8, 8, 1)))
    with pytest.raises(ValueError, match="minutes must be above 0"):
        CodecFit(minutes=0)
    with pytest.raises(ValueError, match="noise_std must be above 0"):
        finetune_decoder(LatentCodec(CONFIG), frames(3), noise_std=0.0)
