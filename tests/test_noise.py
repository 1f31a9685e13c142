"""Colored noise is standard normal at every time, and as correlated over time as its formula says."""

from __future__ import annotations

import math

import pytest
import torch

from worldflow.agents.noise import colored_normal
from worldflow.agents.proposals import Categorical
from worldflow.randomness import normal
from worldflow.types import ActionSpec

DRAWS = 20_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("exponent", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_numbers_are_as_correlated_as_their_spectrum_says(exponent: float, horizon: int) -> None:
    x = colored_normal((1, DRAWS, horizon, 1), exponent, seeded(0))[0, :, :, 0]
    # The power spectrum by its definition, over a period of twice the horizon.
    length = 2 * horizon
    power = [max(min(k, length - k), 1) ** -exponent for k in range(length)]
    expected = torch.tensor(
        [
            [sum(p * math.cos(2 * math.pi * k * (i - j) / length) for k, p in enumerate(power)) for j in range(horizon)]
            for i in range(horizon)
        ],
        dtype=torch.float64,
    ) / sum(power)
    # A product of two standard normal numbers spreads by sqrt(1 + r^2) <= sqrt(2): 5 sigma.
    assert torch.allclose(x.T @ x / DRAWS, expected, rtol=0, atol=5 * math.sqrt(2 / DRAWS))
    assert torch.allclose(x.mean(dim=0), torch.zeros(horizon, dtype=torch.float64), atol=5 / math.sqrt(DRAWS))
    assert torch.allclose(expected.diagonal(), torch.ones(horizon, dtype=torch.float64))


def test_white_noise_is_what_it_always_was() -> None:
    shape = (2, 3, 4, 5)
    assert torch.equal(colored_normal(shape, 0.0, seeded(0)), normal(shape, seeded(0), dtype=torch.float64))


def test_rows_have_their_own_generators() -> None:
    together = colored_normal((2, 3, 4, 1), 2.0, [seeded(0), seeded(1)])
    assert torch.equal(together[1:], colored_normal((1, 3, 4, 1), 2.0, [seeded(1)]))


def test_colored_choices_stay_and_are_as_frequent_as_before() -> None:
    action = ActionSpec(shape=(), dtype="int64", choices=(3,), first=(1,))
    proposal = Categorical.around(torch.full((1, 6, 1), 2.0, dtype=torch.float64), action, (1, 6))
    drawn = {e: proposal.sample(DRAWS, seeded(0), exponent=e)[0, :, :, 0] for e in (0.0, 2.0)}
    for choices in drawn.values():
        for choice, p in ((1, 1 / 6), (2, 2 / 3), (3, 1 / 6)):
            share = (choices == choice).double().mean(dim=0)
            assert bool(((share - p).abs() < 5 * math.sqrt(p * (1 - p) / DRAWS)).all())  # at every time, 5 sigma
    stays = {e: float((c[:, 1:] == c[:, :-1]).double().mean()) for e, c in drawn.items()}
    assert stays[0.0] == pytest.approx(4 / 9 + 2 / 36, abs=0.01)
    assert stays[2.0] > 0.65
