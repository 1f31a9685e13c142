"""Codecs: pixels survive the patch codec, the learned code keeps its shapes, statistics, weights and floor."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from builders import randomize, tiny_world
from torch import Tensor, nn

from worldflow.codec import CodecConfig, LatentCodec, PatchCodec, build_codec, to_float, to_uint8


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def learned(*, shape: tuple[int, int, int] = (13, 18, 3)) -> LatentCodec:
    codec = LatentCodec(CodecConfig(frame_shape=shape, patch_size=4, latent_dim=5, width=8, blocks=1))
    randomize(codec)
    return codec


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (13, 10), (4, 7)])
def test_patches_lose_nothing(size: tuple[int, int], channels: int) -> None:
    codec = build_codec(CodecConfig(kind="patch", frame_shape=(*size, channels), patch_size=4))
    assert isinstance(codec, PatchCodec)
    frames = pixels(2, 3, *size, channels)
    x = codec.encode(frames)
    grid = codec.config.grid
    assert grid == (-(-size[0] // 4), -(-size[1] // 4))
    assert x.shape == (2, 3, grid[0] * grid[1], 16 * channels)
    assert torch.equal(codec.decode(x), frames)
    # What is missing of the last cells repeats the edge.
    last = x.reshape(2, 3, *grid, 4, 4, channels)[:, :, -1, -1]
    edge = frames[:, :, -1, -1].float() / 127.5 - 1
    torch.testing.assert_close(last[:, :, -1, -1], edge)


def test_a_token_is_a_patch_ordered_row_column_channel() -> None:
    codec = build_codec(CodecConfig(kind="patch", frame_shape=(8, 12, 3), patch_size=4))
    frame = pixels(1, 8, 12, 3)
    x = codec.encode(frame)[0]
    patch = frame[0, 4:8, 8:12].float() / 127.5 - 1  # second row of patches, third column: token 5
    torch.testing.assert_close(x[5], patch.reshape(-1))


def test_all_pixel_values_survive_the_way_to_floats_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1)
    floats = to_float(frames)
    assert floats.shape == (1, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), frames)
    assert to_uint8(torch.tensor([[[-3.0, 3.0]]])).flatten().tolist() == [0, 255]


def test_learned_code_has_its_shapes_in_any_chunks() -> None:
    codec = learned().eval()
    frames = pixels(2, 3, 13, 18, 3)
    with torch.no_grad():
        x = codec.encode(frames)
        assert x.shape == (2, 3, 4 * 5, 5)
        assert codec.decode(x).shape == frames.shape
        # Convolutions over another number of frames: float32 rounding.
        torch.testing.assert_close(codec.encode(frames, chunk=2), x, rtol=1e-4, atol=1e-5)
        noisy = codec.decode(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), chunk=1)
    assert noisy.dtype == torch.uint8


def test_a_token_is_where_its_pixels_are() -> None:
    codec = learned(shape=(16, 24, 3)).double().eval()
    frames = to_float(pixels(1, 16, 24, 3)).double()
    plain = codec.encode_pixels(frames)
    frames[:, :, 13, 21] += 1.0  # fourth row of cells, sixth column
    moved = (codec.encode_pixels(frames) - plain).abs().sum(-1)[0].reshape(4, 6)
    # Statistics of the group norms reach everywhere; the cell itself moves most.
    assert int(moved.argmax()) == 3 * 6 + 5


def test_code_has_unit_variance_once_statistics_have_settled() -> None:
    codec = learned().train()
    frames = to_float(pixels(64, 13, 18, 3))
    padded = codec._pad(frames)
    with torch.no_grad():
        in_training = codec.encode_pixels(padded)
        for _ in range(200):  # (1 - 0.05)^200 = 3.5e-5 of the first statistics is left
            in_training = codec.encode_pixels(padded)
        codec.eval()
        x = codec.encode_pixels(padded)
    for code in (in_training, x):
        channels = code.flatten(0, 1)
        torch.testing.assert_close(channels.mean(0), torch.zeros(5), rtol=0, atol=1e-3)
        # Raw variances here are some 2e-3, to which the norm adds its 1e-5.
        torch.testing.assert_close(channels.std(0), torch.ones(5), rtol=0, atol=5e-3)


def test_loss_weighs_pixels_by_their_distance_from_the_mean_frame() -> None:
    codec = learned(shape=(8, 8, 3)).double().eval()
    frames = pixels(3, 8, 8, 3)
    floats = to_float(frames).double()
    mean = floats.mean(0)
    codec.set_mean_frame(mean.float(), 0.05)
    loss = codec.loss(frames[:, None], generator=torch.Generator().manual_seed(7))

    with torch.no_grad():
        x = codec.encode_pixels(floats)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).double()
        decoded = codec.decode_pixels(x + 0.3 * noise).numpy()
    o, m = floats.numpy(), codec.mean_frame.numpy()
    top = bottom = plain = 0.0
    for f in range(3):
        for row in range(8):
            for column in range(8):
                distance = np.mean([abs(o[f, c, row, column] - m[c, row, column]) for c in range(3)])
                weight = min(1 + distance / 0.05, 50.0)
                for c in range(3):
                    squared = (decoded[f, c, row, column] - o[f, c, row, column]) ** 2
                    top, bottom, plain = top + weight * squared, bottom + weight, plain + squared
    assert float(loss.total.detach()) == pytest.approx(top / bottom, rel=1e-6)
    assert float(loss.error) == pytest.approx(plain / o.size, rel=1e-6)
    assert float(loss.unevenness) == 0  # single frames do not move


def test_unevenness_is_the_second_difference_of_the_code() -> None:
    codec = learned(shape=(8, 8, 3)).double().eval()
    frames = pixels(2, 3, 8, 8, 3)
    plain, smooth = (codec.loss(frames, smoothness=s, generator=torch.Generator().manual_seed(7)) for s in (0.0, 0.25))
    with torch.no_grad():
        x = codec.encode(frames)
    bend = float((x[:, 2] - 2 * x[:, 1] + x[:, 0]).square().mean())
    assert float(smooth.unevenness) == pytest.approx(bend, rel=1e-6) and bend > 0.01
    assert float((smooth.total - plain.total).detach()) == pytest.approx(0.25 * bend, rel=1e-6)


def test_every_piece_of_a_frame_can_reach_every_token() -> None:
    codec = learned(shape=(8, 8, 1)).eval()
    frame = pixels(1, 8, 8, 1)
    changed = frame.clone()
    changed[0, :2, :2] = 255 - changed[0, :2, :2]
    assert ((codec.encode(frame) - codec.encode(changed)).abs().amax(-1) > 0).all()


def test_learns_to_decode_noisy_codes() -> None:
    codec = LatentCodec(CodecConfig(frame_shape=(8, 8, 1), patch_size=4, latent_dim=4, width=16, blocks=1))
    frames = (pixels(32, 2, 2, 1).repeat_interleave(4, 1).repeat_interleave(4, 2) > 127).to(torch.uint8) * 200
    mean = to_float(frames).mean(0)
    codec.set_mean_frame(mean, float((to_float(frames) - mean).abs().mean()))
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        loss = codec.loss(frames[:, None], generator=generator).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("kind", ["latent", "patch"])
def test_says_what_is_wrong_with_frames(kind: Literal["latent", "patch"]) -> None:
    codec = build_codec(CodecConfig(kind=kind, frame_shape=(8, 8, 3), patch_size=4, latent_dim=2, width=8))
    with pytest.raises(ValueError, match=r"frames must have shape \(..., 8, 8, 3\), got \(2, 3, 8, 8\)"):
        codec.encode(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"frames must be uint8, got torch.float32"):
        codec.encode(torch.zeros(2, 8, 8, 3))


def test_says_what_is_wrong_with_sizes() -> None:
    config = CodecConfig()
    assert config.grid == (4, 4) and config.token_dim == 16  # 64x64 frames to 16 tokens by default
    with pytest.raises(ValueError, match=r"patch_size must be a multiple of pieces, .* got 5 and 2"):
        replace(config, patch_size=5)
    assert replace(config, patch_size=5, pieces=1).grid == (13, 13)
    with pytest.raises(ValueError, match="noise_std must be above 0"):
        replace(config, noise_std=0.0)
    with pytest.raises(ValueError, match="'latent', 'patch' or 'vector', got 'vae'"):
        replace(config, kind="vae")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("noise_std", [0.05, 0.3])
def test_a_perfect_model_of_pure_noise_is_at_the_floor(noise_std: float) -> None:
    world = tiny_world(codec="latent", noise_std=noise_std, soft_clip=None, dtype=torch.float64)
    code = torch.tensor([0.4, -1.2, 2.0], dtype=torch.float64)
    with torch.no_grad():
        for block in [*world.flow.shallow, world.flow.drafter, world.flow.deep]:
            assert isinstance(block, nn.Module)
            last = block.proj_out
            assert isinstance(last, nn.Linear)
            last.weight.zero_()
            last.bias.zero_()
        assert world.flow.drafter is not None
        world.flow.drafter.carry.zero_()
        # The deep block says N(code, noise_std^2) for every token: softplus(a + ln(e - 1)) = noise_std.
        a = np.log(np.expm1(noise_std)) - np.log(np.e - 1)
        world.flow.deep.proj_out.bias.copy_(torch.cat((torch.full((3,), a, dtype=torch.float64), code)))
        eps = torch.randn(8, 6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        out = world.flow(code + noise_std * eps, torch.zeros(8, 6, 2, dtype=torch.float64))
    above = world.above_floor(out.log_prob)
    # For any draw the excess is that of its noise over the expected one; in the mean it is nothing.
    torch.testing.assert_close(above, 0.5 * (eps.square().mean((-2, -1)) - 1), rtol=0, atol=1e-12)
    assert abs(float(above.mean())) < 4 * 0.5 * np.sqrt(2 / eps.numel())
