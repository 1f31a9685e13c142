"""A frame in the making, as a compiler wants it: no shape, branch or pass that depends on numbers.

What `worldflow.open_frame` does in place and skips where it can, this does by arithmetic alone, so that a whole step of
the world becomes one graph (`worldflow.compiled`). Attention is taken over the past and over the frame's own slots
apart, and joined in the softmax: the past is read where it lies, and copied once, when the frame is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    from worldflow.attention import Block
    from worldflow.deep import FrameTransformer

__all__ = ["TracedFrame"]


class TracedFrame:
    """As `worldflow.open_frame.OpenFrame`, for slots that come in order and once."""

    def __init__(
        self,
        frames: FrameTransformer,
        keys: Float[Tensor, "batch layer head slot feature"],
        values: Float[Tensor, "batch layer head slot feature"],
        count: Int64[Tensor, " batch"],
    ) -> None:
        self._frames = frames
        self._past = (keys, values)
        self._words = keys.shape[3] - frames.cached
        self._new: list[list[tuple[Tensor, Tensor]]] = [[] for _ in frames.transformer.blocks]
        table, places = frames.rotary.frequencies, frames.positions.double()
        angles = places[:, :2] @ table[:2] + count[:, None, None].double() * table[2]
        self._cos, self._sin = angles.cos().to(keys.dtype), angles.sin().to(keys.dtype)
        ago = torch.arange(frames.window - 1, 0, -1, device=count.device).repeat_interleave(frames.slots)
        hidden = F.pad(ago > count[:, None], (self._words, 0), value=False)
        self._bias = torch.zeros_like(hidden, dtype=keys.dtype).masked_fill(hidden, -torch.inf)[:, None, None]

    def __call__(self, slots: Float[Tensor, "batch slot width"], first: int) -> Float[Tensor, "batch slot width"]:
        """Hidden states of the next slots, which follow those of the calls before."""
        last = first + slots.shape[1]
        x = slots
        transformer = self._frames.transformer
        for i, block in enumerate(transformer.blocks):
            x = self._think(block, x, i, first, last)  # type: ignore[arg-type]
        return x if transformer.final_norm is None else transformer.final_norm(x)

    def close(
        self,
    ) -> tuple[Float[Tensor, "batch layer head slot feature"], Float[Tensor, "batch layer head slot feature"]]:
        """Keys and values of the past of the frame after this one."""
        both = []
        for part, past in enumerate(self._past):
            new = torch.stack([torch.cat([made[part] for made in layer], dim=2) for layer in self._new], dim=1)
            kept = past[..., self._words + self._frames.slots :, :]
            both.append(torch.cat((past[..., : self._words, :], kept, new), dim=-2))
        return both[0], both[1]

    def _think(self, block: Block, x: Tensor, layer: int, first: int, last: int) -> Tensor:
        B, n, _ = x.shape
        qkv = block.qkv(block.attention_norm(x)).view(B, n, 3, -1, block.head_dim).permute(2, 0, 3, 1, 4)
        cos, sin = self._cos[:, None, first:last], self._sin[:, None, first:last]
        query, key = _turned(qkv[0], cos, sin), _turned(qkv[1], cos, sin)
        self._new[layer].append((key, qkv[2]))
        own = [torch.cat([made[part] for made in self._new[layer]], dim=2) for part in (0, 1)]
        past = [part[:, layer] for part in self._past]
        query = query * block.head_dim**-0.5
        inside = query @ own[0].transpose(-1, -2)
        if self._frames.is_causal_inside and n > 1:
            ahead = torch.ones(n, last, dtype=torch.bool, device=x.device).triu(first + 1)
            inside = inside.masked_fill(ahead, -torch.inf)
        scores = torch.cat((query @ past[0].transpose(-1, -2) + self._bias, inside), dim=-1)
        weights = scores.softmax(-1)
        before, now = weights.split((past[0].shape[2], last), dim=-1)
        return block.finished(x, before @ past[1] + now @ own[1])


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Consecutive channel pairs, turned."""
    p, q = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((p * cos - q * sin, q * cos + p * sin), dim=-1).flatten(-2)
