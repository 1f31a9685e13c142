"""The shallow block: an autoregressive affine map with an exact log-determinant of every token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import randomize
from torch import Tensor

from worldflow.autoregressive import AffineBlock, affine_parameters, cell_positions, standard_normal_log_prob
from worldflow.jacobi import Method


def block(*, is_reversed: bool, soft_clip: float | None = 4.0) -> AffineBlock:
    made = AffineBlock(
        2, grid=(2, 3), width=32, layers=2, is_reversed=is_reversed, soft_clip=soft_clip, head_dim=16
    ).double()
    randomize(made)
    return made


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("soft_clip", [4.0, None])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_log_det_of_every_token(is_reversed: bool, soft_clip: float | None) -> None:
    flow, x = block(is_reversed=is_reversed, soft_clip=soft_clip), noise(1, 6, 2)
    _, log_det = flow(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v)[0], x)
    assert isinstance(jacobian, Tensor)
    matrix = jacobian[0, :, :, 0].permute(0, 2, 1, 3)  # (token of z, token of x, latent of z, latent of x)
    for i in range(6):
        for j in range(6):
            later = j < i if is_reversed else j > i
            if later:
                assert not matrix[i, j].any()
        # Triangular: a token's part is its own block's determinant; float64.
        torch.testing.assert_close(matrix[i, i].det().log(), log_det[0, i], rtol=0, atol=1e-12)
    assert matrix[0, 5].any() == is_reversed
    assert matrix[5, 0].any() != is_reversed


@torch.no_grad()
@pytest.mark.parametrize("method", ["sequential", "jacobi"])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_inverse(is_reversed: bool, method: Method) -> None:
    flow, x = block(is_reversed=is_reversed), noise(3, 6, 2)
    z, _ = flow(x)
    assert (z - x).abs().max() > 0.5
    solution = flow.inverse(z, method=method, tolerance=1e-13)
    # float64 through six tokens of a map that stretches at most a hundredfold.
    torch.testing.assert_close(solution.x, x, rtol=0, atol=1e-10)
    assert solution.sweeps <= 6


def test_starts_as_the_identity() -> None:
    flow = AffineBlock(2, grid=(2, 2), width=32, layers=1, is_reversed=True, head_dim=16)
    x = noise(2, 4, 2).float()
    z, log_det = flow(x)
    # softplus(ln(e - 1)) is 1 up to one rounding of float32.
    torch.testing.assert_close(z, x, rtol=1e-6, atol=1e-6)
    assert log_det.abs().max() < 1e-6


def test_affine_parameters() -> None:
    output = noise(5, 4) * 5
    a, mu = output.numpy()[:, :2], output.numpy()[:, 2:]
    found_mu, found_sigma = affine_parameters(output, soft_clip=None)
    np.testing.assert_allclose(found_mu, mu)
    np.testing.assert_allclose(found_sigma, np.log1p(np.exp(a + 0.541324854612918)), rtol=1e-12)
    found_mu, found_sigma = affine_parameters(output, soft_clip=4.0)
    np.testing.assert_allclose(found_mu, 4 * np.tanh(mu / 4))
    np.testing.assert_allclose(found_sigma, np.log1p(np.exp(4 * np.tanh(a / 4) + 0.541324854612918)), rtol=1e-12)
    assert affine_parameters(output.bfloat16(), soft_clip=4.0)[1].dtype == torch.float32


def test_standard_normal_log_prob() -> None:
    z = noise(3, 4, 2)
    expected = torch.distributions.MultivariateNormal(torch.zeros(8).double(), torch.eye(8).double())
    torch.testing.assert_close(standard_normal_log_prob(z), expected.log_prob(z.flatten(1)))


def test_cell_positions_keep_the_width_of_the_training_grid() -> None:
    assert cell_positions((2, 2), base=2).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    wide = cell_positions((2, 3), base=4)
    expected = [[r / math.sqrt(6) * 4, c / math.sqrt(6) * 4, 0] for r in range(2) for c in range(3)]
    np.testing.assert_allclose(wide, expected, rtol=1e-14)
