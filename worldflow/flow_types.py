"""What a pass of the causal video flow returns, and what guides one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worldflow.state import WorldState

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["DrawnFrame", "FlowOutput", "Guidance"]


@dataclass(frozen=True, kw_only=True)
class FlowOutput:
    """A parallel pass over frames: the density of each given the past, and what the pass computed on the way."""

    log_prob: Float[Tensor, "batch time"]
    """`log p(x_t | x_<t, a)` in nats, base density and log-determinants together."""
    z: Float[Tensor, "batch time token latent"]
    log_det: Float[Tensor, "batch time token"]
    """Log-determinant of every token, all blocks together."""
    u: Float[Tensor, "batch time token latent"]
    draft: Float[Tensor, "batch time token latent"] | None
    hidden: Float[Tensor, "batch time width"]
    """The deep block's state after each whole transition."""
    state: WorldState | None
    """What to go on from, where asked for."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far to go beyond the condition, and what the past is without it."""

    weight: float
    """`w` of `worldflow.guidance.sharpen`."""
    state: WorldState
    """The same past without the condition: begun with the text of no text, or read with hidden actions."""
    hide_actions: bool = False
    """Whether actions are hidden there."""


@dataclass(frozen=True, kw_only=True)
class DrawnFrame:
    """One sampled frame in `u`, its exact deep log-likelihood in nats, and what comes after it."""

    u: Float[Tensor, "batch token latent"]
    log_prob: Float[Tensor, " batch"]
    """Under the condition, without guidance."""
    entropy: Float[Tensor, " batch"]
    """`sum ln sigma + D/2 (1 + ln 2 pi)` in nats: the exact conditional entropies of the frame's `D` numbers, each
    given the ones drawn before it. The entropy of `u` itself where no scale depends on those, and on average."""
    hidden: Float[Tensor, "batch width"]
    state: WorldState
    guidance: Guidance | None
    """Where the frame was guided: what to guide the next one with."""
    sweeps: int
