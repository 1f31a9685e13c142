"""The ensemble: a Gaussian's closed form, the mixture's, and a toy whose next state is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from worldflow.ensemble import Ensemble, EnsembleConfig, fit_ensemble

SMALL = EnsembleConfig(members=3, elites=2, layers=2, width=16, batch=64)


def test_mixture_is_that_of_the_elites_and_integrates_to_one() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(1, 2, SMALL).double()
    ensemble.elites = torch.tensor([0, 2])
    ensemble.change_mean.fill_(0.3)
    ensemble.change_std.fill_(0.7)
    state, action = torch.tensor([[0.5]]).double(), torch.tensor([[0.1, -0.2]]).double()
    mean, std = ensemble(state, action)
    assert mean.shape == (2, 1, 1)
    at = torch.linspace(-30, 30, 20_001).double()[:, None]
    for noise_std in (0.0, 0.4):
        found = ensemble.log_prob(state.expand(len(at), -1), action.expand(len(at), -1), at, noise_std=noise_std)
        wide = (std[:, 0].square() + noise_std**2).sqrt()
        normals = torch.distributions.Normal(mean[:, 0], wide).log_prob(at.T)
        torch.testing.assert_close(found, normals.logsumexp(0) - math.log(2))
        assert float(torch.trapezoid(found.exp(), at[:, 0])) == pytest.approx(1, abs=1e-6)


def test_members_of_a_batch_are_those_of_one_network_each() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(2, 1, SMALL).double()
    states, actions = torch.randn(3, 5, 2).double(), torch.randn(3, 5, 1).double()
    mean, log_variance = ensemble.scaled(states, actions)
    for k in range(3):
        x = torch.cat((states[k], actions[k]), -1)
        for i in range(3):
            x = x @ ensemble.weights[i][k] + ensemble.biases[i][k]
            x = x if i == 2 else x * x.sigmoid()
        torch.testing.assert_close(mean[k], x[:, :2])
    assert bool((log_variance < ensemble.most).all()) and bool((log_variance > ensemble.least).all())


def test_learns_a_linear_world_and_its_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2000, 2, generator=generator)
    actions = torch.randn(2000, 1, generator=generator)
    noise = torch.tensor([0.1, 0.4])
    following = 0.5 * states + actions + noise * torch.randn(2000, 2, generator=generator)
    ticks = iter(range(10**6))  # a clock that counts looks at it: as many steps on every machine
    config = replace(SMALL, learning_rate=1e-2)
    ensemble = fit_ensemble(states, actions, following, config=config, minutes=6, clock=lambda: next(ticks))
    assert len(ensemble.elites) == 2
    mean, std = ensemble(states[:200], actions[:200])
    assert float((mean - 0.5 * states[:200] - actions[:200]).detach().square().mean().sqrt()) < 0.1
    torch.testing.assert_close(std.detach().mean((0, 1)), noise, rtol=0.3, atol=0)


def test_futures_follow_their_actions_and_their_generator() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(2, 1, SMALL)
    states, actions = torch.randn(4, 2), torch.randn(4, 3, 1)
    one, two = (
        ensemble.imagine(states, actions, num_samples=5, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert one.shape == (5, 4, 3, 2)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    ensemble.elites = torch.tensor([1])
    with torch.no_grad():
        ensemble.most.fill_(-40.0)  # no spread: the mean, step after step
        ensemble.least.fill_(-50.0)
        future = ensemble.imagine(states, actions)[0]
        first, _ = ensemble(states, actions[:, 0])
        second, _ = ensemble(first[0], actions[:, 1])
    torch.testing.assert_close(future[:, 1], second[0], atol=1e-5, rtol=1e-5)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="elites must be 1 to 7 of the members, got 8"):
        EnsembleConfig(elites=8)
    with pytest.raises(ValueError, match="held_back must be in"):
        EnsembleConfig(held_back=0.0)
