"""Rows with their own generator draw the same whatever the batch; the global generator stays where it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldflow.randomness import normal, uniform


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_row_depends_on_its_own_generator_only(draw) -> None:  # noqa: ANN001
    together: Tensor = draw((3, 2, 4), generators(1, 2, 3))
    assert torch.equal(draw((1, 2, 4), generators(2))[0], together[1])
    assert torch.equal(draw((2, 2, 4), generators(3, 1)), together[[2, 0]])
    assert len({float(row[0, 0]) for row in together}) == 3
    mine = generators(2)
    first, second = draw((1, 2, 4), mine), draw((1, 2, 4), mine)
    assert torch.equal(first[0], together[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_the_global_generator_is_untouched(draw) -> None:  # noqa: ANN001
    before = torch.get_rng_state()
    draw((2, 3), generators(1, 2))
    draw((2, 3), generators(1)[0])
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        draw((2, 3), None)
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", [normal, uniform])
def test_precision_changes_the_type_and_not_the_numbers(draw) -> None:  # noqa: ANN001
    single, double = draw((4, 2), generators(1)[0]), draw((4, 2), generators(1)[0], dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


def test_distributions() -> None:
    count = 100_000
    z, chance = normal((count,), generators(0)[0]), uniform((count,), generators(0)[0])
    # Each within 4.4 standard errors: a false alarm in 1e5.
    assert abs(float(z.mean())) < 4.4 / count**0.5
    assert abs(float(z.var()) - 1) < 4.4 * (2 / count) ** 0.5
    assert abs(float(chance.mean()) - 0.5) < 4.4 / (12 * count) ** 0.5
    assert 0 <= chance.min() and chance.max() < 1


def test_a_generator_for_every_row_or_one_for_all() -> None:
    with pytest.raises(ValueError, match="expected one generator or 3, one per row of the batch, got 2"):
        normal((3, 1), generators(1, 2))
