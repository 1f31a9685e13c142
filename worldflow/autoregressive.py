"""One autoregressive affine map over the tokens of a frame, and the affine arithmetic all blocks share.

With `a, mu` the outputs of a causal transformer at slot `j`, which has seen the tokens before `j`:

    sigma = softplus(a + ln(e - 1)),   z_j = (x_j - mu_j) / sigma_j,   log|dz/dx| = -sum_j ln sigma_j

so that `a = 0` is the identity. The inputs of the sequence are `[start, x_1 .. x_{N-1}]`: slot `j` carries position `j`
and parametrizes token `j`.

Reference: Zhai et al., 2024, "Normalizing Flows are Capable Generative Models" (TARFlow), arXiv 2412.06329;
Gu et al., 2025, STARFlow, arXiv 2506.06276 (start token, softplus scale, soft clip).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.attention import KeyValue, RotaryPositions, Transformer
from worldflow.jacobi import Method, Solution, invert

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

__all__ = ["LOG_2PI", "AffineBlock", "affine_parameters", "cell_positions", "standard_normal_log_prob"]

LOG_2PI = math.log(2 * math.pi)
SOFTPLUS_SHIFT = math.log(math.e - 1)


def affine_parameters(
    output: Float[Tensor, "... two_latent"], *, soft_clip: float | None
) -> tuple[Float32[Tensor, "... latent"], Float32[Tensor, "... latent"]]:
    """Split a network's output into mean and scale, in float32 at least.

    Args:
        output: `a` and `mu`, side by side.
        soft_clip: `s` of `s tanh(. / s)`, applied to both; None leaves them.

    Returns:
        `(mu, sigma)`.
    """
    output = output if output.dtype == torch.float64 else output.float()
    if soft_clip is not None:
        output = soft_clip * torch.tanh(output / soft_clip)
    a, mu = output.chunk(2, dim=-1)
    return mu, F.softplus(a + SOFTPLUS_SHIFT)


def standard_normal_log_prob(z: Float[Tensor, "... token latent"]) -> Float[Tensor, "..."]:
    """`log N(z; 0, I)` in nats, summed over tokens and latent channels."""
    return -0.5 * (z.square() + LOG_2PI).sum((-2, -1))


def cell_positions(grid: tuple[int, int], *, base: int) -> Float[Tensor, "token 3"]:
    """`(row, column, time = 0)` of every cell of a grid, row by row, scaled so that the grid is `base` cells wide.

    `row / sqrt(h w) * base`: positions agree between grid sizes (`base` is the side of the training grid).
    """
    rows, columns = grid
    scale = base / math.sqrt(rows * columns)
    lines = (torch.arange(n, dtype=torch.float64) * scale for n in (rows, columns))
    row, column = torch.meshgrid(*lines, indexing="ij")
    return torch.stack((row, column, torch.zeros_like(row)), dim=-1).flatten(0, 1)


class AffineBlock(nn.Module):
    """A frame-local (shallow) block: every frame is one sequence.

    Args:
        latent_dim: Channels of a token.
        grid: Rows and columns of tokens.
        width: Width of its transformer.
        layers: Depth of its transformer.
        is_reversed: Run through the tokens last to first. Positions stay with the sequence slot.
        soft_clip: Bound of both outputs, or None.
        head_dim: Channels of one attention head.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        grid: tuple[int, int],
        width: int,
        layers: int,
        is_reversed: bool,
        soft_clip: float | None = 4.0,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        self.is_reversed = is_reversed
        self.soft_clip = soft_clip
        self.num_tokens = grid[0] * grid[1]
        self.start = nn.Parameter(torch.randn(latent_dim) * 0.02)
        self.proj_in = nn.Linear(latent_dim, width)
        self.transformer = Transformer(width, layers, head_dim=head_dim)
        self.proj_out = nn.Linear(width, 2 * latent_dim)
        nn.init.zeros_(self.proj_out.weight)  # the identity map, to begin with
        nn.init.zeros_(self.proj_out.bias)
        self.rotary = RotaryPositions(head_dim)
        self.register_buffer("positions", cell_positions(grid, base=grid[0]), persistent=False)
        self.positions: Tensor

    def _ordered(self, x: Tensor) -> Tensor:
        return x.flip(-2) if self.is_reversed else x

    def _conditional(
        self, x: Float[Tensor, "batch token latent"], first: int, last: int, past: KeyValue | None
    ) -> tuple[Tensor, Tensor, KeyValue]:
        """Mean and scale of tokens `first .. last - 1` of the sequence in its own order."""
        start = self.start.to(x.dtype).expand(len(x), 1, -1)
        inputs = torch.cat((start, x[:, :-1]), dim=1)[:, first:last]
        rotary = self.rotary(self.positions[first:last], dtype=x.dtype)
        mask = None
        if past is not None:
            mask = torch.ones(last - first, last, dtype=torch.bool, device=x.device).tril(first)[None, None]
        hidden, new = self.transformer(self.proj_in(inputs), rotary, mask=mask, past=past)
        mu, sigma = affine_parameters(self.proj_out(hidden), soft_clip=self.soft_clip)
        return mu, sigma, new

    def forward(
        self, x: Float[Tensor, "batch token latent"]
    ) -> tuple[Float[Tensor, "batch token latent"], Float[Tensor, "batch token"]]:
        """`z` and the log-determinant of every token in nats, both in the frame's own token order."""
        ordered = self._ordered(x)
        mu, sigma, _ = self._conditional(ordered, 0, self.num_tokens, None)
        z = (ordered - mu) / sigma
        log_det = -sigma.log().sum(-1)
        return self._ordered(z), log_det.flip(-1) if self.is_reversed else log_det

    def inverse(
        self, z: Float[Tensor, "batch token latent"], *, method: Method = "jacobi", tolerance: float = 1e-5
    ) -> Solution:
        """The tokens that `forward` maps to `z`, found by the named method; Jacobi starts from `z`."""
        ordered = self._ordered(z)
        solution = invert(self._conditional, ordered, start=ordered, method=method, tolerance=tolerance)
        return Solution(self._ordered(solution.x), solution.sweeps)
