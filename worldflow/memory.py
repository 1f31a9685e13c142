"""The mean of what was seen, kept up frame by frame: a memory that does not end with the attention window.

    m_n = m_{n-1} + (s_n - m_{n-1}) / min(n, memory)

After `n` frames it is their plain mean, from `memory` frames on an exponential one. What stands still is known from it
better than from any frame, and faults of single frames hardly move it. On Reacher, with drafts that read it, the target
was within a pixel of its place in 66 % of imagined frames after 16 steps instead of 19 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

__all__ = ["exchange_last", "running_means"]


def running_means(
    seen: Float[Tensor, "batch time *value"],
    start: Float[Tensor, "batch *value"],
    *,
    count: Int64[Tensor, " batch"],
    memory: int,
) -> Float[Tensor, "batch time+1 *value"]:
    """The mean before the first of some frames and after each of them.

    Args:
        seen: The frames.
        start: The mean of the frames before; not read in rows that have seen none.
        count: How many those were.
        memory: Frames from which on the mean forgets, at least 1.
    """
    means = [start]
    for t in range(seen.shape[1]):
        means.append(means[-1] + _share(count + t + 1, memory, start) * (seen[:, t] - means[-1]))
    return torch.stack(means, dim=1)


def exchange_last(
    mean: Float[Tensor, "batch *value"],
    old: Float[Tensor, "batch *value"],
    new: Float[Tensor, "batch *value"],
    *,
    count: Int64[Tensor, " batch"],
    memory: int,
) -> Float[Tensor, "batch *value"]:
    """The mean, had `new` been seen in place of `old`, the last of `count` frames."""
    return mean + _share(count, memory, mean) * (new - old)


def _share(count: Tensor, memory: int, like: Tensor) -> Tensor:
    """What the last of so many frames adds to the mean, with as many axes as the mean."""
    return 1 / count.clamp(min=1, max=memory).to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
