"""Vectors are standardized without loss, and their density is one in their own units."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from builders import tiny_world, write_vectors

from worldflow.checkpoint import load, save
from worldflow.codec import CodecConfig, build_codec
from worldflow.data import Dataset
from worldflow.vector_codec import VectorCodec, vector_statistics


def made(numbers: int, *, latent_dim: int | None = None) -> VectorCodec:
    config = CodecConfig(kind="vector", frame_shape=(numbers,), latent_dim=latent_dim or numbers, noise_std=0.01)
    codec = build_codec(config)
    assert isinstance(codec, VectorCodec)
    return codec


@pytest.mark.parametrize("latent_dim", [1, 2, 6])
def test_standardizes_in_order_and_gives_the_vector_back(latent_dim: int) -> None:
    codec = made(6, latent_dim=latent_dim).double()
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(6, generator=generator, dtype=torch.float64)
    std = 0.1 + torch.rand(6, generator=generator, dtype=torch.float64)
    codec.set_statistics(mean, std)
    frames = torch.randn(2, 5, 6, generator=generator) * 3
    codes = codec.encode(frames, chunk=3)
    assert codes.shape == (2, 5, 6 // latent_dim, latent_dim)
    torch.testing.assert_close(codes.flatten(-2), (frames.double() - mean) / std)
    assert codec.config.grid == (1, 6 // latent_dim)
    back, is_finite = codec.decode_checked(codes, chunk=4)
    assert back.dtype == torch.float32 and bool(is_finite.all())
    torch.testing.assert_close(back, frames)
    codes[1, 2] = math.inf
    assert codec.decode_checked(codes)[1].logical_not().nonzero().tolist() == [[1, 2]]


def test_a_number_that_never_changed_keeps_its_unit() -> None:
    codec = made(3)
    codec.set_statistics(torch.tensor([0.0, 1e4, 3.0]), torch.tensor([2.0, 1e-3, 0.0]))
    torch.testing.assert_close(codec.std, torch.tensor([2.0, 1.0, 1.0]))  # 1e-3 is lost in the digits of 1e4
    torch.testing.assert_close(codec.encode(torch.tensor([[4.0, 1e4, 3.5]])), torch.tensor([[[2.0, 0.0, 0.5]]]))


def test_log_det_is_that_of_the_map() -> None:
    codec = made(4, latent_dim=2).double()
    codec.set_statistics(torch.randn(4).double(), torch.tensor([0.5, 2.0, 3.0, 0.1]).double())
    jacobian = torch.autograd.functional.jacobian(lambda o: codec.encode(o[None])[0].flatten(), torch.randn(4).double())
    assert isinstance(jacobian, torch.Tensor)
    assert codec.log_det == pytest.approx(float(jacobian.slogdet().logabsdet))


def test_density_in_units_of_the_vector_integrates_to_one() -> None:
    world = tiny_world(numbers=1, latent_dim=1, shallow=False, noise_std=0.5, dtype=torch.float64)
    assert isinstance(world.codec, VectorCodec)
    world.codec.set_statistics(torch.tensor([3.0]), torch.tensor([40.0]))
    noisy = torch.linspace(-1000, 1000, 1001, dtype=torch.float64)  # of vectors, in their own units
    x = ((noisy - 3) / 40)[:, None, None, None]
    first = torch.zeros(1, 1, 1, 1, dtype=torch.float64).expand(len(x), -1, -1, -1)
    log_prob = world.log_prob_latents(torch.cat((first, x), 1), torch.zeros(len(x), 1, 2)).frame[:, 0]
    integral = torch.trapezoid(world.in_units(log_prob).exp(), noisy)
    assert float(integral) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="only codes of vectors"):
        tiny_world().in_units(log_prob)


def test_statistics_are_those_of_the_training_episodes(tmp_path: Path) -> None:
    dataset = Dataset(write_vectors(tmp_path / "data", lengths=[3, 7, 5, 9]))
    frames = torch.cat([torch.from_numpy(dataset.episode(int(i)).frames) for i in dataset.episodes("train")]).double()
    mean, std = vector_statistics(dataset)
    torch.testing.assert_close(mean, frames.mean(0))
    torch.testing.assert_close(std, frames.std(0, correction=0))
    assert std[2] == 0


def test_statistics_travel_in_the_checkpoint(tmp_path: Path) -> None:
    world = tiny_world(numbers=6)
    frames = torch.randn(4, 6)
    torch.testing.assert_close(load(save(world, tmp_path / "run")).codes(frames), world.codes(frames), rtol=0, atol=0)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="must divide the 5 numbers"):
        CodecConfig(kind="vector", frame_shape=(5,), latent_dim=2)
    with pytest.raises(ValueError, match=r"must be \(number,\), got \(64, 64, 3\)"):
        CodecConfig(kind="vector")
    with pytest.raises(ValueError, match=r"must be \(row, column, channel\), got \(5,\)"):
        CodecConfig(frame_shape=(5,))
    codec = made(3)
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., 3\), got \(2, 4\)"):
        codec.encode(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"must be floating, got torch\.uint8"):
        codec.encode(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="std must be 3 finite numbers"):
        codec.set_statistics(torch.zeros(3), torch.tensor([1.0, math.nan, 1.0]))
