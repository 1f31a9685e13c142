"""Statistics against naive code and closed forms; parts of any length give the same numbers; noise is shared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import random_episode, tiny_world

from worldflow.elbo import elbo
from worldflow.score import score
from worldflow.score_types import EpisodeScores, columns
from worldflow.statistics import GAIN, WINDOW, EpisodeScorer, normality, stored_pixel_std
from worldflow.types import Episode
from worldflow.world import WorldModel

LENGTH = 11


def scored(world: WorldModel, episode: Episode, lengths: tuple[int, ...], *, num_draws: int = 1) -> EpisodeScores:
    """Scores of an episode that comes in parts."""
    scorer = EpisodeScorer(world, num_draws=num_draws, pixel_std=stored_pixel_std(world))
    scorer.start(episode.frames[0])
    found, at = [], 0
    for length in lengths:
        part = slice(at, at + length)
        rest = (episode.actions[part], episode.rewards[part], episode.terminated[part])
        found.append(scorer.advance(episode.frames[at + 1 : at + length + 1], *rest))
        at += length
    return EpisodeScores.cat(found)


@pytest.mark.parametrize("kind", ["plain", "shown", "text"])
def test_parts_of_any_length_give_the_numbers_of_the_whole(kind: str) -> None:
    world = tiny_world(
        shown=kind == "shown", text_dim=5 if kind == "text" else 0, denoiser_layers=1, dtype=torch.float64
    )
    episode = random_episode(world, LENGTH)
    whole = scored(world, episode, (LENGTH,), num_draws=2)
    parts = scored(world, episode, (1, 1, 4, 2, 3), num_draws=2)
    assert {"pixel_bits", "score_norm", "context_ratio", "typicality"} < set(columns(whole))
    for name, expected in columns(whole).items():
        # float64 sums in another order, of log-densities up to a thousand
        np.testing.assert_allclose(columns(parts)[name], expected, rtol=1e-7, atol=1e-8, err_msg=name)
    for name, expected in whole.standard_error.items():
        np.testing.assert_allclose(parts.standard_error[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)


@torch.no_grad()
def test_the_numbers_are_what_they_are_called() -> None:
    # With next to no noise its draw does not matter, and everything can be had from the clean codes.
    world = tiny_world(shallow=False, noise_std=1e-7, denoiser_layers=1, dtype=torch.float64)
    episode = random_episode(world, LENGTH)
    (scores,) = score(world, [episode])
    frames, actions = torch.from_numpy(episode.frames)[None], torch.from_numpy(episode.actions)[None]
    x = world.codes(frames)
    short = [world.log_prob_latents(x[:, t : t + 2], actions[:, t : t + 1]).frame[0, 0].item() for t in range(LENGTH)]
    close: Any = {"rtol": 1e-3, "atol": 1e-2}  # noise of 1e-7 times a gradient of a few hundred, and room
    np.testing.assert_allclose(scores.context_ratio, scores.frame - short, **close)
    assert scores.context_ratio[0] == pytest.approx(0, abs=1e-6) and np.abs(scores.context_ratio[1:]).max() > 0.1

    naive = [(x[0, t + 1] - x[0, t]).square().mean().sqrt().item() for t in range(LENGTH)]
    assert scores.change is not None
    np.testing.assert_allclose(scores.change, naive, rtol=1e-6)
    frames = episode.frames.copy()
    frames[4] = frames[3]
    (again,) = score(world, [replace(episode, frames=frames)])
    assert again.change is not None and again.change[3] < 1e-9 < 1e-2 < again.change[2]

    more, less = (world.log_prob_latents(x, gain * actions).frame[0] for gain in (1 + GAIN, 1 - GAIN))
    assert scores.action_gain is not None and np.abs(scores.action_gain).max() > 0.1
    np.testing.assert_allclose(scores.action_gain, more - less, **close)
    assert (
        score(tiny_world(action="discrete"), [random_episode(tiny_world(action="discrete"), 2)])[0].action_gain is None
    )

    assert scores.token is not None and scores.score_norm is not None
    np.testing.assert_allclose(scores.token.sum(1), -scores.frame, rtol=1e-9)

    dim = world.config.flow.frame_dim
    excess = (scores.above_floor - scores.entropy) * dim  # NLL - entropy = (|z|^2 - d) / 2
    np.testing.assert_allclose(scores.z_variance, excess / np.sqrt(dim / 2), rtol=1e-6, atol=1e-7)
    naive = [
        scores.z_variance[max(0, t - WINDOW + 1) : t + 1].sum() / np.sqrt(min(t + 1, WINDOW)) for t in range(LENGTH)
    ]
    np.testing.assert_allclose(scores.typicality, naive, rtol=1e-9, atol=1e-12)

    assert world.denoiser is not None
    norms = [world.denoiser(x[:, t : t + 2])[0, 1].square().mean().sqrt().item() for t in range(LENGTH)]
    np.testing.assert_allclose(scores.score_norm, norms, rtol=1e-4)


def test_pixel_bits_are_the_bound() -> None:
    world = tiny_world(noise_std=1e-7, dtype=torch.float64)
    episode = random_episode(world, 5)
    (scores,) = score(world, [episode])
    frames, actions = torch.from_numpy(episode.frames)[None], torch.from_numpy(episode.actions)[None]
    expected = elbo(world, frames, actions, draws=1).bits_per_dim[0].numpy()
    assert scores.pixel_bits is not None
    np.testing.assert_allclose(scores.pixel_bits, expected, rtol=1e-4)
    (without,) = score(world, [episode], pixels=False)
    assert without.pixel_bits is None
    np.testing.assert_array_equal(without.frame, scores.frame)
    (bare,) = score(tiny_world(contexts=0), [episode])
    assert bare.pixel_bits is None and bare.token is None and bare.score_norm is None


def test_draws_are_shared_and_their_spread_is_told() -> None:
    world = tiny_world(dtype=torch.float64)
    episode = random_episode(world, 4)
    one, two = (score(world, [episode], num_draws=draws)[0] for draws in (1, 2))
    assert one.standard_error == {} and (one.num_draws, two.num_draws) == (1, 2)
    assert set(two.standard_error) == set(columns(two)) - {"log_prob", "reconstruction", "change"}
    for name, error in two.standard_error.items():
        # The first of two draws is the only one of one; of two values, the error of the mean is half their distance.
        np.testing.assert_allclose(error, np.abs(columns(two)[name] - columns(one)[name]), rtol=1e-7, atol=1e-9)
    assert two.standard_error["frame"].min() > 1e-3


def test_white_noise_is_normal_and_other_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_001, 6, 4, generator=generator, dtype=torch.float64)
    found = normality(z[1:], z[:1], grid=(2, 3))
    values = np.stack([v.numpy() for v in found.values()])
    # 20,000 values each: means within 4 / sqrt(20,000); variances are estimated with 4 to 10 times more spread.
    np.testing.assert_allclose(values.mean(1), 0, atol=0.03)
    np.testing.assert_allclose(values.var(1), 1, atol=0.12)
    correlation = np.corrcoef(values)
    np.testing.assert_allclose(correlation, np.eye(6), atol=0.05)

    def moved(name: str, odd: torch.Tensor) -> float:
        return float(normality(odd[1:], odd[:1], grid=(2, 3))[name].mean())

    assert moved("z_mean", z + 0.5) == pytest.approx(0.5 * np.sqrt(24), rel=0.02)
    assert moved("z_variance", 2 * z) == pytest.approx(3 * np.sqrt(12), rel=0.02)
    exponential = -torch.rand(z.shape, generator=generator, dtype=torch.float64).log() - 1  # skewness 2, kurtosis 6
    assert moved("z_skewness", exponential) == pytest.approx(2 * np.sqrt(24 / 6), rel=0.1)
    assert moved("z_kurtosis", exponential) == pytest.approx(6 * np.sqrt(24 / 24), rel=0.2)
    same = z[:, :1].expand(-1, 6, -1)  # all tokens alike: 7 pairs of 4 channels, each of mean 1
    assert moved("z_spatial", same) == pytest.approx(np.sqrt(28), rel=0.05)
    assert moved("z_temporal", z[:1].expand(30, -1, -1)) == pytest.approx(float(z[0].square().mean()) * np.sqrt(24))


def test_scores_of_a_damaged_world_are_refused() -> None:
    world = tiny_world()
    with torch.no_grad():
        world.reward.out.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"scores of episode 0 are not finite \(reward\)"):
        score(world, [random_episode(world, 3)])


def test_a_scorer_wants_the_first_frame_first() -> None:
    world = tiny_world()
    episode = random_episode(world, 2)
    with pytest.raises(RuntimeError, match="start"):
        EpisodeScorer(world).advance(episode.frames[1:], episode.actions, episode.rewards, episode.terminated)
