"""A frame in the making: what a transformer over frames needs to think one coming frame over, again and again.

Rolling forward calls a network of few tokens thousands of times, and the calls cost more than the arithmetic. So all
that a frame's calls share is made once: the rotations of its slots, the mask of a past that is not full yet, and one
buffer for the keys and values of the past with room behind it for the frame's own. These are written in place as often
as the frame is thought over; when it is done, the memory of the next frame is the same buffer, one frame further on:
nothing is appended, nothing rolled.

    buffer  [ text | past, window - 1 frames | this frame ]
    after   [ text | -------- past, window - 1 frames ---- ]      a view, but for the text in front

It is for drawing only: what is written in place has no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    from worldflow.attention import Block
    from worldflow.deep import FrameTransformer

__all__ = ["ComingFrame", "OpenFrame"]


class ComingFrame(Protocol):
    """One coming frame of each row of a batch, in one transformer."""

    def __call__(self, slots: Float[Tensor, "batch slot width"], first: int) -> Float[Tensor, "batch slot width"]:
        """Hidden states of some slots, from slot `first` of the frame on; those before it keep what they left."""
        ...

    def close(
        self,
    ) -> tuple[Float[Tensor, "batch layer head slot feature"], Float[Tensor, "batch layer head slot feature"]]:
        """Keys and values of the past of the frame after this one."""
        ...


class OpenFrame:
    """A coming frame that is thought over in place.

    Args:
        frames: The transformer.
        keys: Rotated keys of the past, text in front.
        values: Its values.
        count: Frames that each row has seen.
    """

    def __init__(
        self,
        frames: FrameTransformer,
        keys: Float[Tensor, "batch layer head slot feature"],
        values: Float[Tensor, "batch layer head slot feature"],
        count: Int64[Tensor, " batch"],
    ) -> None:
        B, L, H, S, D = keys.shape
        self._frames, self._before = frames, S
        self._words = S - frames.cached
        self._buffer = keys.new_empty(2, B, L, H, S + frames.slots, D)
        self._buffer[0, ..., :S, :] = keys
        self._buffer[1, ..., :S, :] = values
        self._rotary = frames.rotation(count, dtype=keys.dtype)[:, None]
        self._mask = self._visible(count)

    def __call__(self, slots: Float[Tensor, "batch slot width"], first: int) -> Float[Tensor, "batch slot width"]:
        """Hidden states of some slots, from slot `first` of the frame on; those before it keep what they left."""
        last = first + slots.shape[1]
        until = self._before + last
        rotary = self._rotary[:, :, first:last]
        mask = None if self._mask is None else self._mask[:, :, first:last, :until]
        x = slots
        transformer = self._frames.transformer
        for i, block in enumerate(transformer.blocks):
            x = _think(block, x, rotary, mask, self._buffer[:, :, i, :, :until])  # type: ignore[arg-type]
        return x if transformer.final_norm is None else transformer.final_norm(x)

    def close(
        self,
    ) -> tuple[Float[Tensor, "batch layer head slot feature"], Float[Tensor, "batch layer head slot feature"]]:
        """Keys and values of the past of the frame after this one."""
        moved = self._buffer[..., self._words + self._frames.slots :, :]
        if self._words:
            moved = torch.cat((self._buffer[..., : self._words, :], moved), dim=-2)
        return moved[0], moved[1]

    def _visible(self, count: Tensor) -> Tensor | None:
        """Which slots see which keys, `(batch, 1, slot, key)`; None where all see all."""
        frames, device = self._frames, count.device
        is_full = device.type == "cpu" and bool((count >= frames.window - 1).all())  # elsewhere asking costs a wait
        if is_full and not frames.is_causal_inside:
            return None
        inside = torch.ones(frames.slots, frames.slots, dtype=torch.bool, device=device)
        if frames.is_causal_inside:
            inside = inside.tril()
        if is_full:
            return F.pad(inside, (self._before, 0), value=True)[None, None]
        ago = torch.arange(frames.window - 1, 0, -1, device=device).repeat_interleave(frames.slots)
        exists = F.pad(ago <= count[:, None], (self._words, 0), value=True)[:, None, None]
        shape = (len(count), 1, frames.slots)
        return torch.cat((exists.expand(*shape, -1), inside.expand(*shape, -1)), dim=-1)


def _think(
    block: Block, x: Tensor, rotary: Tensor, mask: Tensor | None, memory: Float[Tensor, "two batch head key feature"]
) -> Tensor:
    """One block, whose keys and values go into the last places of `memory`."""
    B, n, _ = x.shape
    qkv = block.qkv(block.attention_norm(x)).view(B, n, 3, -1, block.head_dim)
    wide = qkv if qkv.dtype in (torch.float32, torch.float64) else qkv.float()
    turned = torch.view_as_complex(wide[:, :, :2].unflatten(-1, (-1, 2))) * rotary.transpose(1, 2)[:, :, None]
    turned = torch.view_as_real(turned).flatten(-2).to(qkv.dtype)
    memory[0, :, :, -n:] = turned[:, :, 1].transpose(1, 2)
    memory[1, :, :, -n:] = qkv[:, :, 2].transpose(1, 2)
    attended = F.scaled_dot_product_attention(turned[:, :, 0].transpose(1, 2), memory[0], memory[1], attn_mask=mask)
    return block.finished(x, attended)
