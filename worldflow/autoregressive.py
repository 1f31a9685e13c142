"""One autoregressive affine map over the tokens of a frame, and the affine arithmetic all blocks share.

With `a, mu` the outputs of a causal transformer at slot `j`, which has seen the tokens before `j`:

    sigma = softplus(a + ln(e - 1)),   z_j = (x_j - mu_j) / sigma_j,   log|dz/dx| = -sum_j ln sigma_j

so that `a = 0` is the identity. The inputs of the sequence are `[start, x_1 .. x_{N-1}]`: slot `j` carries position `j`
and parametrizes token `j`.

TARFlow's blocks (`layout="tarflow"`) differ: `sigma = exp(a)`; no start token, the first token keeps its value
(`a = mu = 0`); learned positions that belong to the token that is read; a class embedding at every slot; no last norm.

Reference: Zhai et al., 2024, "Normalizing Flows are Capable Generative Models" (TARFlow), arXiv 2412.06329;
Gu et al., 2025, STARFlow, arXiv 2506.06276 (start token, softplus scale, soft clip).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.attention import KeyValue, RotaryPositions, Transformer
from worldflow.guidance import Rule, extrapolate, guided
from worldflow.jacobi import AffineConditional, Method, Solution, invert
from worldflow.vector_tokens import num_vector_tokens, real_numbers

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int64

__all__ = [
    "LOG_2PI",
    "AffineBlock",
    "affine_parameters",
    "cell_positions",
    "standard_normal_log_prob",
    "word_positions",
]

LOG_2PI = math.log(2 * math.pi)
SOFTPLUS_SHIFT = math.log(math.e - 1)

Scale = Literal["softplus", "exp"]
"""How `sigma` follows from `a`; both give 1 for 0."""


def affine_parameters(
    output: Float[Tensor, "... two_latent"],
    *,
    soft_clip: float | None,
    scale: Scale = "softplus",
    is_real: Bool[Tensor, "... latent"] | None = None,
) -> tuple[Float32[Tensor, "... latent"], Float32[Tensor, "... latent"]]:
    """Split a network's output into mean and scale, in float32 at least.

    Args:
        output: `a` and `mu`, side by side.
        soft_clip: `s` of `s tanh(. / s)`, applied to both; None leaves them.
        scale: How `sigma` follows from `a`.
        is_real: Numbers that are mapped at all; the others stay as they are. None: all are.

    Returns:
        `(mu, sigma)`.
    """
    output = output if output.dtype == torch.float64 else output.float()
    if soft_clip is not None:
        output = soft_clip * torch.tanh(output / soft_clip)
    a, mu = output.chunk(2, dim=-1)
    sigma = a.exp() if scale == "exp" else F.softplus(a + SOFTPLUS_SHIFT)
    if is_real is not None:
        mu, sigma = torch.where(is_real, mu, 0.0), torch.where(is_real, sigma, 1.0)
    return mu, sigma


def standard_normal_log_prob(z: Float[Tensor, "... token latent"], *, num_filled: int = 0) -> Float[Tensor, "..."]:
    """`log N(z; 0, I)` in nats, summed over tokens and latent channels but for `num_filled` of them that are zero."""
    log_prob = -0.5 * (z.square() + LOG_2PI).sum((-2, -1))
    return log_prob + 0.5 * LOG_2PI * num_filled if num_filled else log_prob


def cell_positions(grid: tuple[int, int], *, base: int, below: int = 0) -> Float[Tensor, "token 3"]:
    """`(row, column, time = 0)` of every cell of a grid, row by row, scaled so that the grid is `base` cells wide.

    `row / sqrt(h w) * base`: positions agree between grid sizes (`base` is the side of the training grid). Behind them
    come `below` more cells, side by side in a row of their own below the grid.
    """
    rows, columns = grid
    scale = base / math.sqrt(rows * columns)
    lines = (torch.arange(n, dtype=torch.float64, device="cpu") * scale for n in (rows, columns))
    row, column = torch.meshgrid(*lines, indexing="ij")
    cells = torch.stack((row, column, torch.zeros_like(row)), dim=-1).flatten(0, 1)
    if not below:
        return cells
    beneath = torch.zeros(below, 3, dtype=torch.float64, device="cpu")
    beneath[:, 0], beneath[:, 1] = rows * scale, torch.arange(below, dtype=torch.float64, device="cpu") * scale
    return torch.cat((cells, beneath))


def word_positions(words: int, *, base: float, device: torch.device) -> Float[Tensor, "word 3"]:
    """Positions of a text: word `m` of `n` is at `m / n * base` on the third axis, whatever follows it in time."""
    positions = torch.zeros(words, 3, dtype=torch.float64, device=device)
    positions[:, 2] = torch.arange(words, dtype=torch.float64, device=device) / words * base
    return positions


class AffineBlock(nn.Module):
    """A frame-local (shallow) block: every frame is one sequence.

    Args:
        latent_dim: Channels of a token.
        grid: Rows and columns of tokens.
        width: Width of its transformer.
        layers: Depth of its transformer.
        is_reversed: Run through the tokens last to first. Rotary positions stay with the sequence slot, learned ones
            with the token.
        soft_clip: Bound of both outputs, or None.
        head_dim: Channels of one attention head.
        position_base: Side of the grid that positions are measured on; by default the rows of this one.
        has_time_axis: False gives the third axis's angles to rows and columns: released images without text.
        layout: Whose block it is, see above.
        num_classes: Classes to condition on, for `layout="tarflow"`; 0 for none.
        dropout: Of its transformer, in training.
        vector_dim: Numbers of a vector beside the picture, in tokens behind the grid's (`worldflow.vector_tokens`).
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
        position_base: int | None = None,
        has_time_axis: bool = True,
        layout: Literal["starflow", "tarflow"] = "starflow",
        num_classes: int = 0,
        dropout: float = 0.0,
        vector_dim: int = 0,
    ) -> None:
        super().__init__()
        self.is_reversed = is_reversed
        self.soft_clip = soft_clip
        below = num_vector_tokens(vector_dim, latent_dim)
        self.num_tokens = grid[0] * grid[1] + below
        self.is_tarflow = layout == "tarflow"
        self.proj_in = nn.Linear(latent_dim, width)
        self.transformer = Transformer(
            width, layers, head_dim=head_dim, has_final_norm=not self.is_tarflow, dropout=dropout
        )
        self.proj_out = nn.Linear(width, 2 * latent_dim)
        nn.init.zeros_(self.proj_out.weight)  # the identity map, to begin with
        nn.init.zeros_(self.proj_out.bias)
        if self.is_tarflow:
            self.token_positions = nn.Parameter(torch.randn(self.num_tokens, width) * 0.01)
            self.classes = nn.Parameter(torch.randn(num_classes, width) * 0.01) if num_classes else None
        else:
            self.start = nn.Parameter(torch.randn(latent_dim) * 0.02)
            self.rotary = RotaryPositions(head_dim, with_time=has_time_axis)
            positions = cell_positions(grid, base=position_base or grid[0], below=below)
            self.register_buffer("positions", positions, persistent=False)
            self.positions: Tensor
        is_real = real_numbers(grid, latent_dim, vector_dim)
        self.register_buffer("is_real", is_real if is_real is None else self._ordered(is_real), persistent=False)
        self.is_real: Tensor | None

    def _ordered(self, x: Tensor) -> Tensor:
        return x.flip(-2) if self.is_reversed else x

    def _embedded(self, x: Tensor, first: int, last: int, label: Int64[Tensor, " batch"] | None) -> Tensor:
        """Slots `first .. last - 1`: slot `j` reads token `j - 1`, slot 0 the start token, or nothing."""
        if not self.is_tarflow:
            start = self.start.to(x.dtype).expand(len(x), 1, -1)
            return self.proj_in(torch.cat((start, x[:, :-1]), dim=1)[:, first:last])
        slots = F.pad(self.proj_in(x[:, :-1]) + self._ordered(self.token_positions)[:-1], (0, 0, 1, 0))[:, first:last]
        if self.classes is None:
            return slots
        # Without a class: the mean of all of them.
        chosen = self.classes.mean(0).expand(len(x), -1) if label is None else self._classes_of(label)
        return slots + chosen[:, None]

    def _classes_of(self, label: Int64[Tensor, " batch"]) -> Tensor:
        assert self.classes is not None
        chosen = self.classes[label.clamp(min=0)]
        return torch.where((label < 0)[:, None], self.classes.mean(0), chosen)

    def conditional(self, label: Int64[Tensor, " batch"] | None = None) -> AffineConditional:
        """The map in the order in which the block runs through tokens, as samplers want it.

        Args:
            label: Class of each row, -1 for none; None where the block has no classes.
        """

        def parameters(
            x: Float[Tensor, "batch token latent"], first: int, last: int, past: KeyValue | None
        ) -> tuple[Tensor, Tensor, KeyValue]:
            slots = self._embedded(x, first, last, label)
            rotary = None if self.is_tarflow else self.rotary(self.positions[first:last], dtype=x.dtype)
            mask = None
            if past is not None or self.is_tarflow:
                mask = torch.ones(last - first, last, dtype=torch.bool, device=x.device).tril(first)
                if self.is_tarflow:  # slot 0 has read nothing: it is there so that slots are counted alike, and unseen
                    mask[max(1 - first, 0) :, 0] = False
                mask = mask[None, None]
            hidden, new = self.transformer(slots, rotary, mask=mask, past=past)
            output = self.proj_out(hidden)
            if self.is_tarflow and first == 0:
                output = torch.cat((torch.zeros_like(output[:, :1]), output[:, 1:]), dim=1)
            scale = "exp" if self.is_tarflow else "softplus"
            is_real = None if self.is_real is None else self.is_real[first:last]
            mu, sigma = affine_parameters(output, soft_clip=self.soft_clip, scale=scale, is_real=is_real)
            return mu, sigma, new

        return parameters

    def forward(
        self, x: Float[Tensor, "batch token latent"], *, label: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch token latent"], Float[Tensor, "batch token"]]:
        """`z` and the log-determinant of every token in nats, both in the frame's own token order."""
        ordered = self._ordered(x)
        mu, sigma, _ = self.conditional(label)(ordered, 0, self.num_tokens, None)
        z = (ordered - mu) / sigma
        log_det = -sigma.log().sum(-1)
        return self._ordered(z), log_det.flip(-1) if self.is_reversed else log_det

    def inverse(
        self,
        z: Float[Tensor, "batch token latent"],
        *,
        label: Int64[Tensor, " batch"] | None = None,
        guidance: float = 0.0,
        rule: Rule = extrapolate,
        method: Method = "jacobi",
        tolerance: float = 1e-5,
    ) -> Solution:
        """The tokens that `forward` maps to `z`, found by the named method; Jacobi starts from `z`.

        With `guidance` the map follows by `rule` from the one with the class and the one without.
        """
        ordered = self._ordered(z)
        conditional = self.conditional(label)
        if guidance and label is not None:
            both = self.conditional(torch.cat((label, torch.full_like(label, -1))))
            conditional = guided(both, guidance, rule=rule)
        solution = invert(conditional, ordered, start=ordered, method=method, tolerance=tolerance)
        return Solution(self._ordered(solution.x), solution.sweeps)
