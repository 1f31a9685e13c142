"""Agreement of returns: ranks against hand counts, gaps and solved starts against made-up returns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldflow.agents.agreement import agreement, rank_correlation
from worldflow.agents.imagined_returns import PolicyReturns


def returns(name: str, real: list[list[float]], imagined: list[list[float]], strange: float = 0.0) -> PolicyReturns:
    real_, imagined_ = np.array(real), np.array(imagined)
    strangeness = np.full_like(real_, strange)
    return PolicyReturns(name=name, real=real_, imagined=imagined_, strangeness=strangeness, is_replayed=False)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3], [1, 3, 2], 0.5),  # 1 - 6 (0 + 1 + 1) / (3 (9 - 1))
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 0.5, 0.5, 2 and 0, 1, 2
    ],
)
def test_rank_correlations_that_are_known(a: list[float], b: list[float], expected: float) -> None:
    assert rank_correlation(np.array(a, float), np.array(b, float)) == pytest.approx(expected)


def test_ranks_of_nothing_but_ties_are_unknown_and_of_other_lengths_an_error() -> None:
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    with pytest.raises(ValueError, match="same length, 2 at least"):
        rank_correlation(np.ones(3), np.ones(2))


def test_gaps_are_imagined_less_real_and_the_term_can_turn_the_order() -> None:
    low = returns("low", [[1, 2], [1, 2]], [[1, 5], [1, 5]], strange=4.0)  # promises most, and is strange
    high = returns("high", [[2, 4], [2, 4]], [[2, 3], [2, 3]])
    found = agreement([low, high], np.array([0.0, 3.9]), weight=1.0)
    assert found.gap.mean.tolist() == [0.0, 1.0]  # of 3 and -1
    assert found.gap_size.mean.tolist() == [0.0, 2.0]
    assert found.gap.low.tolist() == found.gap.high.tolist() == [0.0, 1.0]  # both starts agree
    assert (found.rank.value, found.rank_penalized.value) == (-1.0, 1.0)
    assert found.solved.tolist() == [False, True]  # 3.9 is within a tenth of 4
    assert found.rank_unsolved is None  # one start is left
    plain = found.to_plain()
    assert plain["starts_solved_already"] == 1
    assert plain["policies"][0]["imagined_in_distribution"]["value"] == 1.0


def test_a_tenth_of_negative_returns_lies_below_them() -> None:
    pair = [returns("a", [[-10.0]] * 3, [[0.0]] * 3), returns("b", [[-20.0]] * 3, [[1.0]] * 3)]
    assert agreement(pair, np.array([-10.9, -11.1, -9.0])).solved.tolist() == [True, False, True]


def test_the_interval_of_ranks_is_over_starts() -> None:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(30, 6, 1)) + np.arange(6)[None, :, None]
    noisy = real + generator.normal(size=real.shape)
    found = agreement([returns(str(k), real[:, k].tolist(), noisy[:, k].tolist()) for k in range(6)], np.zeros(30))
    assert found.rank.low is not None and found.rank.high is not None
    assert 0.7 < found.rank.low <= found.rank.value <= found.rank.high


def test_one_policy_or_other_starts_cannot_be_compared() -> None:
    one = returns("one", [[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="at least 2 policies, got 1"):
        agreement([one], np.zeros(1))
    with pytest.raises(ValueError, match="same starts"):
        agreement([one, returns("two", [[1.0]] * 2, [[1.0]] * 2)], np.zeros(1))
