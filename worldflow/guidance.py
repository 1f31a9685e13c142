"""Guidance: sample what is more likely with a condition than without, from one network run both ways.

An autoregressive flow has a Gaussian for every token, with the condition `N(mu_c, sigma_c^2)`, without it
`N(mu_u, sigma_u^2)`. *Sharpening* (STARFlow) draws from the Gaussian `p_c^(1 + w) / p_u^w`:

    s = min(sigma_c / sigma_u, 1)^2,   d = 1 + w - w s
    sigma = sigma_c / sqrt(d),   mu = ((1 + w) mu_c - w s mu_u) / d

where the minimum keeps its variance positive for every weight `w`. *Extrapolation* (TARFlow) moves mean and log-scale
linearly: `v = v_c + w (v_c - v_u)`.

References:
    Gu et al., 2025, STARFlow, arXiv 2506.06276, section 3.4.
    Zhai et al., 2024, TARFlow, arXiv 2412.06329, section 2.5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldflow.attention import KeyValue
from worldflow.jacobi import AffineConditional

__all__ = ["RULES", "Rule", "extrapolate", "guided", "sharpen"]

Rule = Callable[[tuple[Tensor, Tensor], tuple[Tensor, Tensor], float], tuple[Tensor, Tensor]]
"""From `(mu, sigma)` with the condition, the same without it, and the weight, to those to sample with."""


def sharpen(with_it: tuple[Tensor, Tensor], without: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """STARFlow's rule: the Gaussian `p_c^(1 + w) / p_u^w`, never wider than `p_c`."""
    (mu_c, sigma_c), (mu_u, sigma_u) = with_it, without
    s = (sigma_c / sigma_u).clamp(max=1).square()
    d = 1 + weight - weight * s
    return ((1 + weight) * mu_c - weight * s * mu_u) / d, sigma_c / d.sqrt()


def extrapolate(with_it: tuple[Tensor, Tensor], without: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """TARFlow's rule: mean and log-scale move on in a straight line."""
    (mu_c, sigma_c), (mu_u, sigma_u) = with_it, without
    return mu_c + weight * (mu_c - mu_u), sigma_c * (sigma_c / sigma_u) ** weight


RULES: dict[str, Rule] = {"sharpen": sharpen, "extrapolate": extrapolate}
"""Both, by name."""


def guided(both: AffineConditional, weight: float, *, rule: Rule) -> AffineConditional:
    """A map of `B` rows from one of `2 B`: first those with the condition, then the same without it.

    Caches that go in and come out are those of all `2 B` rows.
    """

    def parameters(x: Tensor, first: int, last: int, past: KeyValue | None) -> tuple[Tensor, Tensor, KeyValue]:
        mu, sigma, new = both(torch.cat((x, x)), first, last, past)
        (mu_c, mu_u), (sigma_c, sigma_u) = mu.chunk(2), sigma.chunk(2)
        return *rule((mu_c, sigma_c), (mu_u, sigma_u), weight), new

    return parameters
