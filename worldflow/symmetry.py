"""Symmetries that a user vouches for: a mirrored recording is a recording of the same world, under other actions.

Where the camera could as well be turned, or look through a mirror, one recording is worth up to eight: the symmetries
of a square act on every frame of a clip alike. What they do to actions is not known (seen in a mirror, a torque turns
the other way; a quarter turn leaves it as it is), so it is learned along with the flow: a linear map of the action's
features for each symmetry, which begins as the identity,

    p(g x_t | g x_<t, A_g a) = p(x_t | x_<t, a)

The maps learn from the drafts' error alone. From the likelihood's gradient, too, they went astray before the flow knew
what actions are for: after 52 minutes on Reacher a half turn had another map than quarter turns, and 16 steps on the
state was off by 0.87 standard deviations instead of 0.31.

Only training knows of this; a finished world has seen more, and is no other.

On Reacher, from 50,000 transitions, drafts that were learned for 5 minutes on one core were off by 0.038 of a code's
standard deviation on held-out episodes and 0.032 on training ones; with the eight symmetries by 0.037 on both, and
after 20 minutes by 0.028 and 0.027: nothing is learned by heart. Rolled out from them on 100 held-out clips, the state
was off by 0.31 standard deviations 16 steps on, against 0.70 in the world that shipped before, whose flow had learned
for 34 minutes of a faster core without symmetries (and 0.37 on its own training episodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, UInt8

__all__ = ["ActionMaps", "Symmetry", "elements", "transformed", "transformed_rows"]

Symmetry = Literal["none", "mirror", "square"]
"""Which symmetries a world has: none, left-right, or quarter turns and mirrors, all eight of a square."""
SPEED = 30.0
"""How much faster action maps learn than other weights, so that they are found before the flow has got used to wrong
ones: with Adam at 1e-3, a sign is turned after 70 steps."""


def elements(symmetry: Symmetry) -> tuple[int, ...]:
    """The symmetries as numbers, the identity, 0, first.

    Raises:
        ValueError: If there is no such kind.
    """
    if symmetry not in get_args(Symmetry):
        raise ValueError(f"symmetry must be one of {', '.join(get_args(Symmetry))}, got {symmetry!r}")
    return {"none": (0,), "mirror": (0, 4), "square": tuple(range(8))}[symmetry]


def transformed(
    frames: UInt8[Tensor, "*batch row column channel"], element: int
) -> UInt8[Tensor, "*batch row column channel"]:
    """Frames as one symmetry shows them: from 4 on left and right exchanged, then `element % 4` quarter turns.

    Args:
        frames: Frames; square ones for quarter turns.
        element: A number from 0, the identity, to 7.
    """
    if element == 0:  # of whatever shape: vectors have no other
        return frames.clone(memory_format=torch.contiguous_format)
    mirrored = frames.flip(-2) if element >= 4 else frames
    return torch.rot90(mirrored, element % 4, (-3, -2)).contiguous()


def transformed_rows(
    frames: UInt8[Tensor, "row *batch pixel_row pixel_column channel"],
    symmetries: Sequence[int],
    which: Int64[Tensor, " row"],
) -> UInt8[Tensor, "row *batch pixel_row pixel_column channel"]:
    """Each row as one of some symmetries shows it.

    Args:
        frames: Frames; square ones for quarter turns.
        symmetries: Numbers of the symmetries, as for `transformed`.
        which: For each row, the place of its symmetry among them.
    """
    shown = frames.clone()
    for place in which.unique().tolist():
        shown[which == place] = transformed(frames[which == place], symmetries[place])
    return shown


class ActionMaps(nn.Module):
    """What symmetries do to features of actions, learned: a linear map for each, and the identity for the first.

    Args:
        count: Symmetries.
        feature_dim: Length of an action's feature vector.
    """

    def __init__(self, count: int, feature_dim: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(count - 1, feature_dim, feature_dim))

    def maps(self) -> Float[Tensor, "symmetry feature feature"]:
        """The maps, that of the identity first."""
        one = torch.eye(self.change.shape[-1], device=self.change.device, dtype=self.change.dtype)
        return torch.cat((one[None], one + SPEED * self.change))

    def forward(
        self, features: Float[Tensor, "batch time feature"], which: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch time feature"]:
        """Features of the actions that clips show once their symmetry has been applied to the frames."""
        return torch.einsum("bij,btj->bti", self.maps()[which], features)
