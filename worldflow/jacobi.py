"""Inverses of an autoregressive affine map: one token at a time, or all at once by fixed-point iteration.

Given `z`, the tokens solve `x_j = mu_j(x_<j) + sigma_j(x_<j) z_j`. *Sequential* follows the definition, one token a
call. *Jacobi* (Song et al., 2021, arXiv 2002.03629) applies the map to all tokens in parallel,
`x <- mu(x) + sigma(x) z`, until nothing moves: the system is triangular, so after `k` sweeps the first `k` tokens are
exact and the fixed point is the sequential answer.

Two things make a sweep cheaper without touching the answer. *Prefix commit*: the exact tokens' keys and values go into
the cache and later sweeps start behind them. *Per-sample stopping*: a row whose largest relative change is below the
tolerance keeps its values, so no row's answer depends on its neighbors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

    from worldflow.attention import KeyValue

__all__ = ["AffineConditional", "Method", "Solution", "invert", "jacobi", "sequential"]

Method = Literal["jacobi", "sequential"]
"""How to invert an autoregressive block."""


class AffineConditional(Protocol):
    """An autoregressive block with everything but the tokens fixed."""

    def __call__(
        self, x: Float[Tensor, "batch token latent"], first: int, last: int, past: KeyValue | None
    ) -> tuple[Float[Tensor, "batch part latent"], Float[Tensor, "batch part latent"], KeyValue]:
        """Mean and scale of tokens `first .. last - 1`, given all tokens' current values.

        `past` holds what earlier frames and the slots before `first` left; the third result is what these slots leave.
        """
        ...


class Solution(NamedTuple):
    """Solved tokens and the number of parallel calls it took."""

    x: Tensor
    sweeps: int


def sequential(
    conditional: AffineConditional, z: Float[Tensor, "batch token latent"], *, past: KeyValue | None = None
) -> Solution:
    """Solve token by token: the reference for every other sampler; as many calls as there are tokens."""
    num_tokens = z.shape[1]
    x = torch.zeros_like(z)
    for j in range(num_tokens):
        mu, sigma, new = conditional(x, j, j + 1, past)
        x = torch.cat((x[:, :j], mu + sigma * z[:, j : j + 1], x[:, j + 1 :]), dim=1)
        past = new if past is None else past.append(new)
    return Solution(x, num_tokens)


def jacobi(
    conditional: AffineConditional,
    z: Float[Tensor, "batch token latent"],
    *,
    start: Float[Tensor, "batch token latent"],
    past: KeyValue | None = None,
    tolerance: float = 1e-4,
    commit_at_least: int = 4,
) -> Solution:
    """Solve all tokens in parallel sweeps, at most one a token.

    Args:
        conditional: The block.
        z: What the block's forward map must give.
        start: First guess; a better one saves sweeps and never changes the answer.
        past: Keys and values of what comes before the tokens.
        tolerance: A row is done when its largest change in a sweep, relative to the row's largest value, is below this.
        commit_at_least: Move the exact prefix into the cache when it has grown by this many tokens; smaller values
            save arithmetic and cost copies.

    Returns:
        The tokens, within about `tolerance` of the sequential answer, and the sweeps taken.
    """
    num_tokens = z.shape[1]
    x, committed = start, 0
    done = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for sweep in range(1, num_tokens + 1):
        mu, sigma, new = conditional(x, committed, num_tokens, past)
        proposal = mu + sigma * z[:, committed:]
        moved = torch.where(done[:, None, None], x[:, committed:], proposal)
        change = (moved - x[:, committed:]).abs().amax(2) / moved.abs().amax((1, 2)).clamp(min=1e-12)[:, None]
        x = torch.cat((x[:, :committed], moved), dim=1)
        done = done | (change.amax(1) < tolerance)
        if bool(done.all()):
            return Solution(x, sweep)
        # Slot j reads token j - 1. Before this sweep the first `sweep - 1` tokens were exact, so the slots up to
        # `sweep - 1` read final values and leave final keys; one more would leave the cache one sweep stale.
        if sweep - committed >= commit_at_least:
            kept = new.slots(0, sweep - committed)
            past = kept if past is None else past.append(kept)
            committed = sweep
    return Solution(x, num_tokens)


def invert(
    conditional: AffineConditional,
    z: Float[Tensor, "batch token latent"],
    *,
    start: Float[Tensor, "batch token latent"],
    method: Method = "jacobi",
    past: KeyValue | None = None,
    tolerance: float = 1e-4,
) -> Solution:
    """Solve by the named method.

    Raises:
        ValueError: If the method is unknown.
    """
    if method == "sequential":
        return sequential(conditional, z, past=past)
    if method == "jacobi":
        return jacobi(conditional, z, start=start, past=past, tolerance=tolerance)
    raise ValueError(f"method must be 'jacobi' or 'sequential', got {method!r}")
