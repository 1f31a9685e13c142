"""Transformer blocks that serve every network of the flow: rotary positions, frame masks, key-value cache.

Pre-norm blocks `h += Attn(norm h)`, `h += MLP(norm h)` (Xiong et al., 2020, arXiv 2002.04745) in the layout of the
released STARFlow models: LayerNorm with biases inside the blocks, exact GELU, rotary positions over three axes
(row, column, time; Su et al., 2021, arXiv 2104.09864) with each angle used for two consecutive channels.

A sequence is a list of *slots*, grouped by frame. Which slot sees which is decided by `frame_mask`; what was
computed for earlier frames comes in as `past`, already rotated, so the same `Transformer.forward` serves training,
scoring in chunks, and one-frame steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

__all__ = ["Band", "Block", "KeyValue", "RMSNorm", "RotaryPositions", "Transformer", "frame_mask"]


@dataclass(frozen=True, kw_only=True)
class KeyValue:
    """Rotated keys, and values, of every layer; never written in place."""

    keys: Float[Tensor, "layer batch head slot feature"]
    values: Float[Tensor, "layer batch head slot feature"]

    @property
    def num_slots(self) -> int:
        """How many slots are held."""
        return self.keys.shape[3]

    def append(self, new: KeyValue) -> KeyValue:
        """Both, one behind the other."""
        return KeyValue(
            keys=torch.cat([self.keys, new.keys], dim=3), values=torch.cat([self.values, new.values], dim=3)
        )

    def slots(self, first: int, last: int | None = None) -> KeyValue:
        """The slots `first .. last - 1`."""
        return KeyValue(keys=self.keys[:, :, :, first:last], values=self.values[:, :, :, first:last])


class RMSNorm(nn.Module):
    """Root-mean-square norm with gain `1 + w`, computed in float32 (the released models' last norm)."""

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis; float64 stays float64, anything else is computed in float32."""
        wide = x if x.dtype == torch.float64 else x.float()
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class RotaryPositions(nn.Module):
    """Rotations for slots at `(row, column, time)`, as unit complex numbers.

    `head_dim / 2` angles: 3/8 of them turn with the row, 3/8 with the column, 1/4 with time (12, 12 and 8 for the
    released head size 64). Angle `k` of an axis with `n` angles is `position * 10000^(-k / n)`.

    Args:
        head_dim: Channels of one head, a multiple of 16.
        with_time: False drops the time axis: the angles split in two halves (the released image layout).
    """

    def __init__(self, head_dim: int, *, with_time: bool = True) -> None:
        super().__init__()
        if head_dim % 16:
            raise ValueError(f"head_dim must be a multiple of 16, got {head_dim}")
        pairs = head_dim // 2
        counts = (3 * pairs // 8, 3 * pairs // 8, pairs // 4) if with_time else (pairs // 2, pairs // 2, 0)
        table = torch.zeros(3, pairs, dtype=torch.float64, device="cpu")  # there, even if parameters are yet nowhere
        first = 0
        for axis, count in enumerate(counts):
            ladder = torch.arange(count, dtype=torch.float64, device="cpu") / max(count, 1)
            table[axis, first : first + count] = 10000.0**-ladder
            first += count
        self.register_buffer("frequencies", table, persistent=False)
        self.frequencies: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryPositions:
        """Move with the model, but stay in float64 whatever it is cast to."""
        exact = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, positions: Float[Tensor, "*batch slot 3"], *, dtype: torch.dtype) -> Tensor:
        """`exp(i angle)` of every angle, complex `(*batch, slot, head_dim / 2)` in the precision of `dtype`.

        Angles are computed in float64, so that a slot far into an episode turns as exactly as an early one.
        """
        angles = positions.double() @ self.frequencies.double()
        return torch.polar(torch.ones_like(angles), angles).to(
            torch.complex128 if dtype == torch.float64 else torch.complex64
        )


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn consecutive channel pairs: `(p, q) -> (p cos - q sin, q cos + p sin)`; one complex product."""
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Band:
    """A frame mask for sequences much longer than the window: frames attend in chunks, each to itself and the last one.

    A chunk holds `window - 1` frames, so that no frame sees further back than the chunk before its own: scores that the
    mask would take away are not computed, and the cost is linear in the frames.
    """

    mask: Bool[Tensor, "chunk 1 slot key"]
    """Inside one chunk, its keys behind those of the chunk before it; no key is in front of the first one's."""

    @classmethod
    def of(
        cls,
        num_frames: int,
        slots_per_frame: int,
        *,
        window: int,
        is_causal_inside: bool = True,
        device: torch.device | str | None = None,
    ) -> Band | None:
        """The band that equals `frame_mask` of the same arguments; None where chunks would save nothing."""
        size = window - 1
        if size < 1 or num_frames <= 2 * size:
            return None
        seen = size * (torch.arange(-(-num_frames // size), device=device) > 0)
        return cls(
            mask=frame_mask(
                size,
                slots_per_frame,
                window=window,
                past_frames=seen,
                cached_frames=size,
                is_causal_inside=is_causal_inside,
                device=device,
            )
        )

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Softmax attention, `(batch, head, slot, feature)` each, all of the same slots."""
        chunks, _, size, _ = self.mask.shape
        B, _, num_slots, _ = query.shape
        missing = chunks * size - num_slots  # behind the end, where only what is thrown away again looks
        query, keys, values = (
            F.pad(x, (0, 0, 0, missing)).unflatten(2, (chunks, size)).flatten(0, 1) for x in (query, keys, values)
        )
        keys, values = (torch.cat((F.pad(x[:, :-1], (0, 0, 0, 0, 1, 0)), x), dim=2) for x in (keys, values))
        out = _attend(query, keys, values, self.mask.transpose(0, 1))
        return out.unflatten(0, (B, -1)).flatten(2, 3)[:, :, :num_slots]


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | Band | None) -> Tensor:
    """Softmax attention; `mask` None is causal.

    Training in bf16 on a CPU, plain products take half the time of the fused kernel, whose backward pass is slow
    there (7 against 18 ms for 16 clips of 221 slots); everywhere else the fused kernel is the faster one.
    """
    if isinstance(mask, Band):
        return mask.attend(query, keys, values)
    if not (query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=mask is None)
    if mask is None:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool).tril()
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values


class Mixing(nn.Module):
    """One MLP over all slots of a frame together, pre-norm: what attention can only average, it can combine.

    Args:
        slots: Of a frame.
        dim: Channels of a slot.
    """

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(slots * dim, slots * dim)
        self.reduce = nn.Linear(slots * dim, slots * dim)

    def forward(self, x: Float[Tensor, "batch slot dim"]) -> Float[Tensor, "batch slot dim"]:
        """`x` and what is added to it; whole frames of slots."""
        frames = self.norm(x).reshape(len(x), -1, self.expand.in_features)
        return x + self.reduce(F.gelu(self.expand(frames))).view_as(x)


class Block(nn.Module):
    """Self-attention and MLP, pre-norm; and `Mixing` over `mixed` slots where there are so many in a frame.

    In training, `dropout` of what attention and MLP add to a slot is left out, and the rest scaled up.
    """

    def __init__(
        self, dim: int, *, head_dim: int = 64, expansion: int = 4, mixed: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = dropout
        if dim % head_dim:
            raise ValueError(f"width {dim} must be a multiple of the head size {head_dim}")
        self.head_dim = head_dim
        self.mixing = Mixing(mixed, dim) if mixed else None
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, expansion * dim)
        self.mlp_out = nn.Linear(expansion * dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch slot dim"],
        rotary: Tensor | None,
        mask: Bool[Tensor, "#batch 1 slot key"] | Band | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Float[Tensor, "batch slot dim"], tuple[Tensor, Tensor]]:
        """One block; also returns this call's rotated keys and values `(batch, head, slot, feature)`.

        `mask` None means causal over the slots given, and with it, as with a band, `past` must be None; `rotary` None
        turns nothing.
        """
        qkv = rearrange(self.qkv(self.attention_norm(x)), "b s (three h d) -> three b h s d", three=3, d=self.head_dim)
        query, key = (qkv[:2] if rotary is None else rotate(qkv[:2], rotary)).unbind(0)
        value = qkv[2]
        keys, values = (key, value) if past is None else (torch.cat((past[0], key), 2), torch.cat((past[1], value), 2))
        return self.finished(x, _attend(query, keys, values, mask)), (key, value)

    def finished(
        self, x: Float[Tensor, "batch slot dim"], attended: Float[Tensor, "batch head slot feature"]
    ) -> Float[Tensor, "batch slot dim"]:
        """What the block makes of its input and of what its heads attended to."""
        x = x + self._kept(self.attention_out(attended.transpose(1, 2).flatten(2)))
        x = x + self._kept(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))
        return x if self.mixing is None else self.mixing(x)

    def _kept(self, added: Tensor) -> Tensor:
        return F.dropout(added, self.dropout) if self.dropout and self.training else added


class Transformer(nn.Module):
    """A stack of blocks and the last norm.

    Args:
        dim: Width.
        layers: Number of blocks.
        head_dim: Channels of one head.
        mixed: Slots of a frame that each block mixes (`Mixing`); 0 for none.
        has_final_norm: False leaves out the last norm, as TARFlow does.
        dropout: Of every block, in training.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        *,
        head_dim: int = 64,
        mixed: int = 0,
        has_final_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.cache_shape = (layers, dim // head_dim, head_dim)
        blocks = [Block(dim, head_dim=head_dim, mixed=mixed, dropout=dropout) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = RMSNorm(dim) if has_final_norm else None
        for block in blocks:
            ends = [block.attention_out, block.mlp_out] + ([block.mixing.reduce] if block.mixing else [])
            for last in ends:
                nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)  # GPT-2's residual scaling
                nn.init.zeros_(last.bias)

    def forward(
        self,
        x: Float[Tensor, "batch slot dim"],
        rotary: Tensor | None,
        *,
        mask: Bool[Tensor, "#batch 1 slot key"] | Band | None = None,
        past: KeyValue | None = None,
    ) -> tuple[Float[Tensor, "batch slot dim"], KeyValue]:
        """Run the stack; `past` holds the slots before these, and `mask`'s keys are `past` then the slots given.

        `rotary` None leaves keys and queries as they are: positions are in `x` then.
        """
        if rotary is not None and rotary.dim() == 3:  # one table per row of the batch: make room for the heads
            rotary = rotary[:, None]
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            before = None if past is None else (past.keys[i], past.values[i])
            x, (key, value) = block(x, rotary, mask, before)
            keys.append(key)
            values.append(value)
        new = KeyValue(keys=torch.stack(keys), values=torch.stack(values))
        return x if self.final_norm is None else self.final_norm(x), new


def frame_mask(
    num_frames: int,
    slots_per_frame: int,
    *,
    window: int,
    past_frames: Int64[Tensor, " batch"] | None = None,
    cached_frames: int = 0,
    is_causal_inside: bool = True,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "#batch 1 slot key"]:
    """Which slot may attend to which: itself and earlier frames, no further back than `window` frames.

    Key frame `k` is visible to query frame `q` iff `q - window < k <= q` and it exists; inside a frame a slot sees
    itself and the slots before it, or all of them where `is_causal_inside` is False (the drafter).

    Args:
        num_frames: Frames of the sequence, all of them queries.
        slots_per_frame: Slots of a frame.
        window: Frames in view, the query's own included.
        past_frames: How many earlier frames each row has really seen; those of the cache beyond are masked.
        cached_frames: Frames that the cache in front of the sequence holds, right-aligned.
        is_causal_inside: Whether slots of one frame are ordered.
        device: Where to build it.

    Returns:
        True where attention is allowed; its first axis is 1 where all rows share the mask.
    """
    query = torch.arange(num_frames, device=device)
    key = torch.arange(-cached_frames, num_frames, device=device)
    distance = query[:, None] - key[None, :]
    earlier = (distance > 0) & (distance < window)
    same = distance == 0
    inside = torch.ones(slots_per_frame, slots_per_frame, dtype=torch.bool, device=device)
    if is_causal_inside:
        inside = inside.tril()
    visible = (earlier[:, None, :, None] | (same[:, None, :, None] & inside[None, :, None, :])).flatten(2).flatten(0, 1)
    if past_frames is None or cached_frames == 0:
        return visible[None, None]
    exists = (key[None, :] >= -past_frames[:, None]).repeat_interleave(slots_per_frame, dim=1)
    return visible[None, None] & exists[:, None, None, :]
