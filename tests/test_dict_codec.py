"""A picture's code with the standardized numbers of vectors behind it, and nothing lost of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_frames, tiny_spec, tiny_world

from worldflow.checkpoint import load, save
from worldflow.codec import CodecConfig, build_codec
from worldflow.dict_codec import VECTOR_NOISE, DictCodec
from worldflow.frames import Frames
from worldflow.types import PartsSpec
from worldflow.vector_codec import VectorCodec

BESIDE = {"speed": 3, "place": 2}


def made(latent_dim: int = 3, *, noise_std: float = 0.05) -> DictCodec:
    spec = tiny_spec(size=16, beside=BESIDE)
    config = CodecConfig(
        frame_shape=(16, 16, 3),
        patch_size=8,
        latent_dim=latent_dim,
        width=8,
        blocks=1,
        noise_std=noise_std,
        parts=spec.parts,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = build_codec(config)
    assert isinstance(codec, DictCodec)
    codec.set_statistics(torch.arange(5.0), torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]))
    return codec.eval()


def some_frames(*batch: int) -> Any:
    return random_frames(tiny_spec(size=16, beside=BESIDE), batch, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("latent_dim", "tokens"), [(2, 7), (3, 6), (5, 5), (8, 5)])
def test_tokens_of_the_vector_follow_those_of_the_picture(latent_dim: int, tokens: int) -> None:
    codec, frames = made(latent_dim), some_frames(2, 3)
    codes = codec.encode(frames, chunk=4)
    assert codes.shape == (2, 3, tokens, latent_dim) and codec.config.num_tokens == tokens
    torch.testing.assert_close(codes[..., :4, :], codec.picture.encode(frames["pixels"]))
    # By name: place, then speed; stretched so that noise of 0.05 is 0.01 of a standard deviation.
    mean, std = torch.arange(5.0), torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    numbers = (torch.cat((frames["place"], frames["speed"]), -1) - mean) / std * 0.05 / VECTOR_NOISE
    flat = codes[..., 4:, :].flatten(-2)
    torch.testing.assert_close(flat[..., :5], numbers)
    assert not flat[..., 5:].any()


def test_gives_vectors_back_and_decodes_pictures_as_their_codec_does() -> None:
    codec, frames = made(), some_frames(2, 3)
    codes = codec.encode(frames)
    codes[..., -1, -1] = 9.0  # what fills a token up is not read
    back, is_finite = codec.decode_checked(codes, chunk=2)
    assert bool(is_finite.all()) and is_finite.shape == back.shape == (2, 3)
    assert torch.equal(back["pixels"], codec.picture.decode(codes[..., :4, :]))
    assert torch.equal(codec.decode(codes)["pixels"], back["pixels"])
    for name in BESIDE:
        assert back[name].dtype == torch.float32
        torch.testing.assert_close(back[name], frames[name])
    codes[0, 1, 4, 0] = math.nan
    codes[1, 2, 0, 0] = math.inf
    assert codec.decode_checked(codes)[1].logical_not().nonzero().tolist() == [[0, 1], [1, 2]]


def test_what_is_shown_has_gradients_through_both_parts() -> None:
    codec = made()
    x = codec.encode(some_frames(2)).detach().requires_grad_()
    frames, codes = codec.shown(x)
    with torch.no_grad():
        again = codec.encode(codec.decode(x))
    assert torch.equal(frames["pixels"], codec.decode(x.detach())["pixels"])
    torch.testing.assert_close(codes, again, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(codes[:, 4:].sum(), x)
    expected = torch.zeros_like(x)
    expected[:, 4:].flatten(1)[:, :5] = 1.0  # a copy of the vector's codes, without what fills up
    assert torch.equal(gradient[:, :4], expected[:, :4])
    torch.testing.assert_close(gradient[:, 4:].flatten(1), torch.tensor([[1.0] * 5 + [0.0]] * 2))


def test_statistics_and_pasts_travel_in_the_checkpoint(tmp_path: Path) -> None:
    world = tiny_world(beside=BESIDE)
    again = load(save(world, tmp_path / "run"))
    assert again.config == world.config
    frames = some_frames(2, 3)
    torch.testing.assert_close(again.codes(frames), world.codes(frames), rtol=0, atol=0)
    assert world.contexts is not None and again.contexts is not None
    left: Any = world.contexts.frames
    right: Any = again.contexts.frames
    assert isinstance(right, Frames)
    assert all(torch.equal(left[name], right[name]) for name in BESIDE)


def test_density_of_the_vector_integrates_to_one_given_the_picture() -> None:
    # One number beside a picture: p(picture, vector) is integrated over the vector's noisy code, with the picture's
    # tokens held. Without shallow blocks what is left is the picture's density, which the first tokens say alone.
    world = tiny_world(beside={"x": 1}, shallow=False, latent_dim=2, dtype=torch.float64)
    line = torch.linspace(-20, 20, 801, dtype=torch.float64)
    frames = random_frames(world.config.data, (1, 2), generator=torch.Generator().manual_seed(2))
    x = world.codes(frames).expand(len(line), -1, -1, -1).clone()
    x[:, 1, 4, 0] = line
    out = world.flow(x, torch.zeros(len(line), 2, 2, dtype=torch.float64))
    z, log_det = out.z[:, 1], out.log_det[:, 1]
    picture = (-0.5 * (z**2 + math.log(2 * math.pi)).sum(-1) + log_det)[:, :4].sum(-1)
    torch.testing.assert_close(picture, picture[:1].expand(len(line)))
    integral = torch.trapezoid((out.log_prob[:, 1] - picture).exp(), line)
    assert float(integral.detach()) == pytest.approx(1, abs=1e-6)


def test_says_what_is_wrong() -> None:
    codec, frames = made(), some_frames(2)
    with pytest.raises(TypeError, match=r"must be a dictionary of .*, got Tensor"):
        codec.encode(frames["pixels"])
    with pytest.raises(ValueError, match=r"must have the shapes .* got"):
        codec.encode(Frames({"pixels": frames["pixels"], "place": frames["place"]}))
    with pytest.raises(ValueError, match="mean must be 5 finite numbers"):
        codec.set_statistics(torch.zeros(4), torch.ones(5))
    with pytest.raises(ValueError, match="leave out parts"):
        CodecConfig(
            kind="vector", frame_shape=(4,), latent_dim=2, parts=PartsSpec(picture="a", vectors=("b",), numbers=(1,))
        )


def test_data_codec_and_flow_must_agree_on_what_stands_beside() -> None:
    config = tiny_world(beside=BESIDE).config
    with pytest.raises(ValueError, match="the flow takes 4 numbers"):
        replace(config, flow=replace(config.flow, vector_dim=4))
    with pytest.raises(ValueError, match="the data hold None"):
        replace(config, data=tiny_spec())


def test_a_constant_number_costs_as_little_as_the_others() -> None:
    codec = made(noise_std=0.1)
    codec.set_statistics(torch.zeros(5), torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]))
    assert isinstance(codec.vector, VectorCodec)
    np.testing.assert_allclose(codec.vector.std, VECTOR_NOISE / 0.1)
