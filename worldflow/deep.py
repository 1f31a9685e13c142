"""The deep block: the only part of the flow that crosses frames, and the memory it carries from frame to frame.

Per frame `t` the causal transformer reads the slots `[A_t, u_1 .. u_N]`: a lead slot that embeds the action that led to
frame `t` (a start token where there is none), then the tokens. The output at the lead parametrizes token 1, the output
at token `j` token `j + 1`, and the output at token `N` has seen the whole transition and feeds the reward and
termination heads. Without actions the lead of frame `t` is the last token of frame `t - 1` and the last slot is absent:
the released STARFlow-V layout. Each slot carries the position of the token it parametrizes.

A draft of the whole frame, made from the past alone, is the center of the affine map and an input at every slot:

    mu = gate * draft + mu',   sigma = softplus(a + ln(e - 1)),   z = (u - mu) / sigma

so the density stays exact. Text, where there is some, is a causal prefix that every frame sees; it stays in front of
the cache and never falls out of it. Attention reaches `window` frames back in every layer, hence a rolling cache of
`window - 1` frames reproduces the parallel pass for a trajectory of any length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldflow.attention import Band, KeyValue, RotaryPositions, Transformer, frame_mask
from worldflow.autoregressive import affine_parameters, cell_positions, word_positions
from worldflow.jacobi import AffineConditional
from worldflow.vector_tokens import num_vector_tokens, real_numbers

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    from worldflow.draw import FrameMap
    from worldflow.open_frame import ComingFrame

__all__ = ["DeepBlock", "FrameTransformer", "roll_in"]


def roll_in(cache: KeyValue, new: KeyValue, *, kept: int = 0) -> KeyValue:
    """Push new slots into a cache of fixed length; the oldest fall out, but for the first `kept`."""
    length = cache.num_slots
    joined = cache.append(new)
    rolled = joined.slots(joined.num_slots - length + kept)
    return joined.slots(0, kept).append(rolled) if kept else rolled


class FrameTransformer(nn.Module):
    """A transformer over frames of slots with an attention window and a rolling cache.

    Args:
        width: Channels of the hidden states.
        layers: Number of blocks.
        positions: `(row, column, 0)` of every slot of a frame.
        window: Frames in view, the current one included.
        head_dim: Channels of one head.
        is_causal_inside: Whether the slots of a frame are ordered.
        is_mixed: Whether each layer ends with an MLP over all slots of a frame; they must not be ordered then.
        text_dim: Channels of a text token; 0 for a model without text.
        text_base: Where on the third axis a text ends, as its last token does.
        has_time_axis: False gives the third axis's angles to rows and columns: released images without text.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        positions: Float[Tensor, "slot 3"],
        window: int,
        head_dim: int,
        is_causal_inside: bool,
        is_mixed: bool = False,
        text_dim: int = 0,
        text_base: float = 1.0,
        has_time_axis: bool = True,
    ) -> None:
        super().__init__()
        if text_dim and not has_time_axis:
            raise ValueError("text has its places on the third axis: has_time_axis must be True with it")
        if is_causal_inside and is_mixed:
            raise ValueError("slots that are ordered cannot be mixed")
        self.window = window
        self.slots = len(positions)
        self.is_causal_inside = is_causal_inside
        self.transformer = Transformer(width, layers, head_dim=head_dim, mixed=self.slots if is_mixed else 0)
        self.rotary = RotaryPositions(head_dim, with_time=has_time_axis)
        self.text_in = nn.Linear(text_dim, width) if text_dim else None
        self.text_base = text_base
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        self._places: Tensor | None = None

    def empty_cache(self, batch_size: int, *, device: torch.device, dtype: torch.dtype) -> KeyValue:
        """A cache that has seen nothing: `window - 1` frames of masked slots."""
        layers, heads, head_dim = self.transformer.cache_shape
        shape = (layers, batch_size, heads, self.cached, head_dim)
        zeros = torch.zeros(shape, device=device, dtype=dtype)
        return KeyValue(keys=zeros, values=zeros)

    @property
    def cached(self) -> int:
        """Slots of frames that a rolling cache holds."""
        return (self.window - 1) * self.slots

    def read_text(self, text: Float[Tensor, "batch word text"]) -> KeyValue:
        """Keys and values of a text, to stand in front of everything; word `m` of `n` is at `m / n * text_base`."""
        if self.text_in is None:
            raise ValueError("this model reads no text: it was made with text_dim 0")
        rotary = self.rotary(word_positions(text.shape[1], base=self.text_base, device=text.device), dtype=text.dtype)
        _, new = self.transformer(self.text_in(text), rotary)
        return new

    def prepare(
        self,
        num_frames: int,
        *,
        count: Int64[Tensor, " batch"] | None,
        words: int = 0,
        device: torch.device,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Bool[Tensor, "#batch 1 slot key"]]:
        """Rotations and mask for `num_frames` frames that follow `count` frames (None: no cache in front).

        In front of all of them are `words` slots of text, which every slot sees.
        """
        rotary = self._rotations(num_frames, count, device=device, dtype=dtype)
        mask = frame_mask(
            num_frames,
            self.slots,
            window=self.window,
            past_frames=count,
            cached_frames=0 if count is None else self.window - 1,
            is_causal_inside=self.is_causal_inside,
            device=device,
        )
        return rotary, F.pad(mask, (words, 0), value=True)

    def _rotations(
        self, num_frames: int, count: Int64[Tensor, " batch"] | None, *, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        time = torch.arange(num_frames, device=device, dtype=torch.float64)[None]
        if count is not None:
            time = time + count[:, None]
        grid = self.positions.to(torch.float64)
        positions = grid.expand(*time.shape, *grid.shape).clone()
        positions[..., 2] = time[..., None]
        return self.rotary(positions.flatten(1, 2), dtype=dtype)

    def rotation(self, count: Int64[Tensor, " batch"], *, dtype: torch.dtype) -> Tensor:
        """Rotations of the slots of the frame that follows `count` frames, complex `(batch, slot, head_dim / 2)`."""
        frequencies, places = self.rotary.frequencies, self._places
        if places is None or places.device != frequencies.device:
            grid = self.positions.to(torch.float64)
            grid[:, 2] = 0
            places = self._places = self.rotary(grid, dtype=torch.float64)
        angles = count[:, None].double() * frequencies[2]
        turned = torch.polar(torch.ones_like(angles), angles)[:, None] * places
        return turned if dtype == torch.float64 else turned.to(torch.complex64)

    def forward(
        self,
        x: Float[Tensor, "batch time slot width"],
        *,
        past: KeyValue | None = None,
        count: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time slot width"], KeyValue]:
        """Hidden states of all slots, and what they leave for later frames.

        Args:
            x: Embedded slots.
            past: Text, and behind it the rolling cache of the frames before where `count` is given.
            count: How many frames each row has seen before; None at the start of a sequence, without a cache.
        """
        T, options = x.shape[1], {"device": x.device, "dtype": x.dtype}
        band = None
        if past is None and count is None:
            inside = self.is_causal_inside
            band = Band.of(T, self.slots, window=self.window, is_causal_inside=inside, device=x.device)
        if band is not None:
            rotary, mask = self._rotations(T, None, **options), band
        else:
            words = 0 if past is None else past.num_slots - (0 if count is None else self.cached)
            rotary, mask = self.prepare(T, count=count, words=words, **options)
        hidden, new = self.transformer(x.flatten(1, 2), rotary, mask=mask, past=past)
        return hidden.unflatten(1, (-1, self.slots)), new


@dataclass(frozen=True, kw_only=True)
class DeepOutput:
    """What the deep block says about frames: the affine map, and the state after each whole transition."""

    mu: Float[Tensor, "batch time token latent"]
    sigma: Float[Tensor, "batch time token latent"]
    hidden: Float[Tensor, "batch time width"]
    new: KeyValue


class DeepBlock(nn.Module):
    """The cross-frame block.

    Args:
        latent_dim: Channels of a token.
        grid: Rows and columns of tokens.
        width, layers, head_dim: Its transformer.
        window: Frames in view, the current one included.
        action_dim: Length of an action's feature vector; 0 selects the released layout without action slots.
        has_draft: Whether a draft centers the map.
        soft_clip: Bound of both outputs, or None.
        text_dim: Channels of a text token; 0 for a model without text.
        position_base: Side of the grid that positions are measured on; by default the rows of this one.
        has_time_axis: False gives the third axis's angles to rows and columns: released images without text.
        vector_dim: Numbers of a vector beside the picture, in tokens behind the grid's (`worldflow.vector_tokens`).
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        grid: tuple[int, int],
        width: int,
        layers: int,
        head_dim: int,
        window: int,
        action_dim: int,
        has_draft: bool,
        soft_clip: float | None,
        text_dim: int = 0,
        position_base: int | None = None,
        has_time_axis: bool = True,
        vector_dim: int = 0,
    ) -> None:
        super().__init__()
        base = position_base or grid[0]
        below = num_vector_tokens(vector_dim, latent_dim)
        self.num_tokens = grid[0] * grid[1] + below
        self.soft_clip = soft_clip
        self.start = nn.Parameter(torch.randn(latent_dim) * 0.02)
        self.proj_in = nn.Linear(latent_dim, width)
        self.register_buffer("is_real", real_numbers(grid, latent_dim, vector_dim), persistent=False)
        self.is_real: Tensor | None
        positions = cell_positions(grid, base=base, below=below)
        self.action_in = None
        if action_dim:
            self.action_in = nn.Sequential(nn.Linear(action_dim, width), nn.GELU(), nn.Linear(width, width))
            self.hidden_action = nn.Parameter(torch.randn(width) * 0.02)
            # The slot behind the last token: one row further.
            last = torch.tensor([[float(grid[0] + bool(below)), 0.0, 0.0]], device="cpu")
            positions = torch.cat((positions, last))
        self.draft_in = nn.Linear(latent_dim, width, bias=False) if has_draft else None
        self.draft_gate = nn.Parameter(torch.ones(latent_dim)) if has_draft else None
        self.frames = FrameTransformer(
            width,
            layers,
            positions=positions,
            window=window,
            head_dim=head_dim,
            is_causal_inside=True,
            text_dim=text_dim,
            text_base=base,
            has_time_axis=has_time_axis,
        )
        self.proj_out = nn.Linear(width, 2 * latent_dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def lead(
        self,
        actions: Float[Tensor, "batch time action"] | None,
        *,
        is_first: Bool[Tensor, "batch time"],
        is_hidden: Bool[Tensor, "batch time"],
        before: Float[Tensor, "batch time latent"],
    ) -> Float[Tensor, "batch time width"]:
        """Embedding of the slot in front of each frame.

        Args:
            actions: Features of the action that led to each frame.
            is_first: Frames with nothing before them: the start token leads.
            is_hidden: Frames whose action is not shown.
            before: Last token of the frame before; leads where the model has no actions.
        """
        start = self.proj_in(self.start.to(before.dtype))
        if self.action_in is None:
            shown = self.proj_in(before)
        else:
            assert actions is not None
            shown = torch.where(is_hidden[..., None], self.hidden_action.to(before.dtype), self.action_in(actions))
        return torch.where(is_first[..., None], start, shown)

    def _slots(self, u: Tensor, lead: Tensor, draft: Tensor | None) -> Tensor:
        tokens = self.proj_in(u if self.action_in is not None else u[..., :-1, :])
        slots = torch.cat((lead[..., None, :].to(tokens.dtype), tokens), dim=-2)
        if self.draft_in is not None and draft is not None:
            # Slot j parametrizes token j, so it gets token j's draft; the slot behind the last token gets none.
            hint = self.draft_in(draft)
            slots = slots + F.pad(hint, (0, 0, 0, slots.shape[-2] - hint.shape[-2]))
        return slots

    def _affine(self, hidden: Tensor, draft: Tensor | None, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """The map of the tokens from `first` on, as many as there are hidden states of them."""
        mu, sigma = self._scales(hidden, first)
        if self.draft_gate is not None and draft is not None:
            mu = mu + self.draft_gate * draft
        return mu, sigma

    def _scales(self, hidden: Tensor, first: int) -> tuple[Tensor, Tensor]:
        is_real = None if self.is_real is None else self.is_real[first : first + hidden.shape[-2]]
        return affine_parameters(self.proj_out(hidden), soft_clip=self.soft_clip, is_real=is_real)

    def forward(
        self,
        u: Float[Tensor, "batch time token latent"],
        *,
        lead: Float[Tensor, "batch time width"],
        draft: Float[Tensor, "batch time token latent"] | None,
        past: KeyValue | None = None,
        count: Int64[Tensor, " batch"] | None = None,
    ) -> DeepOutput:
        """The affine map of every token of every frame, in one parallel pass."""
        hidden, new = self.frames(self._slots(u, lead, draft), past=past, count=count)
        mu, sigma = self._affine(hidden[..., : self.num_tokens, :], draft)
        return DeepOutput(mu=mu, sigma=sigma, hidden=hidden[..., -1, :], new=new)

    def conditional(
        self,
        *,
        lead: Float[Tensor, "batch width"],
        draft: Float[Tensor, "batch token latent"] | None,
        count: Int64[Tensor, " batch"],
        words: int = 0,
        dtype: torch.dtype,
    ) -> AffineConditional:
        """The map of one coming frame as the samplers want it: tokens in, mean and scale of some of them out."""
        rotary, mask = self.frames.prepare(1, count=count, words=words, device=lead.device, dtype=dtype)
        cached = words + self.frames.cached

        def parameters(x: Tensor, first: int, last: int, past: KeyValue | None) -> tuple[Tensor, Tensor, KeyValue]:
            hint = None if draft is None else draft[:, first:last]
            inputs = self.proj_in(x[:, max(first - 1, 0) : last - 1])
            if first == 0:
                inputs = torch.cat((lead[:, None], inputs), dim=1)
            if self.draft_in is not None and hint is not None:
                inputs = inputs + self.draft_in(hint)
            visible = mask[:, :, first:last, : cached + last]
            hidden, new = self.frames.transformer(inputs, rotary[:, first:last], mask=visible, past=past)
            mu, sigma = self._affine(hidden, hint, first=first)
            return mu, sigma, new

        return parameters

    def frame_map(
        self,
        frame: ComingFrame,
        *,
        lead: Float[Tensor, "batch width"],
        draft: Float[Tensor, "batch token latent"] | None,
    ) -> FrameMap:
        """The map of one coming frame that is thought over in place.

        The frame's rows may be several times those of the tokens: each of these times they read the same tokens.
        """
        hint = None if self.draft_in is None or draft is None else self.draft_in(draft)
        center = None if self.draft_gate is None or draft is None else self.draft_gate * draft
        N = self.num_tokens

        def parameters(x: Tensor, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
            read = x[:, max(first - 1, 0) : last - 1]
            if len(lead) > len(x):
                read = read.repeat(len(lead) // len(x), 1, 1)
            slots = self.proj_in(read)
            if first == 0:
                slots = torch.cat((lead[:, None], slots), dim=1)
            until = min(last, N)
            if hint is not None and first < N:
                told = hint[:, first:until]
                slots = slots + (told if last <= N else F.pad(told, (0, 0, 0, last - N)))
            hidden = frame(slots, first)
            mu, sigma = self._scales(hidden[:, : until - first], first)
            if center is not None:
                mu = mu + center[:, first:until]
            return mu, sigma, hidden

        return parameters
