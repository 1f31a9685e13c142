"""Jacobi sweeps give the sequential answer, row by row, whatever is committed and wherever they start."""

from __future__ import annotations

import pytest
import torch
from builders import randomize
from torch import Tensor

from worldflow.attention import KeyValue
from worldflow.autoregressive import AffineBlock
from worldflow.jacobi import invert, jacobi, sequential

TOKENS = 12


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(*, scale: float = 1.0) -> AffineBlock:
    made = AffineBlock(3, grid=(3, 4), width=32, layers=2, is_reversed=False, head_dim=16).double()
    randomize(made, scale=scale)
    return made


class Counting:
    """A conditional that remembers which slots it was asked for."""

    def __init__(self, made: AffineBlock) -> None:
        self.block = made
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x: Tensor, first: int, last: int, past: KeyValue | None) -> tuple[Tensor, Tensor, KeyValue]:
        assert (0 if past is None else past.num_slots) == first
        self.calls.append((first, last))
        return self.block.conditional()(x, first, last, past)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.2, 1.0])
@pytest.mark.parametrize("commit_at_least", [1, 4, 100])
def test_equals_sequential_whatever_is_committed(scale: float, commit_at_least: int) -> None:
    conditional, z = Counting(block(scale=scale)), noise(5, TOKENS, 3)
    answer = sequential(conditional, z)
    assert answer.sweeps == TOKENS == len(conditional.calls)
    conditional.calls.clear()
    found = jacobi(conditional, z, start=z, tolerance=1e-12, commit_at_least=commit_at_least)
    torch.testing.assert_close(found.x, answer.x, rtol=1e-9, atol=1e-9)
    assert found.sweeps == len(conditional.calls) <= TOKENS
    firsts = [first for first, _ in conditional.calls]
    assert firsts == [sweep // commit_at_least * commit_at_least for sweep in range(found.sweeps)]


@torch.no_grad()
def test_solves_the_equation_of_the_flow() -> None:
    made, z = block(), noise(2, TOKENS, 3)
    for solution in (sequential(made.conditional(), z), jacobi(made.conditional(), z, start=z, tolerance=1e-12)):
        torch.testing.assert_close(made(solution.x)[0], z, rtol=0, atol=1e-9)


@torch.no_grad()
def test_after_k_sweeps_k_tokens_are_exact() -> None:
    made, z = block(), noise(2, TOKENS, 3)
    answer = sequential(made.conditional(), z).x
    x = noise(2, TOKENS, 3, seed=5)
    for sweep in range(1, TOKENS + 1):
        mu, sigma, _ = made.conditional()(x, 0, TOKENS, None)
        x = mu + sigma * z
        torch.testing.assert_close(x[:, :sweep], answer[:, :sweep], rtol=1e-10, atol=1e-10)
    # A far start without luck needs them all.
    found = jacobi(made.conditional(), z, start=1e3 * noise(2, TOKENS, 3, seed=5), tolerance=0.0)
    assert found.sweeps == TOKENS
    torch.testing.assert_close(found.x, answer, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_better_start_saves_sweeps_only() -> None:
    made, z = block(scale=0.5), noise(3, TOKENS, 3)
    answer = sequential(made.conditional(), z).x
    cold = jacobi(made.conditional(), z, start=10 * noise(3, TOKENS, 3, seed=9), tolerance=1e-10)
    warm = jacobi(made.conditional(), z, start=answer + 1e-6, tolerance=1e-10)
    exact = jacobi(made.conditional(), z, start=answer, tolerance=1e-10)
    assert exact.sweeps == 1
    assert exact.sweeps < warm.sweeps < cold.sweeps
    for found in (cold, warm, exact):
        torch.testing.assert_close(found.x, answer, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_rows_do_not_know_each_other() -> None:
    made, z = block(scale=0.5), noise(4, TOKENS, 3)
    answer = sequential(made.conditional(), z).x
    # Rows 0 and 2 start at their answer and stop at once, 1 and 3 far away; a loose tolerance makes stopping visible.
    start = torch.where(torch.tensor([True, False, True, False])[:, None, None], answer + 1e-3, 10 * z)
    together = jacobi(made.conditional(), z, start=start, tolerance=3e-2)
    sweeps = []
    for row in range(4):
        alone = jacobi(made.conditional(), z[[row]], start=start[[row]], tolerance=3e-2)
        # The same arithmetic on other shapes: float64 rounding, far below the tolerance that shapes the answer.
        torch.testing.assert_close(together.x[[row]], alone.x, rtol=1e-10, atol=1e-10)
        sweeps.append(alone.sweeps)
    assert len(set(sweeps)) > 1
    assert together.sweeps == max(sweeps)
    assert (together.x - answer).abs().max() > 1e-9  # else stopping never mattered


def test_unknown_method() -> None:
    made, z = block(), noise(1, TOKENS, 3)
    with pytest.raises(ValueError, match="'jacobi' or 'sequential', got 'newton'"):
        invert(made.conditional(), z, start=z, method="newton")  # pyright: ignore[reportArgumentType]
