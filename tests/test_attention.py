"""Positions, masks, norms and the two ways to attend, against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import randomize
from naive_flow import naive_rotate

from worldflow.attention import Band, Block, KeyValue, RMSNorm, RotaryPositions, Transformer, frame_mask, rotate


def test_rotary_positions_turn_consecutive_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    for head_dim in (16, 32, 64):
        positions = torch.tensor([[0, 0, 0], [1, 2, 3], [0.5, 3.3, 1000]], dtype=torch.float64)
        x = torch.randn(3, head_dim, generator=generator, dtype=torch.float64)
        turned = rotate(x, RotaryPositions(head_dim)(positions, dtype=torch.float64))
        expected = np.stack([naive_rotate(v, tuple(p)) for v, p in zip(x.numpy(), positions.tolist(), strict=True)])
        # The same float64 arithmetic; angles of a thousand radians keep 13 digits.
        torch.testing.assert_close(turned, torch.from_numpy(expected), rtol=1e-11, atol=1e-11)
        assert torch.equal(turned[0], x[0])


def test_released_head_splits_twelve_twelve_eight() -> None:
    table = RotaryPositions(64).frequencies
    k = torch.arange(12, dtype=torch.float64)
    torch.testing.assert_close(table[0, :12], 10000 ** (-2 * k / 24))
    torch.testing.assert_close(table[1, 12:24], 10000 ** (-2 * k / 24))
    torch.testing.assert_close(table[2, 24:], 10000 ** (-k[:8] / 8))
    assert (table != 0).sum(1).tolist() == [12, 12, 8]
    image = RotaryPositions(64, with_time=False).frequencies
    assert (image != 0).sum(1).tolist() == [16, 16, 0]
    torch.testing.assert_close(image[1, 16:], 10000 ** (-torch.arange(16, dtype=torch.float64) / 16))


def test_rotation_far_into_an_episode_is_exact_in_float32() -> None:
    rotary = RotaryPositions(16)
    far = torch.tensor([[0.0, 0.0, 123_457.0]], dtype=torch.float64)
    # Angles computed in float32 would be off by 123457 * 6e-8 = 7e-3; the result itself is rounded to 1e-7.
    found = rotary(far, dtype=torch.float32).to(torch.complex128)
    exact = rotary(far, dtype=torch.float64)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-7)
    for cast in (torch.float32, torch.bfloat16):
        assert torch.equal(RotaryPositions(16).to(cast)(far, dtype=torch.float64), exact)


def test_scores_depend_on_distance_only() -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotary = RotaryPositions(16)

    def score(first: tuple[float, float, float], second: tuple[float, float, float]) -> torch.Tensor:
        both = rotate(x, rotary(torch.tensor([first, second], dtype=torch.float64), dtype=torch.float64))
        return both[0] @ both[1]

    torch.testing.assert_close(score((0, 1, 2), (3, 0, 5)), score((2, 4, 12), (5, 3, 15)))
    assert (score((0, 1, 2), (3, 0, 5)) - score((0, 1, 2), (3, 0, 6))).abs() > 1e-3


def test_head_size_must_fit() -> None:
    with pytest.raises(ValueError, match="multiple of 16, got 24"):
        RotaryPositions(24)
    with pytest.raises(ValueError, match="width 40 must be a multiple of the head size 16"):
        Block(40, head_dim=16)


@pytest.mark.parametrize("is_causal_inside", [True, False])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("cached", [0, 2])
def test_frame_mask_equals_its_definition(is_causal_inside: bool, window: int, cached: int) -> None:
    frames, slots, seen = 4, 3, [0, 1, 7]
    mask = frame_mask(
        frames,
        slots,
        window=window,
        past_frames=torch.tensor(seen),
        cached_frames=cached,
        is_causal_inside=is_causal_inside,
    )
    mask = mask.expand(3, 1, -1, -1)
    assert mask.shape == (3, 1, frames * slots, (cached + frames) * slots)
    for row, past in enumerate(seen):
        for query in range(frames * slots):
            for key in range((cached + frames) * slots):
                q, k = query // slots, key // slots - cached
                visible = q - window < k <= q and k >= -past
                if k == q and is_causal_inside:
                    visible = visible and key % slots <= query % slots
                assert bool(mask[row, 0, query, key]) == visible


@pytest.mark.parametrize("is_causal_inside", [True, False])
@pytest.mark.parametrize(("frames", "window"), [(5, 3), (9, 3), (25, 6), (7, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_band_attends_as_its_mask_does(frames: int, window: int, is_causal_inside: bool, dtype: torch.dtype) -> None:
    slots = 3
    net = Transformer(32, 2, head_dim=16).to(dtype)
    randomize(net)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, frames * slots, 32, generator=generator, dtype=torch.float64).to(dtype)
    band = Band.of(frames, slots, window=window, is_causal_inside=is_causal_inside)
    assert band is not None
    outputs, gradients = [], []
    for mask in (band, frame_mask(frames, slots, window=window, is_causal_inside=is_causal_inside)):
        y = x.clone().requires_grad_()
        out, _ = net(y, None, mask=mask)
        out.square().sum().backward()
        assert y.grad is not None
        outputs.append(out.detach())
        gradients.append(y.grad)
    error = 1e-10 if dtype == torch.float64 else 0.05
    for found, expected in (outputs, gradients):
        torch.testing.assert_close(found / expected.std(), expected / expected.std(), rtol=error, atol=error)


def test_a_band_does_not_grow_with_the_square_of_the_frames_and_is_none_where_it_saves_nothing() -> None:
    def scores(frames: int) -> int:
        band = Band.of(frames, 2, window=4)
        assert band is not None
        return band.mask.numel()

    assert scores(300) == 10 * scores(30)
    assert Band.of(6, 2, window=4) is None and Band.of(50, 2, window=1) is None


def test_root_mean_square_norm() -> None:
    norm = RMSNorm(8).double()
    randomize(norm)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x / (x**2).mean(-1, keepdim=True).add(1e-6).sqrt() * (1 + norm.weight)
    torch.testing.assert_close(norm(x), expected)
    assert norm.float()(x.bfloat16()).dtype == torch.float32


def test_transformer_continues_from_a_cache() -> None:
    net = Transformer(32, 2, head_dim=16).double()
    randomize(net)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.stack([torch.arange(9), torch.zeros(9), torch.arange(9) % 3], dim=1)
    rotary = RotaryPositions(16)(positions, dtype=torch.float64)
    whole, _ = net(x, rotary)
    past, parts = None, []
    for first, last in ((0, 4), (4, 5), (5, 9)):
        mask = torch.ones(last - first, last, dtype=torch.bool).tril(first)[None, None]
        part, new = net(x[:, first:last], rotary[first:last], mask=mask, past=past)
        past = new if past is None else past.append(new)
        parts.append(part)
    # Other shapes, other order of summation: float64 rounding.
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-11, atol=1e-11)
    assert past is not None and past.num_slots == 9


def test_key_values_append_and_slice() -> None:
    keys = torch.arange(12.0).reshape(1, 1, 1, 6, 2)
    cache = KeyValue(keys=keys, values=-keys)
    back = cache.slots(0, 2).append(cache.slots(2))
    assert torch.equal(back.keys, cache.keys)
    assert torch.equal(back.values, cache.values)
    assert cache.slots(4).num_slots == 2


@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_in_bfloat16_is_the_same_in_training(is_masked: bool) -> None:
    # Training in bf16 on a CPU takes another road than scoring.
    net = Block(32, head_dim=16)
    randomize(net)
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    rotary = RotaryPositions(16)(torch.zeros(6, 3), dtype=torch.float32)
    mask = frame_mask(3, 2, window=2) if is_masked else None
    exact, _ = net(x, rotary, mask, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained, _ = net(x, rotary, mask, None)
        with torch.no_grad():
            scored, _ = net(x, rotary, mask, None)
    # bf16 keeps 8 bits: 4e-3 a rounding, a handful of them in a row.
    for found in (trained, scored):
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()
