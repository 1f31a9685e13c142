"""Actions as numbers: what an agent did, in the form that the flow reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.types import ActionSpec

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

__all__ = ["ActionEncoder"]


class ActionEncoder(nn.Module):
    """Raw actions to feature vectors: standardized components, or one-hot choices side by side.

    Args:
        spec: What an action is.
    """

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.zeros(spec.size))
        self.register_buffer("std", torch.ones(spec.size))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, actions: Shaped[Tensor, "*batch action_shape"]) -> Float[Tensor, "*batch feature"]:
        """Feature vectors.

        Raises:
            ValueError: If the shape is wrong, a number is not finite, or a choice does not exist.
        """
        shape = self.spec.shape
        if actions.dim() < len(shape) or tuple(actions.shape[actions.dim() - len(shape) :]) != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"actions must have shape (..., {expected}), got {tuple(actions.shape)}")
        batch = actions.shape[: actions.dim() - len(shape)]
        flat = actions.reshape(*batch, self.spec.size)
        if not self.spec.is_discrete:
            if not bool(torch.isfinite(flat).all()):
                raise ValueError("actions hold NaN or infinite numbers; check the policy or data set that gave them")
            return (flat.to(self.mean.dtype) - self.mean) / self.std
        parts = []
        for i, (choices, first) in enumerate(zip(self.spec.choices, self.spec.first, strict=True)):
            index = flat[..., i].long() - first
            if bool(((index < 0) | (index >= choices)).any()):
                raise ValueError(
                    f"discrete actions must lie in {first}..{first + choices - 1}, "
                    f"got {int(flat[..., i].min())}..{int(flat[..., i].max())}"
                )
            parts.append(F.one_hot(index, choices))
        return torch.cat(parts, dim=-1).to(self.mean.dtype)
