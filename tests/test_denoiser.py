"""The denoiser sees the frames that it should, and the two ways to take noise off agree with closed forms.

That its arithmetic is the reference's is in `test_released`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import randomize

from worldflow.denoiser import Denoiser, DenoiserConfig, tweedie

SIZES: dict[str, Any] = {"latent_dim": 3, "grid": (1, 2), "width": 32, "head_dim": 16}


def tiny(*, layers: int = 1, **options: Any) -> Denoiser:
    sizes: dict[str, Any] = SIZES | {"layers": layers} | options
    made = Denoiser(DenoiserConfig(**sizes)).double()
    randomize(made)
    return made.eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("window", "lookahead"), [(2, 1), (2, 0), (0, 0), (1, 1), (4, 2)])
def test_a_layer_sees_its_frames_and_no_others(window: int, lookahead: int) -> None:
    made, x = tiny(window=window, lookahead=lookahead), noise(1, 8, 2, 3).requires_grad_()
    score = made(x)
    for t in range(8):
        (gradient,) = torch.autograd.grad(score[0, t].square().sum(), x, retain_graph=True)
        seen = (gradient[0].abs().sum((-2, -1)) > 1e-12).nonzero().flatten().tolist()
        # A token's own value always matters: it is in the residual stream.
        expected = {k for k in range(8) if t + lookahead - window <= k <= t + lookahead} | {t}
        assert set(seen) == expected
    (gradient,) = torch.autograd.grad(score[0, 3, 0].square().sum(), x)
    assert gradient[0, 3, 1].any()  # inside a frame tokens see each other, later ones too


def test_streaming_knows_nothing_of_later_frames() -> None:
    made, x = tiny(layers=3, window=3, lookahead=0), noise(1, 6, 2, 3)
    changed = x.clone()
    changed[:, 4:] = 7.0
    with torch.no_grad():
        assert torch.equal(made(x)[:, :4], made(changed)[:, :4])
        assert not torch.equal(made(x)[:, 4:], made(changed)[:, 4:])


def test_text_is_seen_from_everywhere() -> None:
    made, x, text = tiny(text_dim=4, window=1, lookahead=0), noise(1, 5, 2, 3), noise(1, 3, 4, seed=2)
    text.requires_grad_()
    score = made(x, text=text)
    for t in range(5):
        (gradient,) = torch.autograd.grad(score[0, t].square().sum(), text, retain_graph=True)
        assert (gradient[0].abs().sum(-1) > 1e-12).all()
    with pytest.raises(ValueError, match=r"this denoiser needs text \(its text_dim is 4\)"):
        made(x)
    with pytest.raises(ValueError, match=r"this denoiser reads no text"):
        tiny()(x, text=text)


def test_other_grids_share_parameters() -> None:
    made = tiny()
    other = made.on_grid((2, 2))
    assert made.on_grid((1, 2)) is made
    assert all(a is b for a, b in zip(made.parameters(), other.parameters(), strict=True))
    assert other(noise(1, 2, 4, 3)).shape == (1, 2, 4, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, time, 2, 3\), got \(1, 2, 4, 3\)"):
        made(noise(1, 2, 4, 3))


def test_a_new_one_changes_nothing_and_every_parameter_learns() -> None:
    fresh = Denoiser(DenoiserConfig(**SIZES, layers=2, text_dim=4))
    x, text = noise(2, 3, 2, 3).float(), noise(2, 3, 4, seed=2).float()
    assert torch.equal(fresh.denoise(x, text=text), x)
    randomize(fresh)
    fresh(x, text=text).square().sum().backward()
    assert not [name for name, p in fresh.named_parameters() if p.grad is None or not p.grad.any()]


def test_tweedie_gives_the_posterior_mean_of_a_gaussian() -> None:
    # x ~ N(m, s^2), x~ = x + n e: the posterior mean is (x~ s^2 + m n^2) / (s^2 + n^2).
    s, n, m, x = 0.7, 0.3, 1.2, noise(1000)
    score = -(x - m) / (s**2 + n**2)
    torch.testing.assert_close(tweedie(x, score, noise_std=n), (x * s**2 + m * n**2) / (s**2 + n**2))


def test_flow_score_matching_finds_the_score() -> None:
    # Independent Gaussian tokens: the least-squares fit of `noise_std * grad NLL` is linear, and found by few steps.
    torch.manual_seed(0)
    n, spread = 0.3, torch.tensor([0.5, 1.0, 2.0])
    made = Denoiser(DenoiserConfig(**SIZES, layers=1, step=n))
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(400):
        x = spread * torch.randn(32, 2, 2, 3) + n * torch.randn(32, 2, 2, 3)
        target = n * x / (spread**2 + n**2)
        loss = (made(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean = spread * torch.randn(256, 2, 2, 3)
    x = clean + n * torch.randn(256, 2, 2, 3)
    with torch.no_grad():
        error = (made.denoise(x) - clean).square().mean((0, 1, 2))
    best = spread**2 * n**2 / (spread**2 + n**2)  # of the posterior mean
    # The best possible error is known; a fit by few steps comes within a tenth of it, and the noise is well above it.
    assert (error < 1.1 * best + 0.002).all()
    assert (error[:1] < 0.85 * n**2).all()


def test_says_what_is_wrong_with_sizes() -> None:
    for name, value in (("layers", 0), ("window", -1), ("step", 0.0)):
        wrong: dict[str, Any] = SIZES | {name: value}
        with pytest.raises(ValueError, match=f"{name} must"):
            DenoiserConfig(**wrong)
